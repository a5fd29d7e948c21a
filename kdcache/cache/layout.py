"""The grid of the format: array names, shapes, dtypes, shard groups and keys of files.

docs/format.md describes it in words.

Letters: V views, N samples, S samples per shard.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kdcache.cache.encodings import Encoding, list_shapes

FORMAT_VERSION = 5  # the newest: of caches that grew by samples
UNLABELLED_VERSION = 4  # of caches with a split of unlabelled images, that never grew
CODED_VERSION = 3  # of caches with codecs or encodings, and without a split of unlabelled images
RAW_VERSION = 2  # of caches of raw uint8 and float16, which older versions of kdcache read as well
DTYPES = ("uint8", "float16", "int8", "float32")
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # little-endian uint64 offset and size
MOST_GROUPS = 1_000_000  # of a split: some commands list them all
SPLITS = ("train", "val")  # that every cache has
UNLABELLED = "unlabelled"  # the third one, which a cache may have: as train, without labels
MOST_ITEM_BYTES = 2**31 - 1  # of one sample of one array: the most that blosc can code
COMMITS = "commits"  # the folder of commit records, beside the splits
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Codec:
    """A Zarr v3 bytes-to-bytes codec, as zarr.json names it.

    settings: its configuration as (name, value) pairs; None if it has none.
    """

    name: str
    settings: tuple[tuple[str, str | int | float | None], ...] | None = None

    def to_dict(self) -> dict:
        """The codec as an object of zarr.json."""
        return (
            {"name": self.name}
            if self.settings is None
            else {"name": self.name, "configuration": dict(self.settings)}
        )

    @classmethod
    def from_dict(cls, stored: dict) -> Codec:
        """The inverse of `to_dict`.

        Raises KeyError, TypeError, AttributeError or ValueError if `stored` is not such an object.
        """
        settings = tuple(stored["configuration"].items()) if "configuration" in stored else None
        plain = all(isinstance(value, str | int | float | None) for _, value in settings or ())
        if (
            type(stored["name"]) is not str
            or not plain
            or not set(stored) <= {"name", "configuration"}
        ):
            raise ValueError(f"codec is {json.dumps(stored)[:80]}")
        return cls(stored["name"], settings)


Codecs = Mapping[str, Codec | None]  # dtype -> codec of its arrays; None: raw


@dataclass(frozen=True)
class ArraySpec:
    """One array of a split: `[view, sample, *item_shape]`, one chunk per (view, sample)."""

    name: str
    item_shape: tuple[int, ...]
    dtype: str  # one of DTYPES
    codec: Codec | None = None  # None: a chunk is the sample's bytes

    @property
    def item_bytes(self) -> int:
        """Bytes of one sample, decoded, without its checksum."""
        return math.prod(self.item_shape) * np.dtype(self.dtype).itemsize

    @property
    def most_chunk_bytes(self) -> int:
        """The most bytes a chunk can have, without its checksum; exact without a codec.

        No codec makes noise much longer than it was.
        """
        return (
            self.item_bytes
            if self.codec is None
            else self.item_bytes + self.item_bytes // 100 + 1024
        )


@dataclass(frozen=True, order=True)
class Group:
    """A shard group: samples `start` to `stop` (exclusive) of one view, over all arrays of a split.

    The unit of work, commit, retry, verification and repair.
    """

    split: str
    view: int
    index: int
    start: int
    stop: int

    @property
    def role(self) -> str:
        """The split that its samples belong to; of a part that was added, train of train_2."""
        return find_role(self.split)

    @property
    def name(self) -> str:
        """Stem of the commit record: train-v0003-g00012."""
        return f"{self.split}-v{self.view:04d}-g{self.index:05d}"


@dataclass(frozen=True)
class SplitLayout:
    """The grid of one split, or of a part that was added to it: counts of views and samples,
    samples in a shard, and arrays.
    """

    split: str
    num_views: int
    num_samples: int
    shard_samples: int
    arrays: tuple[ArraySpec, ...]

    @property
    def role(self) -> str:
        """The split that it belongs to; of a part that was added, train of train_2."""
        return find_role(self.split)

    @property
    def num_groups(self) -> int:
        """Shard groups of all views."""
        return self.num_views * self.groups_per_view

    @property
    def groups_per_view(self) -> int:
        """Shard groups of one view; the last may be short."""
        return -(-self.num_samples // self.shard_samples)

    @property
    def item_bytes(self) -> int:
        """Bytes of one sample over all arrays, decoded."""
        return sum(array.item_bytes for array in self.arrays)

    def shard_bytes(self, array: ArraySpec, group: Group) -> int:
        """The most bytes an array's shard file of a group can have; exact without a codec.

        Checksums and index are included.
        """
        return (group.stop - group.start) * (array.most_chunk_bytes + CRC_BYTES) + index_bytes(
            self.shard_samples
        )

    def group_bytes(self, group: Group) -> int:
        """The most bytes all shard files of a group can have; exact without a codec."""
        return sum(self.shard_bytes(array, group) for array in self.arrays)

    def sum_bytes(self, groups: Iterable[Group]) -> int:
        """The sum of `group_bytes` over groups, computed once for each number of samples."""
        counts = Counter(group.stop - group.start for group in groups)
        return sum(
            count * self.group_bytes(Group(self.split, 0, 0, 0, size))
            for size, count in counts.items()
        )

    def group(self, view: int, index: int) -> Group:
        """Shard group `index` of `view`."""
        start = index * self.shard_samples
        return Group(
            self.split, view, index, start, min(start + self.shard_samples, self.num_samples)
        )

    def groups(self) -> Iterator[Group]:
        """All shard groups, view by view."""
        return (
            self.group(view, index)
            for view in range(self.num_views)
            for index in range(self.groups_per_view)
        )

    def array(self, name: str) -> ArraySpec:
        """The array of that name. Raises KeyError if the split has none."""
        return {array.name: array for array in self.arrays}[name]


def find_role(part: str) -> str:
    """The split of a part: train of train, and of train_2, which was added to it."""
    return part.partition("_")[0]


def index_bytes(shard_samples: int) -> int:
    """Bytes of the index at the end of a shard file, its checksum included."""
    return shard_samples * INDEX_ENTRY_BYTES + CRC_BYTES


def shard_key(array: ArraySpec, group: Group) -> str:
    """Key of the shard file of one array and group, by Zarr v3's default chunk keys."""
    origin = "/".join("0" for _ in array.item_shape)
    return f"{group.split}/{array.name}/c/{group.view}/{group.index}/{origin}"


