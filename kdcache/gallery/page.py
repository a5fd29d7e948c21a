"""The gallery of a cache: one HTML file that needs nothing else, and whose only script chooses and sorts."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.settings import read_config
from kdcache.config.parser import flatten
from kdcache.gallery import style
from kdcache.gallery.cards import draw_cards
from kdcache.gallery.exhibit import Exhibit, open_exhibit
from kdcache.gallery.file import MARK, check_out, name_cache, write_page
from kdcache.gallery.keys import draw_controls, draw_keys
from kdcache.gallery.scan import MOST_VIEWS, Scan, find_share, scan_split
from kdcache.gallery.script import SCRIPT
from kdcache.gallery.summary import draw_summary, find_misnamed
from kdcache.progress import Progress, Silent
from kdcache.report.document import make_document
from kdcache.report.tables import draw_facts
from kdcache.storage.place import Place


@dataclass(frozen=True)
class Gallery:
    """What was written: how many samples are shown, of how many looked at, of how many, in how many bytes.

    misnamed: names of the classes that the teacher mostly calls something else.
    """

    num_shown: int
    num_looked_at: int
    num_samples: int
    misnamed: list[str]
    size_bytes: int


def write_gallery(
    root: Place, out: Path, *, split: str, num_samples: int, progress: Progress | None = None
) -> Gallery:
    """Write the gallery of one split of the cache at `root` into the file `out`, in place of an older gallery.

    Args:
        split: "val" or "train"; of the training views the first MOST_VIEWS are shown.
        num_samples: how many are shown, half of them the worst and half the best of those looked at.

    Raises: CacheError where there is no cache, it is half-built or damaged, or `out` is another file, inside a cache or cannot
        be written.
    """
    check_out(out)
    progress, manifest = progress or Silent(), read_manifest(root)
    layout, names = (
        manifest.layouts[split],
        read_config(manifest).dataset.names,
    )
    reader = CacheReader(root, manifest, split, num_views=min(MOST_VIEWS, layout.num_views))
    scan = scan_split(reader, num_classes=len(names), at_least=num_samples, progress=progress)
    exhibit = open_exhibit(reader, scan.choose(num_samples), progress=progress)
    title = f"{name_cache(root)}, {split}"
    parts = [
        _draw_head(title, manifest, exhibit, scan),
        draw_summary(names, scan.confusion_KK),
        _draw_samples(names, exhibit, scan, draw_cards(exhibit, progress=progress)),
        _draw_cache(manifest, reader),
    ]
    size_bytes = write_page(out, make_document(title, parts, css=style.CSS, script=SCRIPT))
    misnamed = [names[number] for number in find_misnamed(scan.confusion_KK)]
    return Gallery(
        len(exhibit.samples), len(scan.samples), layout.num_samples, misnamed, size_bytes
    )


def _draw_head(title: str, manifest: Manifest, exhibit: Exhibit, scan: Scan) -> str:
    reader, confusion = exhibit.reader, scan.confusion_KK
    error = find_share(int(confusion.sum() - confusion.trace()), int(confusion.sum()))
    entropy = sum(sample.entropy for sample in scan.samples) / len(scan.samples)
    miou = manifest.information.get("teacher_miou")
    views = f" x {reader.num_views} views" if reader.num_views > 1 else ""
    tiles = [
        (
            "teacher error",
            "-" if error is None else f"{100 * error:.1f} %",
            "of the labelled pixels looked at",
        ),
        (
            "entropy",
            f"{entropy:.2f}",
            f"nats, mean; 0 is certain, {exhibit.most_entropy:.2f} knows nothing",
        ),
        (
            "shown",
            f"{len(exhibit.samples)}",
            f"of {len(scan.samples)} looked at, of {reader.layout.num_samples}{views}",
        ),
        ("teacher mIoU on val", "-" if miou is None else f"{miou:.4f}", "when the cache was built"),
    ]
    drawn = "".join(
        f'<div class="tile">{name}<b>{value}</b><small>{note}</small></div>'
        for name, value, note in tiles
    )
    return (
        f'{MARK}<h1>{escape(title)}</h1><div class="soft">{escape(_describe_cache(manifest, reader))}</div>'
        f'<div class="tiles">{drawn}</div></header>'
    )


def _draw_samples(names: list[str], exhibit: Exhibit, scan: Scan, cards: str) -> str:
    shown, looked_at = len(exhibit.samples), len(scan.samples)
    spaced = "" if looked_at == exhibit.reader.layout.num_samples else "evenly spaced "
    best = shown // 2
    chosen = f"The {shown - best} with the largest and the {best} with the smallest teacher error of {looked_at}"
    return (
        f'<section><h2>Samples</h2><p class="soft">{"All" if shown == looked_at else chosen} {spaced}samples looked at, the '
        "worst first. Teacher error: share of the labelled pixels to which the teacher gives another class. Its classes are "
        "those of the cached scores, brought to the size of the image; entropy is that of their softmax, on their own grid. "
        "Heat maps show padding, too.</p>"
        f"{draw_keys(names, exhibit)}{draw_controls(names, exhibit)}{cards}</section>"
    )


def _describe_cache(manifest: Manifest, reader: CacheReader) -> str:
    """One line."""
    layout, (height, width) = reader.layout, reader.layout.array("label").item_shape
    views = f"{layout.num_samples} samples x {layout.num_views} views of {width} x {height} pixels"
    stored = ", ".join(f"{name} {encoding.kind}" for name, encoding in reader.encodings.items())
    return f"kdcache cache {manifest.identity_hash[:12]}: {views}; {stored}"


def _draw_cache(manifest: Manifest, reader: CacheReader) -> str:
    identity = manifest.identity[reader.layout.split]
    facts = {"path": reader.root, "identity": manifest.identity_hash, **flatten(identity)}
    return f"<section><h2>The cache</h2>{draw_facts(facts)}</section>"
