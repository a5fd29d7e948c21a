"""How strong the teacher's features are: a map a level, on a scale that all pictures of the level share.

Letters: C channels, h, w height and width of a level's grid.
"""

from __future__ import annotations

import numpy as np

from kdcache.cache.encodings import Encoding
from kdcache.cache.reader import CacheReader

BRIGHTEST_SHARE = 0.99  # of all cells are below the top of a scale that has no natural end


def read_energy(reader: CacheReader, level: str, view: int, number: int) -> np.ndarray:
    """How strong a level's features are at each cell, float32 [h, w]: root mean square over the channels.

    Of lowrank, which keeps directions alone, how much of the direction the basis holds: the length that is left of 1.
    """
    squares_Chw = np.square(reader.decode(level, view, number))
    return np.sqrt(
        squares_Chw.sum(0) if holds_directions(reader.encodings[level]) else squares_Chw.mean(0)
    )


def holds_directions(encoding: Encoding) -> bool:
    """Whether nothing is kept of how long features are."""
    return encoding.kind == "lowrank"


def find_most(energies: list[np.ndarray], encoding: Encoding) -> float:
    """What has the brightest colour in all pictures of a level, above 0."""
    if holds_directions(encoding):
        return 1.0
    return (
        float(np.quantile(np.concatenate([energy.ravel() for energy in energies]), BRIGHTEST_SHARE))
        or 1.0
    )
