"""The samples of a gallery as view data: what is shown of a cache, its pictures and their scales.

Letters: H, W height and width, C channels, h, w height and width of a level's grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.analysis.scan import (
    ScannedSample,
    ScannedView,
    find_classes,
    find_entropy,
    find_image,
    find_share,
    find_size,
    has_labels,
    read_label,
    read_view,
    work_through,
)
from kdcache.cache.encodings import Encoding
from kdcache.cache.reader import CacheReader
from kdcache.metrics import VOID
from kdcache.progress import Progress
from kdcache.report.classes import LONGEST_PX, class_map_uri, heat_map_uri, photo_uri, shrink_map

# So many pictures of LONGEST_PX stay below 5 MB with room. More views have smaller pictures, but
# none too small to be seen.
NUM_LARGE, LEAST_PX = 50, 160
BRIGHTEST_SHARE = 0.99  # of all cells are below the top of a scale that has no natural end


@dataclass(frozen=True)
class Exhibit:
    """Chosen samples of an opened split.

    samples: in the order they are shown in.
    longest_px: of photographs and class maps; heat maps have half of that.
    energies: (level, view, number of the sample) -> [h, w]; mosts: level -> what is brightest.
    """

    reader: CacheReader
    samples: list[ScannedSample]
    longest_px: int
    energies: dict[tuple[str, int, int], np.ndarray]
    mosts: dict[str, float]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of a view in pixels, padding included."""
        return find_size(self.reader)

    @property
    def has_labels(self) -> bool:
        """Whether the split holds labels."""
        return has_labels(self.reader)

    @property
    def most_entropy(self) -> float:
        """log K, of a softmax that is the same for all classes."""
        return math.log(self.reader.layout.array("logits").item_shape[0])


