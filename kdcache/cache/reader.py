"""Reads a cache: where are the bytes of (array, view, sample)? -> checked bytes in a slot that is already there.

Without zarr in between: the shard index is parsed once, each chunk goes straight into its slot and is compared with the crc32c of
the commit record: the checksum in the file alone does not notice two shards swapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kdcache.cache.layout import CRC_BYTES, ArraySpec, Group, commit_path, shard_path
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.metadata import check_document, list_metadata
from kdcache.cache.records import CommitRecord, list_records, read_record
from kdcache.cache.shard import MappedFiles, check_inside, copy_into, crc32c, open_plain, read_at, read_index
from kdcache.errors import CacheCorruptError, CacheIncompleteError, repair_cure

Check = Literal["always", "first", "never"]


@dataclass(frozen=True)
class Location:
    """Where the bytes of one sample of one array are, and what they must be."""

    path: Path
    offset: int
    size_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """What is known of a shard file: (offset, size) and crc32c of each of its chunks."""

    path: Path
    size_bytes: int
    index: np.ndarray
    crcs: np.ndarray


class CacheReader:
    """One split of a cache, complete for the views in use. Thread-safe after construction.

    Args:
        root: folder of the cache.
        manifest: the cache's.
        split: "train" or "val".
        num_views: how many of its views must be complete (default: all).
        check: which readings of a chunk are compared with its commit record: always, the first in this process, never.

    Raises: CacheIncompleteError where shard groups are not written yet, CacheCorruptError where a document is damaged (the
        commit records of views after the first are read with their first sample).
    """

    def __init__(
        self, root: Path, manifest: Manifest, split: str, *, num_views: int | None = None, check: Check = "first"
    ) -> None:
        self.root, self.layout, self.check = root, manifest.layouts[split], check
        self.num_views = self.layout.num_views if num_views is None else num_views
        self._manifest = manifest
        for document in list_metadata(root, manifest, splits=(split,)):
            check_document(root, document)
        _check_complete(root, manifest, [group for group in self.layout.groups() if group.view < self.num_views])
        self._specs = {spec.name: spec for spec in self.layout.arrays}
        self._crcs: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        self._shards: dict[tuple[str, int, int], _Shard] = {}
        shape = (self.num_views, self.layout.num_samples)
        self._read = {name: np.zeros(shape, bool) for name in self._specs}
        self._checked = {name: np.zeros(shape, bool) for name in self._specs}
        self.sample_ids: list[str] = []
        """Ids of all samples, in order."""
        for index in range(self.layout.groups_per_view):
            self.sample_ids += self._learn_group(self.layout.group(0, index)).sample_ids

    def record(self, view: int, index: int) -> CommitRecord:
        """The commit record of a group, read from disk. Raises CacheCorruptError."""
        return read_group_record(self.root, self._manifest, self.layout.group(view, index))

    def locate(self, array: str, view: int, sample: int) -> Location:
        """Where the bytes of (array, view, sample) are. Raises CacheCorruptError for a damaged shard file or record."""
        spec, row = self._specs[array], sample % self.layout.shard_samples
        shard = self._shards.get((array, view, sample // self.layout.shard_samples))
        if shard is None:
            shard = self._find_shard(spec, view, sample)
        offset, size = int(shard.index[row, 0]), int(shard.index[row, 1])
        if size != spec.item_bytes + CRC_BYTES or offset + size > shard.size_bytes:
            raise self._corrupt(array, view, sample, f"its chunk is {size} bytes at {offset}")
        return Location(shard.path, offset, spec.item_bytes, int(shard.crcs[row]))

    def read_into(
        self, slot: np.ndarray, *, array: str, view: int, sample: int, maps: MappedFiles | None = None
    ) -> None:
        """Fill a contiguous array of the item's shape and dtype.

        Args:
            maps: where given, a chunk's second and later readings are plain copies from mapped files. The first is by position:
                what is wrong with a disk is then said in words, not by a signal that ends the process.

        Raises: CacheCorruptError naming array, view, sample and file where the bytes are not those committed.
        """
        place, stored = self.locate(array, view, sample), np.empty(CRC_BYTES, np.uint8)
        try:
            mapped = maps.open(place.path) if maps is not None and self._read[array][view, sample] else None
            if mapped is not None:
                count = copy_into([slot, stored], mapped, place.offset)
            else:
                with open_plain(place.path) as descriptor:
                    count = read_at(descriptor, place.offset, [slot, stored])
        except OSError as error:
            raise self._corrupt(array, view, sample, f"the file is unreadable ({error.strerror})") from None
        if count != place.size_bytes + CRC_BYTES:
            raise self._corrupt(array, view, sample, "the file is too short")
        self._read[array][view, sample] = True
        if self.check == "always" or (self.check == "first" and not self._checked[array][view, sample]):
            if crc32c(slot) != place.crc32c or int.from_bytes(stored.tobytes(), "little") != place.crc32c:
                raise self._corrupt(array, view, sample, "its checksum differs from the commit record")
            self._checked[array][view, sample] = True

    def read(self, array: str, view: int, sample: int) -> np.ndarray:
        """One sample of one array, freshly allocated."""
        spec = self._specs[array]
        self.locate(array, view, sample)  # a size that no file has is met before its slot is allocated
        slot = np.empty(spec.item_shape, spec.dtype)
        self.read_into(slot, array=array, view=view, sample=sample)
        return slot

    def _learn_group(self, group: Group) -> CommitRecord:
        """Read a group's record and keep its checksums, nothing else: parameters of views would fill the memory."""
        record = self.record(group.view, group.index)
        known = self.sample_ids[group.start : group.stop]
        if group.view and record.sample_ids != known:  # the order of samples is taken from view 0
            path = commit_path(self.root, group)
            raise CacheCorruptError(path, "sample ids are not those of view 0", cure=repair_cure(self.root))
        self._crcs[group.view, group.index] = {name: np.array(crcs, np.uint32) for name, crcs in record.crcs.items()}
        return record

    def _find_shard(self, spec: ArraySpec, view: int, sample: int) -> _Shard:
        """Parse a shard's index, once. Raises CacheCorruptError."""
        group = self.layout.group(view, sample // self.layout.shard_samples)
        path, size = shard_path(self.root, spec, group), self.layout.shard_bytes(spec, group)
        cure, num_entries = repair_cure(self.root), self.layout.shard_samples
        if (view, group.index) not in self._crcs:
            self._learn_group(group)
        try:
            check_inside(self.root, path, cure=cure)
            index = read_index(path, shard_samples=num_entries, size_bytes=size, cure=cure)
        except CacheCorruptError as error:
            raise self._corrupt(spec.name, view, sample, error.what) from None
        shard = _Shard(path, size, index, self._crcs[view, group.index][spec.name])
        self._shards[spec.name, view, group.index] = shard
        return shard

    def _corrupt(self, array: str, view: int, sample: int, what: str) -> CacheCorruptError:
        group = self.layout.group(view, sample // self.layout.shard_samples)
        return CacheCorruptError(
            shard_path(self.root, self._specs[array], group),
            f"{self.layout.split}/{array} view {view} sample {self.sample_ids[sample]!r} is damaged: {what}",
            cure=repair_cure(self.root),
        )


def open_cache(root: Path) -> Manifest:
    """The manifest of a cache; see `open_split` for its data. Raises CacheError."""
    return read_manifest(Path(root))


def open_split(root: Path, split: str, *, num_views: int | None = None, check: Check = "first") -> CacheReader:
    """A reader of "train" or "val"; see `CacheReader`. Raises CacheError."""
    return CacheReader(Path(root), read_manifest(Path(root)), split, num_views=num_views, check=check)


def read_group_record(root: Path, manifest: Manifest, group: Group) -> CommitRecord:
    """A group's commit record, held against this cache's identity. Raises CacheCorruptError."""
    layout, identity, cure = manifest.layouts[group.split], manifest.split_hash(group.split), repair_cure(root)
    check_inside(root, commit_path(root, group), cure=cure)
    return read_record(root, layout, group, identity=identity, cure=cure)


def _check_complete(root: Path, manifest: Manifest, groups: list[Group]) -> None:
    there = list_records(root)
    missing = [group for group in groups if commit_path(root, group).name not in there]
    if not missing:
        return
    first = missing[0]
    lost = first.view < manifest.complete_views[first.split]
    state = "has lost shard groups" if lost else "is half-built"
    cure = repair_cure(root) if lost else "run `python -m cache_teacher` again to finish it"
    raise CacheIncompleteError(
        f"{root}: cache {state}, {len(groups) - len(missing)} of {len(groups)} shard groups of {first.split} "
        f"are there (first missing: {first.name}); {cure}"
    )
