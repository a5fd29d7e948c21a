"""How far the labels of a cache and its teacher agree, sample by sample.

Letters: H, W height and width, h, w those of the cached scores, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.reader import CacheReader
from kdcache.data.pictures import choose_extremes, space_evenly
from kdcache.metrics import VOID, count_confusion
from kdcache.models.inputs import resize_to
from kdcache.progress import Progress

MOST_VIEWS = 4  # of a training sample: as many as fit beside each other on a page
# A scan ends at so many scores after the upsampling (400 views of 512x512 with 21 classes, which
# take about a minute on one core), and at so many views (a few requests each in a bucket).
MOST_SCORES, MOST_LOOKS = 2_200_000_000, 1_000

Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class ScannedView:
    """Measurements of one view of a sample; padding around the image does not count.

    num_labelled, num_wrong: pixels with a label, and those of them that the teacher calls another
        class.
    entropy: mean over the grid of the cached scores of the softmax's entropy, 0 to log K nats.
    label_classes, teacher_classes: classes that occur in the label and in the teacher's
        predictions.
    """

    num_labelled: int
    num_wrong: int
    entropy: float
    label_classes: frozenset[int]
    teacher_classes: frozenset[int]


@dataclass(frozen=True)
class ScannedSample:
    """One sample of the split by its number, and what was measured of its views."""

    number: int
    views: list[ScannedView]

    @property
    def error(self) -> float | None:
        """Share of the labelled pixels that the teacher calls another class; None of none."""
        return find_share(
            sum(view.num_wrong for view in self.views),
            sum(view.num_labelled for view in self.views),
        )

    @property
    def entropy(self) -> float:
        """Mean over the views, in nats."""
        return sum(view.entropy for view in self.views) / len(self.views)

    @property
    def classes(self) -> list[int]:
        """Classes that occur in labels or in the teacher's predictions, ascending."""
        there = (view.label_classes | view.teacher_classes for view in self.views)
        return sorted(frozenset().union(*there))


@dataclass(frozen=True)
class Scan:
    """All scanned samples in the order of the split, and their confusion, int64 [K, K].

    confusion_KK: pixels of each label (row) by what the teacher calls them.
    has_labels: whether the split holds labels; `unlabelled` holds none.
    """

    samples: list[ScannedSample]
    confusion_KK: np.ndarray
    has_labels: bool = True

    def choose(self, count: int) -> list[ScannedSample]:
        """Half of those with the largest error and half of those with the smallest, falling.

        Without labels the entropy of the teacher's answer decides. Among samples with labels one
        without any labelled pixel counts as the worst: something is wrong with it.
        """
        by_number = {sample.number: sample for sample in self.samples}
        values = {number: self._rank(sample) for number, sample in by_number.items()}
        return [by_number[number] for number in choose_extremes(values, count)]

    def _rank(self, sample: ScannedSample) -> float:
        if not self.has_labels:
            return sample.entropy
        return 2.0 if sample.error is None else sample.error


def scan_split(reader: CacheReader, *, num_classes: int, at_least: int, progress: Progress) -> Scan:
    """Compare labels and teacher in evenly spaced samples of a split, in the reader's views.

    Of a split without labels only what the teacher says is measured.

    Args:
        at_least: how many samples are scanned if the split has them, however large they are.

    Raises: CacheCorruptError naming the sample.
    """
    most = max(at_least, count_affordable(reader, num_classes))
    chosen = space_evenly(reader.layout.num_samples, most)
    samples, confusion = [], np.zeros((num_classes, num_classes), np.int64)
    with progress.start("looking at the cache", total=len(chosen), unit="samples") as bar:
        scanned = work_through(reader, chosen, lambda k: _scan_sample(reader, k, num_classes))
        for number, views in zip(chosen, scanned, strict=True):
            samples.append(ScannedSample(number, [view for view, _ in views]))
            confusion += sum(counts for _, counts in views)
            bar.advance(1)
    return Scan(samples, confusion, has_labels(reader))


