"""The limits and the clock: memory copies into batch slots by as many threads as BatchReader."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kdcache.cache.layout import SplitLayout

Slots = dict[str, np.ndarray]
Fill = Callable[
    [int, Slots, int], None
]  # (row, slots, sample): make the row of every slot that sample


def make_slots(layout: SplitLayout, rows: int) -> list[Slots]:
    """Two sets of slots, filled in turn, their pages touched."""
    return [
        {spec.name: np.ones((rows, *spec.item_shape), spec.dtype) for spec in layout.arrays}
        for _ in range(2)
    ]


def fill_batches(
    slots: list[Slots], batches: list[list[tuple[int, int]]], fill: Fill, *, num_threads: int
) -> None:
    """Fill the slots with batch after batch; thread t does every `num_threads`-th row."""

    def fill_rows(first: int, batch: list[tuple[int, int]], into: Slots) -> None:
        for row in range(first, len(batch), num_threads):
            fill(row, into, batch[row][1])

    with ThreadPoolExecutor(num_threads) as pool:
        for number, batch in enumerate(batches):
            jobs = [
                pool.submit(fill_rows, first, batch, slots[number % 2])
                for first in range(num_threads)
            ]
            for job in jobs:
                job.result()


def copy_from(source: dict[str, np.ndarray]) -> Fill:
    """Copy a sample out of arrays [sample, ...], in memory or mapped."""

    def fill(row: int, slots: Slots, sample: int) -> None:
        for name, slot in slots.items():
            np.copyto(slot[row], source[name][sample])

    return fill


def shuffle_passes(num_samples: int, *, passes: int, seed: int) -> list[int]:
    """Each sample once in random order, `passes` times."""
    rng = np.random.default_rng(seed)
    return [int(sample) for _ in range(passes) for sample in rng.permutation(num_samples)]


def time_s(run: Callable[[], object]) -> float:
    """Seconds of one call; what the last one left is collected before."""
    gc.collect()
    began_s = time.perf_counter()
    run()
    return time.perf_counter() - began_s


def rate_gb_s(run: Callable[[], object], *, size_bytes: int) -> float:
    """Gigabytes a second of one call."""
    return size_bytes / max(time_s(run), math.ulp(1.0)) / 1e9
