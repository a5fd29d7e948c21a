"""Finds stored labels, answers and images that no data set and no teacher can have given."""

from __future__ import annotations

import copy

import numpy as np

from kdcache.config import VOID
from kdcache.data.views import MEAN_RGB
from tests.integrity.opened import Opened


def find_unknown_labels(opened: Opened, split: str, *, count: int) -> list[str]:
    """Of `count` stored labels, those with a value that is neither a class nor void."""
    reader, found = copy.copy(opened.readers[split]), []
    reader.check = "never"  # a checked reading ends at the first of them
    for view, sample in opened.draw_places(split, count=count):
        values = np.unique(reader.read("label", view, sample))
        unknown = [int(value) for value in values if value >= opened.num_classes and value != VOID]
        if unknown:
            most = opened.num_classes - 1
            name = opened.name(split, view, sample)
            found.append(f"{name}: labels {unknown}, expected 0 to {most} or {VOID}")
    return found


def find_nonfinite(opened: Opened, split: str, *, count: int) -> list[str]:
    """Of `count` stored samples, the arrays with an infinite value or none at all."""
    reader = opened.readers[split]
    names = [spec.name for spec in reader.layout.arrays if spec.dtype.startswith("float")]
    return [
        f"{opened.name(split, view, sample)}: {name} has values that are not finite"
        for view, sample in opened.draw_places(split, count=count)
        for name in names
        if not np.isfinite(reader.read(name, view, sample)).all()
    ]


def find_bad_padding(opened: Opened, split: str, *, count: int) -> list[str]:
    """Of `count` stored samples, those whose padding, as their records have it, is not the mean
    colour and void.
    """
    reader, found = opened.readers[split], []
    for view, sample in opened.draw_places(split, count=count):
        record, row = opened.find_record(split, view, sample)
        name = opened.name(split, view, sample)
        top, left, bottom, right = record.views[row]["image_box"]
        outside = np.ones(reader.layout.array("label").item_shape, bool)
        outside[top:bottom, left:right] = False
        if not (reader.read("label", view, sample)[outside] == VOID).all():
            found.append(f"{name}: label has classes outside of {[top, left, bottom, right]}")
        if not (reader.read("image", view, sample)[outside] == MEAN_RGB).all():
            found.append(f"{name}: image goes on outside of {[top, left, bottom, right]}")
    return found
