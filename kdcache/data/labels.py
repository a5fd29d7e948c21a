"""What a mask means: its numbers are classes as they are, or by `dataset.label_map`; or its colours
are, by `dataset.palette`; 255 is void.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdcache.config import VOID, DatasetConfig
from kdcache.config.masks import MOST_VALUE
from kdcache.errors import DataError, Phrase, describe


def map_label(config: DatasetConfig, label_HW: np.ndarray) -> np.ndarray:
    """The classes of a mask, uint8 [H, W], void as 255."""
    return build_table(config)[label_HW]


def build_table(config: DatasetConfig) -> np.ndarray:
    """The class of each stored value, uint8 [65536]; those above 255 need a map."""
    if not config.class_of_value:
        table = np.full(MOST_VALUE + 1, VOID, np.uint8)
        table[:256] = np.arange(256)
        table[config.ignore_index] = VOID
        return table
    table = np.full(MOST_VALUE + 1, VOID, np.uint8)
    for value, number in config.class_of_value.items():
        table[value] = number
    return table


def find_classes(config: DatasetConfig, path: Path, colours_HW3: np.ndarray) -> np.ndarray:
    """The classes of a mask whose colours say them, uint8 [H, W], void as 255.

    Args:
        path: of the mask, for messages. colours_HW3: uint8 RGB.

    Raises: DataError if a colour is not in `dataset.palette`, with the pixels of all such.
    """
    known = [(_pack(c), number) for number, colours in config.colours.items() for c in colours]
    codes, classes = (np.array(column) for column in zip(*sorted(known), strict=True))
    red, green, blue = (colours_HW3[..., channel].astype(np.int32) for channel in range(3))
    found_HW = (red << 16) + (green << 8) + blue
    place_HW = np.minimum(np.searchsorted(codes, found_HW), len(codes) - 1)
    unknown = found_HW[codes[place_HW] != found_HW]
    if unknown.size:
        others, counts = np.unique(unknown, return_counts=True)
        most = int(others[counts.argmax()])
        colour = [most >> 16, most >> 8 & 255, most & 255]
        found = f"{colour} in {counts.max()} pixels"
        if len(others) > 1:
            found = f"{found}, and {len(others) - 1} more unknown in {unknown.size - counts.max()}"
        facts = {"found": Phrase(found), "expected": Phrase("a colour of dataset.palette")}
        cure = f"add it to a class, or to {VOID} for void"
        cure += "; a JPEG has no exact colours" if path.suffix.lower() in (".jpg", ".jpeg") else ""
        raise DataError(describe(path, field=f"colour of {path.stem!r}", **facts, cure=cure))
    return classes.astype(np.uint8)[place_HW]


def _pack(colour: tuple[int, int, int]) -> int:
    red, green, blue = colour
    return (red << 16) + (green << 8) + blue


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
    if config.num_classes == 2 and len(held) < 2 and train[VOID] and not _is_meant(config):
        found = Phrase(f"{' and '.join(map(str, [*held, VOID]))} alone, and {VOID} is void")
        facts = {"found": found, "expected": Phrase("0 and 1")}
        cure = "set dataset.label_map to {0: 0, 255: 1} if 255 is a class"
        raise DataError(describe(where, field="labels of train", **facts, cure=cure))
    lines = []
    absent = _name_absent(config, train)
    if absent:
        lines.append(f"no training label holds a pixel of {absent}")
    absent = _name_absent(config, val)
    if absent:
        lines.append(
            f"no label of val holds a pixel of {absent}; mIoU is the mean over the other "
            f"{sum(map(bool, val[: config.num_classes]))}"
        )
    return lines


def _name_absent(config: DatasetConfig, pixels: tuple[int, ...]) -> str:
    """The classes without a pixel in words; empty if there are none."""
    missing = [f"{k} ({config.names[k]})" for k in range(config.num_classes) if not pixels[k]]
    if not missing:
        return ""
    named = f"{', '.join(missing[:8])}{', ...' if missing[8:] else ''}"
    return f"{len(missing)} of {config.num_classes} classes: {named}"


def _is_meant(config: DatasetConfig) -> bool:
    return bool(config.class_of_value or config.colours)


def check_label(
    config: DatasetConfig,
    label_HW: np.ndarray,
    *,
    path: Path,
    image_path: Path,
    image_hw: tuple[int, int],
    turned: int = 1,
) -> None:
    """Raise DataError if a mask has another size than its image, or a value that means nothing.

    Args:
        path: of the mask. image_hw: of the upright image. turned: its EXIF orientation, 1 to 8.
    """
    if image_hw != label_HW.shape:
        expected, cure = f"{image_hw[1]}x{image_hw[0]} as {image_path.name}", "restore the file"
        if turned != 1:
            expected += f", turned by EXIF orientation {turned}"
            cure = "make the mask upright, too, or take the tag out of the image"
        found = Phrase(f"{label_HW.shape[1]}x{label_HW.shape[0]}")
        facts = {"field": "size", "found": found, "expected": Phrase(expected)}
        raise DataError(describe(path, **facts, cure=cure))
    check_values(config, path, label_HW)


def check_values(config: DatasetConfig, path: Path, label_HW: np.ndarray) -> None:
    """Raise DataError if a mask holds a value that is no class, or that the map does not name."""
    counts = np.bincount(label_HW.reshape(-1), minlength=256)
    values = [int(value) for value in np.flatnonzero(counts)]
    if config.class_of_value:
        bad = [value for value in values if value not in config.class_of_value]
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
