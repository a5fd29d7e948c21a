"""Which samples make which batch, and batches read ahead into slots. Letters: B batch, the rest as in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.reader import CacheReader

READ_THREADS = 2
Place = tuple[int, int]  # view, sample


@dataclass(frozen=True)
class Batch:
    """Tensors [B, ...] of each array on the training device, and the ids of the samples.

    On the CPU the tensors are slots: valid until the next batch is asked for.
    """

    arrays: dict[str, Tensor]
    sample_ids: list[str]


def plan_epoch(*, num_samples: int, num_views: int, batch_size: int, seed: int, epoch: int) -> list[list[Place]]:
    """The batches of one epoch, a pure function of its arguments: every sample once, in one of its views.

    Views rotate: over `num_views` epochs each sample shows each view once. A last batch of one sample, which BatchNorm
    could not normalise, joins the batch before it.
    """
    order = np.argsort(_raw_words(f"order/{seed}/{epoch}", num_samples), kind="stable")
    offsets = _raw_words(f"views/{seed}", num_samples) % np.uint64(num_views)
    places = [(int((int(offsets[sample]) + epoch) % num_views), int(sample)) for sample in order]
    return split_batches(places, batch_size, join_single=True)


def split_batches(places: list[Place], batch_size: int, *, join_single: bool = False) -> list[list[Place]]:
    """Cut places into batches, in order; the last may be short."""
    batches = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    if join_single and len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = batches[-1] + last
    return batches


class BatchReader:
    """Reads batches of some arrays one step ahead of their use.

    Args:
        reader: one split of a cache.
        arrays: names of the arrays to read; others are not touched.
        batch_size: largest batch, one more is kept for a joined single.
        device: where batches are to be.
    """

    def __init__(self, reader: CacheReader, *, arrays: list[str], batch_size: int, device: torch.device) -> None:
        self.reader, self.device = reader, device
        self.ids = reader.sample_ids
        self.slots = [self._make_slots(arrays, min(batch_size + 1, reader.layout.num_samples)) for _ in range(2)]
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def read(self, batches: list[list[Place]]) -> Iterator[Batch]:
        """Batches in the order of `batches`. Raises CacheCorruptError where stored bytes are not those committed."""
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(READ_THREADS) as pool:
            coming: Future | None = None
            for step in range(len(batches)):
                coming = coming or ahead.submit(self._fill, pool, batches[step], self.slots[step % 2])
                batch = coming.result()
                more = step + 1 < len(batches)
                coming = ahead.submit(self._fill, pool, batches[step + 1], self.slots[(step + 1) % 2]) if more else None
                self._hand_over(batch)
                yield batch

    def _fill(self, pool: ThreadPoolExecutor, places: list[Place], slots: dict[str, Tensor]) -> Batch:
        def read_one(job: tuple[int, Place, str]) -> None:
            row, (view, sample), array = job
            self.reader.read_into(slots[array].numpy()[row], array=array, view=view, sample=sample)

        jobs = [(row, place, array) for row, place in enumerate(places) for array in slots]
        for _ in pool.map(read_one, jobs):
            pass
        tensors = {array: slot[: len(places)] for array, slot in slots.items()}
        return Batch(self._to_device(tensors), [self.ids[sample] for _, sample in places])

    def _to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """On a GPU: copy on a stream of its own and wait for it here, so that the slot is free again."""
        if self.stream is None:
            return tensors
        with torch.cuda.stream(self.stream):
            moved = {array: tensor.to(self.device, non_blocking=True) for array, tensor in tensors.items()}
        self.stream.synchronize()
        return moved

    def _hand_over(self, batch: Batch) -> None:
        """On a GPU: tell the allocator that the training stream uses what the copying stream made."""
        if self.stream is not None:
            for tensor in batch.arrays.values():
                tensor.record_stream(torch.cuda.current_stream(self.device))

    def _make_slots(self, arrays: list[str], rows: int) -> dict[str, Tensor]:
        specs = [self.reader.layout.array(name) for name in arrays]
        pin = self.device.type == "cuda"
        return {
            spec.name: torch.empty((rows, *spec.item_shape), dtype=getattr(torch, spec.dtype), pin_memory=pin)
            for spec in specs
        }


def _raw_words(purpose: str, count: int) -> np.ndarray:
    """Counter-based random words, the same in every NumPy version."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(count)
