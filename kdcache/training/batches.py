"""Read batches ahead into buffers. B: batch size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.cache.layout import ArraySpec
from kdcache.cache.reader import CacheReader
from kdcache.cache.shards import MappedFiles
from kdcache.machine.process import count_own_cores
from kdcache.training.order import SampleView
from kdcache.training.samples import JoinedReader, Kind, ResidentSamples


@dataclass(frozen=True)
class Batch:
    """Tensors [B, ...] of each array on the training device, and the B sample ids.

    On the CPU the tensors are reused buffers, valid until the next batch is requested.
    """

    arrays: dict[str, Tensor]
    sample_ids: list[str]


def count_read_threads() -> int:
    """Reading threads of this process, 2 to 8: two saturate the memory of a small machine."""
    return max(2, min(8, count_own_cores() // 2))


class BatchReader:
    """Reads batches of some arrays one step ahead of their use.

    Args:
        reader: one split of a cache, or the labelled and the unlabelled one joined.
        arrays: names of the arrays to read; others are not touched.
        batch_size: samples of the largest batch; buffers hold one more, for a joined single.
        device: of the batches.
        residency: "disk" reads the files each time; "ram" maps them, and their pages stay in the
            page cache; "gpu" keeps samples in GPU memory.
    """

    def __init__(
        self,
        reader: CacheReader | JoinedReader,
        *,
        arrays: list[str],
        batch_size: int,
        device: torch.device,
        residency: Kind = "disk",
    ) -> None:
        self.reader, self.device = reader, device
        self.ids = reader.sample_ids
        self.num_threads = reader.storage.num_threads(count_read_threads())
        self.wait_s = 0.0
        """Total seconds that the consumer waited for batches."""
        specs = [reader.layout.array(name) for name in arrays]
        rows = _count_rows(reader, batch_size)
        self.slots = [_make_slots(specs, rows, pin=device.type == "cuda") for _ in range(2)]
        self.largest_first = [
            spec.name for spec in sorted(specs, key=lambda spec: -spec.item_bytes)
        ]
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.resident = None
        self.maps = MappedFiles() if residency == "ram" else None
        if residency == "gpu":
            self.resident = ResidentSamples(
                specs, shape=(reader.num_views, reader.layout.num_samples), device=device
            )
        if self.stream is not None:
            self.stream.wait_stream(
                torch.cuda.current_stream(device)
            )  # which made the resident arrays

    def read(self, batches: list[list[SampleView]]) -> Iterator[Batch]:
        """Yield the batches in the given order.

        Args:
            batches: (view, sample) of each sample of each batch.

        Raises: CacheCorruptError if stored bytes differ from the committed ones.
        """
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(self.num_threads) as pool:
            coming: Future | None = None
            for step, places in enumerate(batches):
                coming = coming or ahead.submit(self._bring, pool, places, self.slots[step % 2])
                began_s = time.monotonic()
                arrays = coming.result()
                self.wait_s += time.monotonic() - began_s
                more = step + 1 < len(batches)
                coming = (
                    ahead.submit(self._bring, pool, batches[step + 1], self.slots[(step + 1) % 2])
                    if more
                    else None
                )
                yield Batch(
                    self._hand_over(places, arrays), [self.ids[sample] for _, sample in places]
                )

    def _bring(
        self, pool: ThreadPoolExecutor, places: list[SampleView], slots: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Read a batch, or the part of it that is not resident yet, and copy it to the device."""
        absent = self.resident.find_missing(places) if self.resident else places
        if not absent:
            return {}

        jobs = iter(
            [
                (array, row, place)
                for array in self.largest_first
                for row, place in enumerate(absent)
            ]
        )

        def read_some() -> None:
            for array, row, (
                view,
                sample,
            ) in jobs:  # each thread takes the next; taking one is a single step
                slot = slots[array].numpy()[row]
                self.reader.read_into(slot, array=array, view=view, sample=sample, maps=self.maps)

        for done in [pool.submit(read_some) for _ in range(self.num_threads)]:
            done.result()
        tensors = {array: slot[: len(absent)] for array, slot in slots.items()}
        if self.stream is None:
            return self._keep(absent, tensors)
        with torch.cuda.stream(self.stream):
            arrays = {
                array: tensor.to(self.device, non_blocking=True)
                for array, tensor in tensors.items()
            }
            arrays = self._keep(absent, arrays)
        self.stream.synchronize()  # here, in a thread of its own, so that the slots are free again
        return arrays

    def _keep(self, places: list[SampleView], arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.resident:
            self.resident.put(places, arrays)
            return {}
        return arrays

    def _hand_over(self, places: list[SampleView], arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch, ready for the current stream.

        On a GPU the allocator must know that this stream uses tensors made on the copying stream.
        """
        if self.resident:
            return self.resident.take(places)
        if self.stream is not None:
            for tensor in arrays.values():
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return arrays


def _count_rows(reader: CacheReader | JoinedReader, batch_size: int) -> int:
    """Samples of the largest batch; one of a joined reader is full, however few samples it has."""
    if isinstance(reader, JoinedReader):
        return batch_size
    return min(batch_size + 1, reader.layout.num_samples * reader.num_views)


def _make_slots(specs: list[ArraySpec], rows: int, *, pin: bool) -> dict[str, Tensor]:
    return {
        spec.name: torch.empty(
            (rows, *spec.item_shape), dtype=getattr(torch, spec.dtype), pin_memory=pin
        )
        for spec in specs
    }
