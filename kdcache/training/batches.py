"""Batches for training: read ahead into buffers, and cropped and flipped on the training device.

The flipped or cropped output of the teacher only approximates its output for the flipped or cropped
image (BENCHMARKS.md has the errors). Crops start at multiples of 16 pixels, the coarsest stride, so
that every grid is cut between cells. Arrays that the loss upsamples bilinearly (logits, and
features if the student's grid is finer) differ within half a cell of a crop's border: interpolation
in the whole view had a neighbour there, in the crop it repeats the last cell.

Letters: B batch, C channels, H, W height and width.
"""

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
from kdcache.config import STRIDE, Config
from kdcache.machine.devices import mark_end, use_device
from kdcache.machine.process import count_own_cores
from kdcache.training.order import SampleView, raw_words
from kdcache.training.samples import JoinedReader, Kind, ResidentSamples

# image is BHWC and label BHW; teacher outputs are BCHW. The scales of int8 arrays are BC: no rows
ROWS_AXIS = {"image": 1, "label": 1}


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
        own = {"initializer": use_device, "initargs": (self.device,)}
        with (
            ThreadPoolExecutor(1, **own) as ahead,
            ThreadPoolExecutor(self.num_threads, **own) as pool,
        ):
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
        mark_end(self.stream).synchronize()  # in a thread of its own: the slots are free again
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


@dataclass(frozen=True)
class Move:
    """Crop and flip of one sample.

    top, left: corner of the crop in pixels, multiples of 16. flip: whether it is mirrored.
    """

    top: int
    left: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Draws a crop and a flip for each sample in each epoch, and applies them.

    Args:
        seed: of all draws. flip: probability of a flip, 0 to 1.
        view_hw: height and width of the cached views in pixels, multiples of 16.
        crop_hw: height and width of the crops in pixels, multiples of 16, at most view_hw.
    """

    seed: int
    flip: float
    view_hw: tuple[int, int]
    crop_hw: tuple[int, int]

    def draw(self, sample_id: str, *, epoch: int) -> Move:
        """The crop and flip of a sample in an epoch.

        A pure function of the arguments and the fields: resumed runs, baselines, other batch sizes
        and other orders draw the same.
        """
        *words, flip = (
            int(word) for word in raw_words(f"moves/{self.seed}/{epoch}/{sample_id}", 3)
        )
        places = [
            (view - crop) // STRIDE + 1
            for view, crop in zip(self.view_hw, self.crop_hw, strict=True)
        ]
        top, left = (STRIDE * (word % count) for word, count in zip(words, places, strict=True))
        return Move(top, left, (flip >> 11) * 2.0**-53 < self.flip)

    def apply(self, batch: Batch, *, epoch: int) -> Batch:
        """The batch with each sample cropped and flipped.

        Arrays with rows and columns are new tensors [B, ...] of the crop's size; others are shared
        with `batch`.
        """
        moves = [self.draw(sample_id, epoch=epoch) for sample_id in batch.sample_ids]
        return Batch(
            {name: self._move(name, values, moves) for name, values in batch.arrays.items()},
            batch.sample_ids,
        )

    def _move(self, name: str, values: Tensor, moves: list[Move]) -> Tensor:
        axis = ROWS_AXIS.get(name, 2)
        if values.dim() <= axis:
            return values
        before, grid, after = (
            values.shape[:axis],
            values.shape[axis : axis + 2],
            values.shape[axis + 2 :],
        )
        strides = [view // cells for view, cells in zip(self.view_hw, grid, strict=True)]
        height, width = (crop // stride for crop, stride in zip(self.crop_hw, strides, strict=True))
        moved = values.new_empty((*before, height, width, *after))
        for sample, target, move in zip(values, moved, moves, strict=True):
            rows = sample.narrow(axis - 1, move.top // strides[0], height)
            part = rows.narrow(axis, move.left // strides[1], width)
            target.copy_(part.flip(axis) if move.flip else part)
        return moved


def make_augmentation(config: Config) -> Augmentation | None:
    """The augmentation that `train.flip` and `train.crop` ask for; None if they ask for none."""
    view_hw, flip = config.dataset.size_hw, config.train.flip
    crop_hw = config.train.crop_hw or view_hw
    if not flip and crop_hw == view_hw:
        return None
    return Augmentation(seed=config.train.seed, flip=flip, view_hw=view_hw, crop_hw=crop_hw)
