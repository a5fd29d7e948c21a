"""The samples that training reads: the opened splits of a cache, labelled and unlabelled samples as
one split, and where they stay after they are first read: in GPU memory, in mapped RAM, or on disk.

Processes that train together count as one: they share mapped pages, and each has a GPU of its own,
which may come to hold every sample over the epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.layout import UNLABELLED, ArraySpec
from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader, Check
from kdcache.cache.shards import MappedFiles
from kdcache.cache.stage import Stage, open_stage
from kdcache.config import VOID, Config
from kdcache.errors import SettingsError
from kdcache.machine.process import allow_mapped_files, find_free_gpu, find_free_ram
from kdcache.storage import Storage

Kind = Literal["disk", "ram", "gpu"]
GPU_SHARE = 0.5  # of free GPU memory: the other half is for the student
RAM_SHARE = 0.8
LABELLED = "labelled"
"""An array of our own, uint8 [1] for each sample: 1 if it has a label, 0 if not."""


class JoinedReader:
    """Samples of "train", then those of "unlabelled", whose label is VOID everywhere.

    Offers what a `BatchReader` asks of a `CacheReader`, and the array LABELLED.

    Args:
        labelled, unlabelled: both splits of one cache; the views that both have are used.
    """

    def __init__(self, labelled: CacheReader, unlabelled: CacheReader) -> None:
        self.parts = labelled, unlabelled
        self.num_labelled = labelled.layout.num_samples
        self.num_unlabelled = unlabelled.layout.num_samples
        arrays = (*labelled.layout.arrays, ArraySpec(LABELLED, (1,), "uint8"))
        num_samples = self.num_labelled + self.num_unlabelled
        self.layout = replace(labelled.layout, num_samples=num_samples, arrays=arrays)
        self.sample_ids = [*labelled.sample_ids, *unlabelled.sample_ids]
        self.storage = labelled.storage
        self.num_views = min(part.num_views for part in self.parts)
        self.groups_per_view = sum(part.groups_per_view for part in self.parts)
        self.encodings, self.bases = labelled.encodings, labelled.bases
        self.is_remote, self.is_single_file = labelled.is_remote, labelled.is_single_file

    def stored_bytes(self, array: str) -> int:
        """Bytes of an array's shard files in all views, estimated from view 0."""
        return sum(
            part.stored_bytes(array)
            for part in self.parts
            if array in {spec.name for spec in part.layout.arrays}
        )

    def read_into(
        self,
        slot: np.ndarray,
        *,
        array: str,
        view: int,
        sample: int,
        maps: MappedFiles | None = None,
    ) -> None:
        """Like `CacheReader.read_into`; samples from `num_labelled` on are unlabelled."""
        is_labelled = sample < self.num_labelled
        if array == LABELLED:
            slot[:] = is_labelled
        elif array == "label" and not is_labelled:
            slot[:] = VOID
        else:
            part = self.parts[0 if is_labelled else 1]
            own = sample if is_labelled else sample - self.num_labelled
            part.read_into(slot, array=array, view=view, sample=own, maps=maps)


@dataclass(frozen=True)
class Data:
    """An opened cache: its manifest and a reader of each split that is used."""

    manifest: Manifest
    train: CacheReader
    val: CacheReader
    unlabelled: CacheReader | None = None
    """Of training samples without a label, if they are used."""

    @property
    def samples(self) -> CacheReader | JoinedReader:
        """A reader of all training samples."""
        return self.train if self.unlabelled is None else JoinedReader(self.train, self.unlabelled)


def open_data(
    root: Storage,
    manifest: Manifest,
    *,
    num_views: int,
    unlabelled: bool = False,
    check: Check = "first",
    stage: Stage | None = None,
) -> Data:
    """Open the splits; `num_views` views of training samples must be complete.

    Args:
        unlabelled: whether samples without a label are used.

    Raises: CacheError.
    """
    read = partial(CacheReader, root, manifest, check=check, stage=stage)
    others = read(UNLABELLED, num_views=num_views) if unlabelled else None
    return Data(manifest, read("train", num_views=num_views), read("val"), others)


def open_configured(config: Config, root: Storage, manifest: Manifest) -> Data:
    """Open the splits as the settings say. Raises CacheError, SettingsError."""
    return open_data(
        root,
        manifest,
        num_views=config.augment.views,
        unlabelled=config.train.unlabelled_share is not None,
        check=config.cache.check,
        stage=open_stage(config.cache),
    )


def find_labelled(arrays: Mapping[str, Tensor]) -> Tensor | None:
    """Which rows of a batch have a label, bool [N]; None if all have one."""
    return arrays[LABELLED][:, 0].bool() if LABELLED in arrays else None


@dataclass(frozen=True)
class Need:
    """How much a run reads in every epoch.

    size_bytes: of decoded samples. stored_bytes: of shard files, fewer with a codec.
    num_files: shard files. far: read from another machine, without files to map.
    """

    size_bytes: int
    stored_bytes: int
    num_files: int
    far: bool = False


