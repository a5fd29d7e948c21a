"""What the numbers in a mask mean: classes as they are, or by `dataset.label_map`; 255 is void."""

from __future__ import annotations

from collections.abc import Mapping
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


def count_classes(config: DatasetConfig, label_HW: np.ndarray) -> dict[int, int]:
    """Class -> pixels of a mask, without classes that it lacks; void is 255."""
    counts = np.bincount(map_label(config, label_HW).reshape(-1), minlength=256)
    return {int(number): int(counts[number]) for number in np.flatnonzero(counts)}


def check_classes(config: DatasetConfig, pixels: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What the labels of train and val cannot teach or measure, as lines for a warning.

    Args:
        pixels: "train" and "val" -> pixels by class, [256].

    Raises: DataError if val has nothing to measure, and if every object of two classes is void.
    """
    where, train, val = config.images or config.root, pixels["train"], pixels["val"]
    if not any(val[:VOID]):
        facts = {"found": Phrase("all void"), "expected": Phrase("one pixel of a class, or more")}
        cure = "choose other images for val, or set dataset.label_map or dataset.ignore_index"
        raise DataError(describe(where, field="labels of val", **facts, cure=cure))
    held = [number for number in range(config.num_classes) if train[number]]
    if config.num_classes == 2 and len(held) < 2 and train[VOID] and not config.label_map:
        found = Phrase(f"{' and '.join(map(str, [*held, VOID]))} alone, and {VOID} is void")
        facts = {"found": found, "expected": Phrase("0 and 1")}
        cure = "set dataset.label_map to {0: 0, 255: 1} if 255 is a class"
        raise DataError(describe(where, field="labels of train", **facts, cure=cure))
    missing = [f"{k} ({config.names[k]})" for k in range(config.num_classes) if k not in held]
    if not missing:
        return []
    return [
        f"no training label holds a pixel of {len(missing)} of {config.num_classes} classes: "
        f"{', '.join(missing[:8])}{', ...' if missing[8:] else ''}"
    ]


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
