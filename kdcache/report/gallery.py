"""The gallery of a cache: one HTML file that needs nothing else; its script filters and sorts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache import disk
from kdcache.analysis.scan import MOST_VIEWS, Scan, find_share, find_size, scan_split
from kdcache.cache.layout import COMMITS, MANIFEST
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.settings import read_config
from kdcache.config.parser import flatten
from kdcache.disk import open_plain
from kdcache.errors import CacheError, Phrase, describe
from kdcache.progress import Progress, Silent
from kdcache.report.classes import MOST_CLASSES, find_misnamed, view_teacher_classes
from kdcache.report.gallery_samples import Exhibit, holds_directions, open_exhibit, view_samples
from kdcache.report.template import render_page
from kdcache.storage import Storage, open_storage

MARK = '<header id="kdcache-gallery">'  # of the template
HEAD_BYTES = 64_000  # the mark stands behind the style sheets
ORDERS = {  # of the script; the page is in the first one
    "worst": "worst first",
    "best": "best first",
    "unsure": "most entropy first",
    "sure": "least entropy first",
    "split": "as in the split",
}
OF_LABELS = ("worst", "best")


@dataclass(frozen=True)
class Gallery:
    """What was written: how many samples are shown, of how many looked at, of how many there are.

    misnamed: names of the classes that the teacher mostly calls something else.
    """

    num_shown: int
    num_looked_at: int
    num_samples: int
    misnamed: list[str]
    size_bytes: int


def write_gallery(
    place: Storage | str | Path,
    out: Path,
    *,
    split: str,
    num_samples: int,
    progress: Progress | None = None,
) -> Gallery:
    """Write the gallery of one split of the cache at `root` into the file `out`.

    Args:
        out: a new file or an older gallery. split: "val", "train" or "unlabelled"; of
            their views the first MOST_VIEWS are shown.
        num_samples: how many are shown: half of them the worst, half the best of those looked at;
            without labels, half those with the most entropy and half with the least.

    Raises: CacheError if there is no cache or split, it is half-built or damaged, or `out` is
        another file, inside a cache or cannot be written.
    """
    check_out(out)
    root = open_storage(place)
    progress, manifest = progress or Silent(), read_manifest(root)
    if split not in manifest.listed:
        raise CacheError(_describe_missing(root, manifest, split))
    layout = manifest.listed[split]
    names = read_config(manifest).dataset.names
    reader = CacheReader(root, manifest, split, num_views=min(MOST_VIEWS, layout.num_views))
    scan = scan_split(reader, num_classes=len(names), at_least=num_samples, progress=progress)
    exhibit = open_exhibit(reader, scan.choose(num_samples), progress=progress)
    html = render_page(
        "gallery.html.j2",
        title=f"{root.short_name}, {split}",
        styles=["gallery.css"],
        script="gallery.js",
        **_view_gallery(names, manifest, exhibit, scan),
        samples=view_samples(exhibit, progress=progress),
    )
    misnamed = [names[number] for number in find_misnamed(scan.confusion_KK)]
    return Gallery(
        len(exhibit.samples), len(scan.samples), layout.num_samples, misnamed, _write(out, html)
    )


def _describe_missing(root: Storage, manifest: Manifest, split: str) -> str:
    there = ", ".join(manifest.listed)
    cure = "choose another --split, or add images with dataset.unlabelled"
    return describe(root, field="split", found=split, expected=Phrase(f"one of {there}"), cure=cure)


def check_out(out: Path) -> None:
    """Raises CacheError if no gallery can be written there; asked before anything is read."""
    folder = out.parent.resolve()
    if not folder.is_dir():
        missing = f"folder {out.parent} is missing"
        raise CacheError(f"{out}: {missing}, expected one to write into; make it first")
    cache = next((above for above in (folder, *folder.parents) if _is_cache(above)), None)
    if cache:
        inside = f"folder is inside the cache {cache}"
        raise CacheError(f"{out}: {inside}, expected another; choose it with --out")
    if out.exists() and not _is_gallery(out):
        cure = "expected a new name; choose it with --out, or remove it first"
        raise CacheError(f"{out}: file is there and no gallery, {cure}")


def _is_cache(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / COMMITS).is_dir()


def _is_gallery(out: Path) -> bool:
    try:
        with open_plain(out, follow=True) as file:
            return MARK.encode() in file.read(HEAD_BYTES)
    except OSError:
        return False


def _write(out: Path, html: str) -> int:
    """Returns the size in bytes; the file takes its name once it is whole. Raises CacheError."""
    data = html.encode(errors="backslashreplace")  # paths may hold bytes that are no text
    try:
        disk.replace_file(out, data)
    except OSError as error:
        reason = f"gallery cannot be written ({error.strerror})"
        raise CacheError(f"{out}: {reason}; mend that or choose another --out") from None
    return len(data)


def _view_gallery(names: list[str], manifest: Manifest, exhibit: Exhibit, scan: Scan) -> dict:
    """Everything but the samples."""
    reader = exhibit.reader
    there = sorted({number for sample in exhibit.samples for number in sample.classes})
    height, width = exhibit.size_hw
    identity = flatten(manifest.identity[reader.layout.split])
    return {
        "note": _describe_cache(manifest, reader),
        "tiles": _view_tiles(manifest, exhibit, scan),
        "called": view_teacher_classes(names, scan.confusion_KK),
        "num_shown": len(exhibit.samples),
        "num_looked_at": len(scan.samples),
        "is_spaced": len(scan.samples) != reader.layout.num_samples,
        "scales": _list_scales(exhibit),
        "classes": names,
        "classes_open": len(names) <= MOST_CLASSES,
        "classes_there": [(number, names[number]) for number in there],
        "has_labels": exhibit.has_labels,
        "orders": {
            name: text
            for name, text in ORDERS.items()
            if exhibit.has_labels or name not in OF_LABELS
        },
        "shape": f"{width}/{height}",
        "num_views": reader.num_views,
        "facts": {"path": str(reader.storage), "identity": manifest.identity_hash, **identity},
    }


def _describe_cache(manifest: Manifest, reader: CacheReader) -> str:
    """One line."""
    layout, (height, width) = reader.layout, find_size(reader)
    views = f"{layout.num_samples} samples x {layout.num_views} views of {width} x {height} pixels"
    stored = ", ".join(f"{name} {encoding.kind}" for name, encoding in reader.encodings.items())
    return f"kdcache cache {manifest.identity_hash[:12]}: {views}; {stored}"


def _view_tiles(manifest: Manifest, exhibit: Exhibit, scan: Scan) -> list[dict]:
    """Headline numbers: title, value and note."""
    reader = exhibit.reader
    entropy = sum(sample.entropy for sample in scan.samples) / len(scan.samples)
    certain = f"nats, mean; 0 is certain, {exhibit.most_entropy:.2f} knows nothing"
    miou = manifest.information.get("teacher_miou")
    views = f" x {reader.num_views} views" if reader.num_views > 1 else ""
    shown = f"of {len(scan.samples)} looked at, of {reader.layout.num_samples}{views}"
    miou_text = "-" if miou is None else f"{miou:.4f}"
    tiles = [
        *([_name_error(scan)] if exhibit.has_labels else []),
        ("entropy", f"{entropy:.2f}", certain),
        ("shown", str(len(exhibit.samples)), shown),
        ("teacher mIoU on val", miou_text, "when the cache was built"),
    ]
    return [{"kind": "", "title": t, "value": value, "note": note} for t, value, note in tiles]


def _name_error(scan: Scan) -> tuple[str, str, str]:
    confusion = scan.confusion_KK
    error = find_share(int(confusion.sum() - confusion.trace()), int(confusion.sum()))
    text = "-" if error is None else f"{100 * error:.1f} %"
    return "teacher error", text, "of the labelled pixels looked at"


def _list_scales(exhibit: Exhibit) -> list[tuple[str, str]]:
    """Title and largest value of each heat map's scale."""
    scales = [("entropy", f"{exhibit.most_entropy:.2f} (log K)")]
    for level, most in exhibit.mosts.items():
        is_direction = holds_directions(exhibit.reader.encodings[level])
        kept = "share of the features' direction kept (lengths are not)"
        what = kept if is_direction else "energy of the features"
        scales.append((f"{level}: {what}", f"{most:.3g}"))
    return scales