def open_exhibit(
    reader: CacheReader, samples: list[ScannedSample], *, progress: Progress
) -> Exhibit:
    """Read the features of all samples first, since the pictures of a level share a scale.

    Raises: CacheCorruptError.
    """
    levels = [name for name in reader.encodings if name != "logits"]
    longest_px = choose_size(len(samples) * reader.num_views)
    views = [(view, sample.number) for sample in samples for view in range(reader.num_views)]
    places = [(level, *view) for view in views for level in levels]
    energies = {}
    with progress.start("reading features", total=len(places), unit="maps") as bar:
        maps = work_through(
            reader, places, lambda place: shrink_map(read_energy(reader, *place), longest_px // 2)
        )
        for place, energy in zip(places, maps, strict=True):
            energies[place] = energy
            bar.advance(1)
    mosts = {
        level: _find_most([energies[level, *view] for view in views], reader.encodings[level])
        for level in levels
    }
    return Exhibit(reader, samples, longest_px, energies, mosts)


def choose_size(num_views: int) -> int:
    """The longest side of a picture in pixels, for so many views in a page."""
    return round(max(LEAST_PX, LONGEST_PX * min(1.0, math.sqrt(NUM_LARGE / num_views))))


def read_energy(reader: CacheReader, level: str, view: int, number: int) -> np.ndarray:
    """How strong a level's features are: root mean square over channels, float32 [h, w].

    Of lowrank, which keeps directions alone: the length, of 1, that the basis holds.
    """
    squares_Chw = np.square(reader.decode(level, view, number))
    is_direction = holds_directions(reader.encodings[level])
    return np.sqrt(squares_Chw.sum(0) if is_direction else squares_Chw.mean(0))


def holds_directions(encoding: Encoding) -> bool:
    """Whether the lengths of features are not kept."""
    return encoding.kind == "lowrank"


def _find_most(energies: list[np.ndarray], encoding: Encoding) -> float:
    """The energy with the brightest colour in all pictures of a level, above 0."""
    if holds_directions(encoding):
        return 1.0
    everything = np.concatenate([energy.ravel() for energy in energies])
    return float(np.quantile(everything, BRIGHTEST_SHARE)) or 1.0


def view_samples(exhibit: Exhibit, *, progress: Progress) -> Iterator[dict]:
    """One sample after the other. Raises CacheCorruptError."""
    with progress.start("drawing", total=len(exhibit.samples), unit="samples") as bar:
        ranked = list(enumerate(exhibit.samples))
        for sample in work_through(
            exhibit.reader, ranked, lambda item: _view_sample(exhibit, *item)
        ):
            yield sample
            bar.advance(1)


def format_error(error: float | None) -> str:
    """The teacher's error, 0 to 1, in words; None if no pixel has a label."""
    return "no labelled pixel" if error is None else f"teacher error {100 * error:.1f} %"


def _view_sample(exhibit: Exhibit, rank: int, sample: ScannedSample) -> dict:
    percent = 100.0 if sample.error is None else 100 * sample.error
    error = f"{format_error(sample.error)}, " if exhibit.has_labels else ""
    return {
        "rank": rank,
        "number": sample.number,
        "error": f"{percent:.2f}",
        "entropy": f"{sample.entropy:.4f}",
        "classes": sample.classes,
        "name": exhibit.reader.sample_ids[sample.number],
        "note": f"{error}entropy {sample.entropy:.2f}",
        "views": [_view_one(exhibit, sample, view) for view in range(exhibit.reader.num_views)],
    }


def _view_one(exhibit: Exhibit, sample: ScannedSample, view: int) -> dict:
    """One view; its photograph is in the page once and lies under both class maps."""
    reader, number = exhibit.reader, sample.number
    facts = read_view(reader, number, view)
    logits = torch.from_numpy(reader.decode("logits", view, number))
    layers = _find_layers(exhibit, logits, number, view)
    px = exhibit.longest_px
    return {
        "name": reader.sample_ids[number] + (f", view {view}" if reader.num_views > 1 else ""),
        "photo": photo_uri(reader.read("image", view, number), longest_px=px),
        "layers": {name: class_map_uri(classes, longest_px=px) for name, classes in layers.items()},
        "heats": _draw_heats(exhibit, logits, number, view),
        "note": _describe_view(exhibit, facts, sample.views[view], view),
    }


def _find_layers(
    exhibit: Exhibit, logits_Khw: Tensor, number: int, view: int
) -> dict[str, np.ndarray]:
    """Title -> classes uint8 [H, W]; the teacher's within the image only, not on its padding.

    Without labels the teacher's alone.
    """
    image = find_image(exhibit.reader, number, view)
    inside = np.full(exhibit.size_hw, VOID, np.uint8)
    inside[image] = find_classes(logits_Khw, exhibit.size_hw)[image]
    if not exhibit.has_labels:
        return {"teacher": inside}
    return {"label": read_label(exhibit.reader, number, view), "teacher": inside}


def _draw_heats(exhibit: Exhibit, logits_Khw: Tensor, number: int, view: int) -> dict[str, str]:
    """Title -> data URI."""
    entropy = shrink_map(find_entropy(logits_Khw), exhibit.longest_px // 2)
    uris = {"entropy": heat_map_uri(entropy, most=exhibit.most_entropy)}
    for level, most in exhibit.mosts.items():
        uris[level] = heat_map_uri(exhibit.energies[level, view, number], most=most)
    return uris


def _describe_view(exhibit: Exhibit, facts: dict, scanned: ScannedView, view: int) -> str:
    """How the view was made, as the commit record says; sizes are width x height in pixels."""
    box_hw = tuple(facts["image_box"][2:])
    padded = "" if box_hw == exhibit.size_hw else f", padded from {_format_size(box_hw)}"
    if "resized_hw" not in facts:
        is_whole = tuple(facts["image_hw"]) == box_hw
        shrunk = "" if is_whole else f", shrunk to {_format_size(box_hw)}"
        return f"image of {_format_size(facts['image_hw'])}{shrunk}{padded}"
    error = format_error(find_share(scanned.num_wrong, scanned.num_labelled))
    said = f"{error}; " if exhibit.has_labels else ""
    resized, (top, left) = _format_size(facts["resized_hw"]), facts["crop_tl"]
    flipped = ", flipped" if facts["flip"] else ""
    names = ("brightness", "contrast", "saturation")
    colours = ", ".join(f"{name} {facts[name]:.2f}" for name in names)
    crop = f"crop at {left}, {top}{flipped}{padded}"
    return f"view {view}: {said}resized to {resized}, {crop}; {colours}"


def _format_size(hw: Sequence[int]) -> str:
    return f"{hw[1]} x {hw[0]}"
