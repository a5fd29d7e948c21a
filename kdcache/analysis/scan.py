"""Which samples a gallery shows: those on which the teacher and the labels agree least and most, of those looked at.

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

from kdcache.cache.index import FAR_THREADS
from kdcache.cache.reader import CacheReader
from kdcache.data.sampling import choose_extremes, space_evenly
from kdcache.metrics import VOID, count_confusion
from kdcache.models.inputs import resize_to
from kdcache.progress import Progress

MOST_VIEWS = 4  # shown of a training sample: as many as fit beside each other
# Looked at, in all: scores after the upsampling (400 views of 512x512 with 21 classes, about a minute on one core), and views,
# each of which is a few requests where the cache is in a bucket.
MOST_SCORES, MOST_LOOKS = 2_200_000_000, 1_000

Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Look:
    """What was measured of one view of a sample; its image lies within the padded view.

    num_labelled, num_wrong: pixels that have a label, and those of them to which the teacher gives another class.
    entropy: of the teacher's softmax on the grid of the cached scores, mean over the image, nats, 0 to log K.
    label_classes, teacher_classes: those that occur in the image.
    """

    num_labelled: int
    num_wrong: int
    entropy: float
    label_classes: frozenset[int]
    teacher_classes: frozenset[int]


@dataclass(frozen=True)
class Sample:
    """One sample of the split by its number, and a look a view."""

    number: int
    looks: list[Look]

    @property
    def error(self) -> float | None:
        """Share of the labelled pixels to which the teacher gives another class, over the views; None where none is labelled."""
        return find_share(
            sum(look.num_wrong for look in self.looks),
            sum(look.num_labelled for look in self.looks),
        )

    @property
    def entropy(self) -> float:
        """Mean over the views."""
        return sum(look.entropy for look in self.looks) / len(self.looks)

    @property
    def classes(self) -> list[int]:
        """Those that occur in a label or in an answer, rising."""
        return sorted(
            frozenset().union(*(look.label_classes | look.teacher_classes for look in self.looks))
        )


@dataclass(frozen=True)
class Scan:
    """All samples looked at, in the order of the split, and how often each label (row) was called each class, int64 [K, K]."""

    samples: list[Sample]
    confusion_KK: np.ndarray

    def choose(self, count: int) -> list[Sample]:
        """Half of those with the largest error and half of those with the smallest, in falling order.

        Samples without any labelled pixel count as the worst: something is wrong with them.
        """
        by_number = {sample.number: sample for sample in self.samples}
        errors = {
            number: 2.0 if sample.error is None else sample.error
            for number, sample in by_number.items()
        }
        return [by_number[number] for number in choose_extremes(errors, count)]


def scan_split(reader: CacheReader, *, num_classes: int, at_least: int, progress: Progress) -> Scan:
    """Look at evenly spaced samples of a split in its views in use.

    Args:
        at_least: how many samples are looked at where the split has them, however large.

    Raises: CacheCorruptError naming the sample.
    """
    chosen = space_evenly(
        reader.layout.num_samples, max(at_least, count_affordable(reader, num_classes))
    )
    samples, confusion = [], np.zeros((num_classes, num_classes), np.int64)
    with progress.start("looking at the cache", total=len(chosen), unit="samples") as bar:
        all_looked = work_through(
            reader, chosen, lambda number: _look_at(reader, number, num_classes)
        )
        for number, looked in zip(chosen, all_looked, strict=True):
            samples.append(Sample(number, [look for look, _ in looked]))
            confusion += sum(counts for _, counts in looked)
            bar.advance(1)
    return Scan(samples, confusion)


def work_through(
    reader: CacheReader, items: Sequence[Item], work: Callable[[Item], Result]
) -> Iterator[Result]:
    """In order; of a bucket many at once, of a disk one by one: torch's threads are there for that."""
    if not reader.is_far:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(FAR_THREADS) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)


def count_affordable(reader: CacheReader, num_classes: int) -> int:
    """How many samples can be looked at within MOST_SCORES and MOST_LOOKS, 1 or more."""
    height, width = reader.layout.array("label").item_shape
    looks = min(MOST_LOOKS, MOST_SCORES // (height * width * num_classes))
    return max(1, looks // reader.num_views)


def read_view(reader: CacheReader, number: int, view: int) -> dict:
    """What the commit record says about how a view was made."""
    group, row = divmod(number, reader.layout.shard_samples)
    return reader.record(view, group).views[row]


def find_classes(logits_KHW: Tensor, hw: tuple[int, int]) -> np.ndarray:
    """The teacher's classes, uint8 [H, W], of its scores brought to that size."""
    return resize_to(logits_KHW[None], hw).argmax(1)[0].to(torch.uint8).numpy()


def find_entropy(logits_Khw: Tensor) -> np.ndarray:
    """Entropy of the softmax at each cell, float32 [h, w], nats, 0 to log K."""
    log_p_Khw = torch.log_softmax(logits_Khw, 0)
    return -(log_p_Khw.exp() * log_p_Khw).sum(0).numpy()


def find_share(part: int, whole: int) -> float | None:
    """0 to 1; None of nothing."""
    return part / whole if whole else None


def _look_at(reader: CacheReader, number: int, num_classes: int) -> list[tuple[Look, np.ndarray]]:
    return [_look_at_view(reader, number, view, num_classes) for view in range(reader.num_views)]


def _look_at_view(
    reader: CacheReader, number: int, view: int, num_classes: int
) -> tuple[Look, np.ndarray]:
    """A look, and its confusion."""
    top, left, bottom, right = read_view(reader, number, view)["image_box"]
    label = reader.read("label", view, number)[top:bottom, left:right]
    logits = torch.from_numpy(reader.decode("logits", view, number))
    answer = find_classes(logits, reader.layout.array("label").item_shape)[top:bottom, left:right]
    confusion = count_confusion(
        torch.tensor(answer), torch.tensor(label), num_classes=num_classes
    ).numpy()
    stride = reader.layout.array("label").item_shape[0] // logits.shape[1]
    cells = slice(top // stride, -(-bottom // stride)), slice(left // stride, -(-right // stride))
    look = Look(
        num_labelled=int(confusion.sum()),
        num_wrong=int(confusion.sum() - confusion.trace()),
        entropy=float(find_entropy(logits)[cells].mean()),
        label_classes=frozenset(np.unique(label).tolist()) - {VOID},
        teacher_classes=frozenset(np.unique(answer).tolist()),
    )
    return look, confusion