def commit_key(group: Group) -> str:
    """Key of a group's commit record, which exists once all files of the group are on disk."""
    return f"{COMMITS}/{record_name(group)}"


def record_name(group: Group) -> str:
    """The file name of a group's commit record."""
    return f"{group.name}.json"


def metadata_key(*parts: str) -> str:
    """Key of the zarr.json of the cache (no parts), a split, or an array of a split."""
    return "/".join([*parts, "zarr.json"])


def list_specs(
    *,
    size_hw: tuple[int, int],
    targets: Mapping[str, tuple[int, int]],
    encodings: Mapping[str, Encoding],
    codecs: Codecs,
) -> tuple[ArraySpec, ...]:
    """The arrays of a split with labels: image, label, and those that hold the targets.

    Args:
        size_hw: height and width of the image, pixels.
        targets: "logits" or level -> (channels, stride in pixels).
        encodings: of targets; a target that is not named is float16.
        codecs: of each dtype.
    """
    height, width = size_hw
    arrays = [("image", (height, width, 3), "uint8"), ("label", (height, width), "uint8")]
    for name, (channels, stride) in targets.items():
        shape = (channels, height // stride, width // stride)
        arrays += list_shapes(name, shape, encodings.get(name, Encoding()))
    return tuple(ArraySpec(name, shape, dtype, codecs[dtype]) for name, shape, dtype in arrays)


def drop_label(arrays: Iterable[ArraySpec]) -> tuple[ArraySpec, ...]:
    """The arrays of the unlabelled split, from those of train."""
    return tuple(array for array in arrays if array.name != "label")


def find_version(arrays: Iterable[ArraySpec]) -> int:
    """The oldest version of the format that has a split of these arrays."""
    arrays = tuple(arrays)
    if drop_label(arrays) == arrays:
        return UNLABELLED_VERSION
    old = all(array.codec is None and array.dtype in ("uint8", "float16") for array in arrays)
    return RAW_VERSION if old else CODED_VERSION
