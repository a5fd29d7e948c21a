"""Which sample stands in which batch in which view: pure functions of seed and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

SampleView = tuple[int, int]
"""Indices of a view and of a sample."""
Views = Literal["cycle", "random"]


def plan_epoch(
    *,
    num_samples: int,
    num_views: int,
    batch_size: int,
    seed: int,
    epoch: int,
    views: Views = "cycle",
) -> list[list[SampleView]]:
    """The batches of one epoch, a pure function of its arguments: each sample once, in one view.

    A last batch of one sample, which BatchNorm cannot normalise, joins the batch before it.

    Args:
        epoch: from 0.
        views: with "cycle" each sample shows each view once in `num_views` epochs; with "random"
            the view of each sample and epoch is drawn independently.
    """
    order = np.argsort(raw_words(f"order/{seed}/{epoch}", num_samples), kind="stable")
    if views == "random":
        shown = raw_words(f"views/{seed}/{epoch}", num_samples) % np.uint64(num_views)
    else:
        shown = (
            raw_words(f"views/{seed}", num_samples) % np.uint64(num_views) + np.uint64(epoch)
        ) % np.uint64(num_views)
    return split_batches(
        [(int(shown[sample]), int(sample)) for sample in order], batch_size, join_single=True
    )


def plan_mixed_epoch(
    *,
    num_labelled: int,
    num_unlabelled: int,
    unlabelled_rows: int,
    num_views: int,
    batch_size: int,
    seed: int,
    epoch: int,
    views: Views = "cycle",
) -> list[list[SampleView]]:
    """The batches of one epoch that have labelled and unlabelled samples.

    An epoch has as many steps as pass all samples once. Labelled and unlabelled samples each
    follow an order of their own: every sample once, then all again in another order. It goes on
    from epoch to epoch. Every batch has `batch_size` rows.

    Args:
        unlabelled_rows: of each batch, 0 to batch_size; they are spread evenly over the batch, so
            that each of several processes has its part of both kinds.
        epoch: from 0.
        views: with "cycle" each pass over the samples shows the next view of each; with "random"
            the view of each sample and pass is drawn independently.

    Returns: (view, sample); unlabelled samples are numbered from `num_labelled` on.
    """
    steps = count_mixed_steps(num_labelled, num_unlabelled, batch_size=batch_size)
    drawn = {"num_views": num_views, "views": views, "seed": seed}
    labelled = _draw_passes(
        num_labelled, start=epoch * steps * (batch_size - unlabelled_rows), name="labelled", **drawn
    )
    others = _draw_passes(
        num_unlabelled, start=epoch * steps * unlabelled_rows, name="unlabelled", **drawn
    )
    unlabelled = ((view, num_labelled + sample) for view, sample in others)
    ends = [(row * unlabelled_rows) // batch_size for row in range(batch_size + 1)]
    rows = [
        unlabelled if after > before else labelled
        for before, after in zip(ends, ends[1:], strict=False)
    ]
    return [[next(row) for row in rows] for _ in range(steps)]


def count_mixed_steps(num_labelled: int, num_unlabelled: int, *, batch_size: int) -> int:
    """Steps of an epoch with labelled and unlabelled samples: as many as pass all of them once."""
    return -(-(num_labelled + num_unlabelled) // batch_size)


def split_batches(
    places: list[SampleView], batch_size: int, *, join_single: bool = False
) -> list[list[SampleView]]:
    """Cut (view, sample) pairs into batches, in order; the last may be short.

    Args:
        join_single: add a last batch of one sample to the batch before it.
    """
    batches = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    if join_single and len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = batches[-1] + last
    return batches


def find_smallest_batch(num_samples: int, batch_size: int) -> int:
    """Number of samples in the smallest batch of an epoch."""
    return min(
        len(batch) for batch in split_batches([(0, 0)] * num_samples, batch_size, join_single=True)
    )


def raw_words(purpose: str, count: int) -> np.ndarray:
    """Counter-based random words, uint64 [count], the same in every NumPy version.

    Args:
        purpose: names the draw; each purpose is used for one draw only.
    """
    digest = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(count)


def _draw_passes(
    num_samples: int, *, start: int, name: str, seed: int, num_views: int, views: Views
) -> Iterator[SampleView]:
    """Endless (view, sample) from position `start` on: pass after pass over all samples."""
    first = raw_words(f"{name}/views/{seed}", num_samples)
    number, skipped = divmod(start, num_samples)
    while True:
        order = np.argsort(raw_words(f"{name}/order/{seed}/{number}", num_samples), kind="stable")
        if views == "random":
            shown = raw_words(f"{name}/views/{seed}/{number}", num_samples) % np.uint64(num_views)
        else:
            shown = (first % np.uint64(num_views) + np.uint64(number)) % np.uint64(num_views)
        for sample in order[skipped:]:
            yield int(shown[sample]), int(sample)
        number, skipped = number + 1, 0