def work_through(
    reader: CacheReader, items: Sequence[Item], work: Callable[[Item], Result]
) -> Iterator[Result]:
    """Results in the order of the items.

    A bucket is asked for many at once, a disk for one by one: torch's own threads share the work.
    """
    if not reader.is_remote:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(reader.storage.num_threads(1)) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)


def count_affordable(reader: CacheReader, num_classes: int) -> int:
    """How many samples can be scanned within MOST_SCORES and MOST_LOOKS, 1 or more."""
    height, width = find_size(reader)
    num_views = min(MOST_LOOKS, MOST_SCORES // (height * width * num_classes))
    return max(1, num_views // reader.num_views)


def has_labels(reader: CacheReader) -> bool:
    """Whether the split holds labels; `unlabelled` holds none."""
    return "label" in {array.name for array in reader.layout.arrays}


def find_size(reader: CacheReader) -> tuple[int, int]:
    """Height and width of a view in pixels, padding included."""
    return reader.layout.array("image").item_shape[:2]


def read_label(reader: CacheReader, number: int, view: int) -> np.ndarray:
    """The label of a view, uint8 [H, W]; VOID everywhere if the split holds none."""
    if has_labels(reader):
        return reader.read("label", view, number)
    return np.full(find_size(reader), VOID, np.uint8)


def read_view(reader: CacheReader, number: int, view: int) -> dict:
    """How a view was made, from its commit record."""
    record, row = reader.find_record(view, number)
    return record.views[row]


def find_image(reader: CacheReader, number: int, view: int) -> tuple[slice, slice]:
    """Rows and columns of a padded view that its image fills."""
    top, left, bottom, right = read_view(reader, number, view)["image_box"]
    return slice(top, bottom), slice(left, right)


def read_teacher_classes(reader: CacheReader, number: int, view: int) -> np.ndarray:
    """The teacher's classes of a view, uint8 [H, W], padding included, from its cached scores."""
    logits = torch.from_numpy(reader.decode("logits", view, number))
    return find_classes(logits, find_size(reader))


def find_classes(logits_KHW: Tensor, hw: tuple[int, int]) -> np.ndarray:
    """The teacher's classes, uint8 [H, W], of its scores brought to that size."""
    return resize_to(logits_KHW[None], hw).argmax(1)[0].to(torch.uint8).numpy()


def find_entropy(logits_Khw: Tensor) -> np.ndarray:
    """Entropy of the softmax at each cell, float32 [h, w], 0 to log K nats."""
    log_p_Khw = torch.log_softmax(logits_Khw, 0)
    return -(log_p_Khw.exp() * log_p_Khw).sum(0).numpy()


def find_share(part: int, whole: int) -> float | None:
    """0 to 1; None if the whole is 0."""
    return part / whole if whole else None


def _scan_sample(
    reader: CacheReader, number: int, num_classes: int
) -> list[tuple[ScannedView, np.ndarray]]:
    return [_scan_view(reader, number, view, num_classes) for view in range(reader.num_views)]


def _scan_view(
    reader: CacheReader, number: int, view: int, num_classes: int
) -> tuple[ScannedView, np.ndarray]:
    """Measurements of a view, and its confusion matrix, int64 [K, K]."""
    image, hw = find_image(reader, number, view), find_size(reader)
    label = read_label(reader, number, view)[image]
    logits = torch.from_numpy(reader.decode("logits", view, number))
    answer = find_classes(logits, hw)[image]
    counted = torch.tensor(answer), torch.tensor(label)
    confusion = count_confusion(*counted, num_classes=num_classes).numpy()
    stride = hw[0] // logits.shape[1]
    cells = tuple(slice(part.start // stride, -(-part.stop // stride)) for part in image)
    scanned = ScannedView(
        num_labelled=int(confusion.sum()),
        num_wrong=int(confusion.sum() - confusion.trace()),
        entropy=float(find_entropy(logits)[cells].mean()),
        label_classes=frozenset(np.unique(label).tolist()) - {VOID},
        teacher_classes=frozenset(np.unique(answer).tolist()),
    )
    return scanned, confusion
