"""Reads a cache: where are the bytes of (array, view, sample)? -> checked bytes in a slot that is already there.

Files are read by position, without zarr in between: the shard index is parsed once, each chunk goes straight into its slot
and is compared with the crc32c of the commit record, on every reading.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.cache.layout import CRC_BYTES, ArraySpec, Group, SplitLayout, index_bytes, shard_path
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import CommitRecord, crc32c, has_record, read_record
from kdcache.cache.structure import check_array_metadata
from kdcache.errors import CacheCorruptError, CacheIncompleteError


@dataclass(frozen=True)
class Location:
    """Where the bytes of one sample of one array are, and what they must be."""

    path: Path
    offset: int
    size_bytes: int
    crc32c: int


class CacheReader:
    """One split of a cache, complete for the views in use. Thread-safe after construction.

    Args:
        root: folder of the cache.
        layout: the split's grid.
        num_views: how many of its views must be complete.
    """

    def __init__(self, root: Path, layout: SplitLayout, *, num_views: int) -> None:
        self.root, self.layout, self.num_views = root, layout, num_views
        for spec in layout.arrays:
            check_array_metadata(root, layout, spec)
        groups = [group for group in layout.groups() if group.view < num_views]
        _check_complete(root, groups)
        self.records = {(g.view, g.index): read_record(root, layout, g) for g in groups}
        self._indices: dict[tuple[str, int, int], np.ndarray] = {}

    @property
    def sample_ids(self) -> list[str]:
        """Ids of all samples, in order."""
        return [id for g in range(self.layout.groups_per_view) for id in self.records[0, g].sample_ids]

    def locate(self, array: str, view: int, sample: int) -> Location:
        """Where the bytes of (array, view, sample) are. Raises CacheCorruptError for a damaged shard file."""
        spec = self.layout.array(array)
        group, row = self.layout.group(view, sample // self.layout.shard_samples), sample % self.layout.shard_samples
        path, record = shard_path(self.root, spec, group), self.records[view, group.index]
        offset, size = (int(n) for n in self._index(spec, group, path, record)[row])
        if size != spec.item_bytes + CRC_BYTES or offset + size > record.file_bytes[array]:
            raise self._corrupt(array, view, sample, f"its chunk is {size} bytes at {offset}")
        return Location(path, offset, spec.item_bytes, record.crcs[array][row])

    def read_into(self, slot: np.ndarray, *, array: str, view: int, sample: int) -> None:
        """Fill a contiguous array of the item's shape and dtype.

        Raises: CacheCorruptError naming array, view, sample and file where the bytes are not those committed.
        """
        place = self.locate(array, view, sample)
        try:
            count = _read_at(place.path, place.offset, slot)
        except OSError as error:
            raise self._corrupt(array, view, sample, f"the file is unreadable ({error.strerror})") from None
        if count != place.size_bytes or crc32c(slot) != place.crc32c:
            raise self._corrupt(array, view, sample, "its checksum differs from the commit record")

    def read(self, array: str, view: int, sample: int) -> np.ndarray:
        """One sample of one array, freshly allocated."""
        spec = self.layout.array(array)
        slot = np.empty(spec.item_shape, spec.dtype)
        self.read_into(slot, array=array, view=view, sample=sample)
        return slot

    def _index(self, spec: ArraySpec, group: Group, path: Path, record: CommitRecord) -> np.ndarray:
        key = (spec.name, group.view, group.index)
        if key not in self._indices:
            self._indices[key] = _read_index(path, self.layout.shard_samples, record.file_bytes[spec.name])
        return self._indices[key]

    def _corrupt(self, array: str, view: int, sample: int, what: str) -> CacheCorruptError:
        spec = self.layout.array(array)
        group = self.layout.group(view, sample // self.layout.shard_samples)
        row = sample % self.layout.shard_samples
        id = self.records[view, group.index].sample_ids[row]
        return CacheCorruptError(
            f"{shard_path(self.root, spec, group)}: {self.layout.split}/{array} view {view} sample {id!r} is damaged: {what}; "
            f"delete {self.root}/commits/{group.name}.json and run `python -m cache_teacher` again to recompute it"
        )


def open_cache(root: Path) -> Manifest:
    """The manifest of a cache; see `open_split` for its data. Raises CacheError."""
    return read_manifest(root)


def open_split(root: Path, layout: SplitLayout, *, num_views: int | None = None) -> CacheReader:
    """A reader of one split; `num_views` (default: all) of them must be complete. Raises CacheError."""
    return CacheReader(root, layout, num_views=num_views or layout.num_views)


def _check_complete(root: Path, groups: list[Group]) -> None:
    missing = [group for group in groups if not has_record(root, group)]
    if missing:
        raise CacheIncompleteError(
            f"{root}: cache is half-built, {len(groups) - len(missing)} of {len(groups)} shard groups of {groups[0].split} "
            f"are there (first missing: {missing[0].name}); run `python -m cache_teacher` again to finish it"
        )


def _read_index(path: Path, shard_samples: int, file_bytes: int) -> np.ndarray:
    """The shard's (offset, size) pairs, uint64 [S, 2]. Raises CacheCorruptError."""
    tail = np.empty(index_bytes(shard_samples), np.uint8)
    try:
        size = path.stat().st_size
        count = _read_at(path, file_bytes - tail.size, tail) if size == file_bytes else 0
    except OSError as error:
        raise CacheCorruptError(f"{path}: file is {error.strerror}, expected as committed; {_REDO}") from None
    if size != file_bytes:
        raise CacheCorruptError(f"{path}: size is {size} bytes, expected {file_bytes}; {_REDO}")
    if count != tail.size or crc32c(tail[:-CRC_BYTES]) != int.from_bytes(tail[-CRC_BYTES:].tobytes(), "little"):
        raise CacheCorruptError(f"{path}: shard index is damaged, its checksum differs; {_REDO}")
    return tail[:-CRC_BYTES].view("<u8").reshape(-1, 2)


def _read_at(path: Path, offset: int, out: np.ndarray) -> int:
    """Read into a contiguous array from a position; returns the number of bytes got."""
    view = memoryview(out.reshape(-1).view(np.uint8))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done
    finally:
        os.close(descriptor)


_REDO = "delete its group's record in commits/ and run `python -m cache_teacher` again to recompute it"