@dataclass(frozen=True)
class Residency:
    """The chosen residency, and the reason as part of a sentence."""

    kind: Kind
    reason: str

    def describe(self) -> str:
        """A line for the terminal: the residency and its reason."""
        where = {
            "disk": "read from where they are each time",
            "ram": "mapped into memory",
            "gpu": "kept on the GPU",
        }
        return f"residency: {self.kind}, samples are {where[self.kind]} ({self.reason})"


def find_need(reader: CacheReader | JoinedReader, arrays: list[str]) -> Need:
    """Bytes and files of these arrays in all views of a split."""
    layout, whole = reader.layout, reader.is_single_file
    item_bytes = sum(layout.array(name).item_bytes for name in arrays)
    return Need(
        size_bytes=item_bytes * layout.num_samples * reader.num_views,
        stored_bytes=sum(reader.stored_bytes(name) for name in arrays),
        num_files=1 if whole else len(arrays) * reader.groups_per_view * reader.num_views,
        far=reader.is_remote,
    )


def choose_residency(setting: str, needs: list[Need], *, device: torch.device) -> Residency:
    """The residency for `train.residency`; auto takes the fastest memory that holds everything.

    Args:
        setting: auto, disk, ram or gpu. needs: of all splits that are read. device: the student's.

    Raises: SettingsError for gpu without a GPU, or with too little memory on it.
    """
    size_bytes, stored_bytes, num_files = (
        sum(getattr(need, name) for need in needs)
        for name in ("size_bytes", "stored_bytes", "num_files")
    )
    free_gpu = int(find_free_gpu(device) * GPU_SHARE) if device.type == "cuda" else 0
    free_ram = int(find_free_ram() * RAM_SHARE)
    size, stored = f"{_gb(size_bytes)} of samples", f"{_gb(stored_bytes)} of shard files"
    if setting == "gpu" and size_bytes > free_gpu:
        found = (
            f"{size} do not fit into {_gb(free_gpu)} of GPU memory"
            if free_gpu
            else f"the device is {device}"
        )
        raise SettingsError(
            f"settings: train.residency is 'gpu' and {found}; set train.residency auto"
        )
    if setting == "gpu" or (setting == "auto" and size_bytes <= free_gpu):
        return Residency("gpu", f"{size} fit into {_gb(free_gpu)}, half of the free GPU memory")
    if setting != "disk" and any(need.far for need in needs):
        return Residency("disk", "cache.stage_dir would keep local copies")
    fits = stored_bytes <= free_ram
    if setting == "ram" or (setting == "auto" and fits):
        if not allow_mapped_files(num_files):
            return Residency(
                "disk",
                f"{num_files} shard files are more than this process may keep mapped (ulimit -n)",
            )
        verb = "fit" if fits else "do not fit"
        return Residency("ram", f"{stored} {verb} into {_gb(free_ram)}, most of the free memory")
    return Residency(
        "disk",
        "as set" if setting == "disk" else f"{stored} are more than {_gb(free_ram)} of free memory",
    )


def is_crowded(needs: list[Need], device: torch.device) -> bool:
    """Whether others have taken the room of a student while the samples of `needs` took theirs.

    As much as they take was free beside them. Two processes that look at the same moment would each
    take half of a GPU, and leave nothing for their students.
    """
    return find_free_gpu(device) < sum(need.size_bytes for need in needs) / 2


class ResidentSamples:
    """Samples kept on a device after their first reading.

    Args:
        specs: of the arrays. shape: views and samples of the split. device: where they stay.
    """

    def __init__(
        self, specs: list[ArraySpec], *, shape: tuple[int, int], device: torch.device
    ) -> None:
        self.num_samples, self.device = shape[1], device
        self.arrays = {
            spec.name: torch.empty(
                (shape[0] * shape[1], *spec.item_shape),
                dtype=getattr(torch, spec.dtype),
                device=device,
            )
            for spec in specs
        }
        self.there: set[int] = set()

    def find_missing(self, places: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The (view, sample) pairs that are not resident yet."""
        return [place for place in places if self._row(place) not in self.there]

    def put(self, places: list[tuple[int, int]], arrays: dict[str, Tensor]) -> None:
        """Keep arrays [len(places), ...] that are on the device, on the current stream."""
        rows = self._rows(places)
        for name, values in arrays.items():
            self.arrays[name].index_copy_(0, rows, values)
        self.there.update(self._row(place) for place in places)

    def take(self, places: list[tuple[int, int]]) -> dict[str, Tensor]:
        """A batch [len(places), ...] of resident samples, newly allocated."""
        rows = self._rows(places)
        return {name: values.index_select(0, rows) for name, values in self.arrays.items()}

    def _row(self, place: tuple[int, int]) -> int:
        return place[0] * self.num_samples + place[1]

    def _rows(self, places: list[tuple[int, int]]) -> Tensor:
        rows = torch.tensor([self._row(place) for place in places])
        pinned = rows.pin_memory() if self.device.type == "cuda" else rows  # else the copy waits
        return pinned.to(self.device, non_blocking=True)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
