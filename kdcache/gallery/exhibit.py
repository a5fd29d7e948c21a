"""What of a cache is shown, and how: samples, how large their pictures are, the scales of their heat maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kdcache.cache.reader import CacheReader
from kdcache.gallery.energy import find_most, read_energy
from kdcache.gallery.scan import Sample, work_through
from kdcache.progress import Progress
from kdcache.report.pictures import LONGEST_PX, shrink_map

# So many pictures of LONGEST_PX stay below 5 MB with room; of more views they are smaller, but not too small to be seen.
NUM_LARGE, LEAST_PX = 50, 160


@dataclass(frozen=True)
class Exhibit:
    """Chosen samples of an opened split.

    samples: in the order they are shown in.
    longest_px: of photographs and class maps; heat maps have half of that.
    energies: (level, view, number of the sample) -> [h, w]; mosts: level -> what is brightest.
    """

    reader: CacheReader
    samples: list[Sample]
    longest_px: int
    energies: dict[tuple[str, int, int], np.ndarray]
    mosts: dict[str, float]

    @property
    def levels(self) -> list[str]:
        """Those that the split has."""
        return list(self.mosts)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of a view in pixels, padding included."""
        return self.reader.layout.array("label").item_shape

    @property
    def most_entropy(self) -> float:
        """log K, of a softmax that is the same for all classes."""
        return math.log(self.reader.layout.array("logits").item_shape[0])


def open_exhibit(reader: CacheReader, samples: list[Sample], *, progress: Progress) -> Exhibit:
    """Read the features of all samples first, since the pictures of a level share a scale. Raises CacheCorruptError."""
    levels = [name for name in reader.encodings if name != "logits"]
    longest_px = choose_size(len(samples) * reader.num_views)
    places = [
        (level, view, sample.number)
        for sample in samples
        for view in range(reader.num_views)
        for level in levels
    ]
    energies = {}
    with progress.start("reading features", total=len(places), unit="maps") as bar:
        maps = work_through(
            reader, places, lambda place: shrink_map(read_energy(reader, *place), longest_px // 2)
        )
        for place, energy in zip(places, maps, strict=True):
            energies[place] = energy
            bar.advance(1)
    mosts = {
        level: find_most(
            [energies[place] for place in places if place[0] == level], reader.encodings[level]
        )
        for level in levels
    }
    return Exhibit(reader, samples, longest_px, energies, mosts)


def choose_size(num_views: int) -> int:
    """The longest side of a picture in pixels, for so many views in a page."""
    return round(max(LEAST_PX, LONGEST_PX * min(1.0, math.sqrt(NUM_LARGE / num_views))))
