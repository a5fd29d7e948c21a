"""What a cache's teacher said of some stored samples, beside their labels.

Letters: V views, N samples, R samples of a run (neighbours), H, W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from kdcache.config import VOID
from kdcache.models.inputs import resize_to
from tests.integrity.opened import Opened

RUN = 8  # samples compared with each other, 8 to 15; fewer say little
MOST_VIEWS, MOST_SCENES = 4, 256


@dataclass(frozen=True, repr=False)
class Scenes:
    """What the teacher said of some samples in some views, with their labels.

    prediction_VNHW, label_VNHW: uint8 classes. flip_VN, box_VN4: from the commit records (never a
        flip in val).
    runs: places of neighbouring samples on axis N.
    """

    split: str
    views: list[int]
    samples: list[int]
    runs: list[slice]
    prediction_VNHW: np.ndarray
    label_VNHW: np.ndarray
    flip_VN: np.ndarray
    box_VN4: np.ndarray

    @cached_property
    def crosses(self) -> list[tuple[str, slice, np.ndarray]]:
        """(name, run, shares [R, R]) for each run that is not all void: how often answer i (row) is
        right by label j (column).
        """
        return list(self._cross())

    def _cross(self) -> Iterator[tuple[str, slice, np.ndarray]]:
        for v, view in enumerate(self.views):
            for run in self.runs:
                first, last = self.samples[run.start], self.samples[run.stop - 1]
                name = f"{self.split} view {view} samples {first} to {last}"
                predictions, labels = self.prediction_VNHW[v, run], self.label_VNHW[v, run]
                if (labels != VOID).any():
                    yield (
                        name,
                        run,
                        np.array([[share(p, label) for label in labels] for p in predictions]),
                    )


def read_scenes(opened: Opened, split: str) -> Scenes:
    """Random runs of neighbouring samples in up to four views, 256 stored samples at most, logits
    upsampled as FCN does.
    """
    reader, generator = opened.readers[split], opened.generator()
    views = sorted(generator.permutation(reader.num_views)[:MOST_VIEWS].tolist())
    runs = np.array_split(
        np.arange(reader.layout.num_samples), max(1, reader.layout.num_samples // RUN)
    )
    most = max(1, MOST_SCENES // len(views) // max(map(len, runs)))
    runs = [runs[index] for index in sorted(generator.permutation(len(runs))[:most])]
    ends = np.cumsum([0, *map(len, runs)]).tolist()
    samples = np.concatenate(runs).tolist()
    facts = [[_find_view(opened, split, view, sample) for sample in samples] for view in views]
    return Scenes(
        split,
        views,
        samples,
        [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)],
        np.array([[_predict(opened, split, view, sample) for sample in samples] for view in views]),
        np.array([[reader.read("label", view, sample) for sample in samples] for view in views]),
        np.array([[fact.get("flip", False) for fact in row] for row in facts]),
        np.array([[fact["image_box"] for fact in row] for row in facts]),
    )


def share(prediction: np.ndarray, label: np.ndarray) -> float:
    """Share of pixels that are right, void ones apart; NaN where all are void."""
    num_counted = np.count_nonzero(label != VOID)  # no prediction is void
    return np.count_nonzero(prediction == label) / num_counted if num_counted else np.nan


def _predict(opened: Opened, split: str, view: int, sample: int) -> np.ndarray:
    reader = opened.readers[split]
    logits = torch.from_numpy(reader.decode("logits", view, sample))[None]
    return (
        resize_to(logits, reader.layout.array("label").item_shape)
        .argmax(1)[0]
        .numpy()
        .astype(np.uint8)
    )


def _find_view(opened: Opened, split: str, view: int, sample: int) -> dict:
    record, row = opened.find_record(split, view, sample)
    return record.views[row]
