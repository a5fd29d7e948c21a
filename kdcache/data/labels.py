"""What the numbers in a mask mean: classes as they are, or by `dataset.label_map`; 255 is void."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdcache.config import VOID, DatasetConfig
from kdcache.errors import DataError, Phrase, describe


def map_label(config: DatasetConfig, label_HW: np.ndarray) -> np.ndarray:
    """The classes of a mask, uint8 [H, W], void as 255."""
    return build_table(config)[label_HW]


def build_table(config: DatasetConfig) -> np.ndarray:
    """The class of each stored value, uint8 [256]."""
    if not config.label_map:
        table = np.arange(256, dtype=np.uint8)
        table[config.ignore_index] = VOID
        return table
    table = np.full(256, VOID, np.uint8)
    for value, number in config.label_map.items():
        table[int(value)] = number
    return table


def check_values(config: DatasetConfig, path: Path, label_HW: np.ndarray) -> None:
    """Raise DataError if a mask holds a value that is no class, or that the map does not name."""
    counts = np.bincount(label_HW.reshape(-1), minlength=256)
    values = [int(value) for value in np.flatnonzero(counts)]
    if config.label_map:
        bad = [value for value in values if str(value) not in config.label_map]
        if bad:
            found = Phrase(f"{bad[0]} in {counts[bad[0]]} pixels")
            cure = f"add {bad[0]}: CLASS to it, or {bad[0]}: {VOID} for void"
            facts = {"found": found, "expected": Phrase("a value of dataset.label_map")}
            raise DataError(describe(path, field="value", **facts, cure=cure))
        return
    allowed = {*range(config.num_classes), config.ignore_index, VOID}
    bad = [value for value in values if value not in allowed]
    if bad:
        expected = Phrase(f"0 to {config.num_classes - 1} or {config.ignore_index}")
        cure = "set dataset.num_classes or dataset.label_map, or mend the label"
        facts = {"found": bad[0], "expected": expected}
        raise DataError(describe(path, field="class", **facts, cure=cure))
