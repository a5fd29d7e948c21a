"""Reads a cache: where are the bytes of (array, view, sample)? -> checked bytes in a slot that is already there.

Without zarr in between: the shard index is parsed once, each chunk goes straight into its slot (a coded one into memory of its
thread, and from there decoded into the slot) and is compared with the crc32c of the commit record: the checksum in the file alone
does not notice two shards swapped.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kdcache.cache.basis import read_bases
from kdcache.cache.codecs import as_bytes, make_coder
from kdcache.cache.encodings import Encoding, list_arrays, make_target
from kdcache.cache.layout import CRC_BYTES, ArraySpec, Group, commit_path, shard_path
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.metadata import check_document, list_metadata
from kdcache.cache.records import CommitRecord, list_records, read_record
from kdcache.cache.shard import MappedFiles, check_inside, copy_into, crc32c, open_plain, read_at, read_index
from kdcache.errors import CacheCorruptError, CacheIncompleteError, repair_cure

Check = Literal["always", "first", "never"]


@dataclass(frozen=True)
class Location:
    """Where the chunk of one sample of one array is, and what its bytes must be; with a codec those are not the sample's."""

    path: Path
    offset: int
    size_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """What is known of a shard file: (offset, size with checksum) and crc32c of each of its chunks."""

    path: Path
    index: np.ndarray
    crcs: np.ndarray


class _Room(threading.local):
    """Memory of one thread for a coded chunk; it grows to the largest. A reader that is sent to another process leaves it."""

    def __init__(self) -> None:
        self.bytes = np.empty(0, np.uint8)

    def get(self, size_bytes: int) -> np.ndarray:
        if self.bytes.size < size_bytes:
            self.bytes = np.empty(size_bytes, np.uint8)
        return self.bytes[:size_bytes]

    def __reduce__(self) -> tuple:
        return _Room, ()


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
        coded = [spec for spec in self.layout.arrays if spec.codec]
        self._coders = {spec.name: make_coder(spec.codec, shape=spec.item_shape, dtype=spec.dtype) for spec in coded}
        self._room = _Room()
        self.encodings = manifest.encodings if split == "train" else {"logits": Encoding()}
        """How logits and each level are stored."""
        self.bases = read_bases(root, self.encodings)
        """level -> float32 [C, R] of the lowrank ones."""
        self._crcs: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        self._sizes: dict[tuple[int, int], dict[str, int]] = {}
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
        offset, size = shard.index[row].tolist()
        return Location(shard.path, offset, size - CRC_BYTES, int(shard.crcs[row]))

    def stored_bytes(self, array: str) -> int:
        """Bytes of an array's shard files in all views, from those of view 0."""
        return self.num_views * sum(sizes[array] for (view, _), sizes in self._sizes.items() if view == 0)

    def read_into(
        self, slot: np.ndarray, *, array: str, view: int, sample: int, maps: MappedFiles | None = None
    ) -> None:
        """Fill a contiguous array of the item's shape and dtype.

        Args:
            maps: where given, a chunk's second and later readings are plain copies from mapped files. The first is by position:
                what is wrong with a disk is then said in words, not by a signal that ends the process.

        Raises: CacheCorruptError naming array, view, sample and file where the bytes are not those committed.
        """
        place, coder = self.locate(array, view, sample), self._coders.get(array)
        chunk = as_bytes(slot) if coder is None else self._room.get(place.size_bytes)
        stored = self._fetch(place, chunk, (array, view, sample), maps)
        self._read[array][view, sample] = True
        if self.check == "always" or (self.check == "first" and not self._checked[array][view, sample]):
            if crc32c(chunk) != place.crc32c or stored != place.crc32c:
                raise self._corrupt(array, view, sample, "its checksum differs from the commit record")
            self._checked[array][view, sample] = True
        if coder is not None:
            try:
                coder.decode_into(chunk, slot)
            except ValueError as error:
                raise self._corrupt(array, view, sample, f"it cannot be decoded ({error})") from None

    def _fetch(self, place: Location, chunk: np.ndarray, item: tuple[str, int, int], maps: MappedFiles | None) -> int:
        """Fill `chunk` with stored bytes, by position or from a mapping; returns the checksum stored behind them."""
        array, view, sample = item
        stored = np.empty(CRC_BYTES, np.uint8)
        try:
            mapped = maps.open(place.path) if maps is not None and self._read[array][view, sample] else None
            if mapped is not None:
                count = copy_into([chunk, stored], mapped, place.offset)
            else:
                with open_plain(place.path) as descriptor:
                    count = read_at(descriptor, place.offset, [chunk, stored])
        except OSError as error:
            raise self._corrupt(*item, f"the file is unreadable ({error.strerror})") from None
        if count != place.size_bytes + CRC_BYTES:
            raise self._corrupt(*item, "the file is too short")
        return int.from_bytes(stored.tobytes(), "little")

    def read(self, array: str, view: int, sample: int) -> np.ndarray:
        """One sample of one array, freshly allocated."""
        spec = self._specs[array]
        self.locate(array, view, sample)  # a size that no file has is met before its slot is allocated
        slot = np.empty(spec.item_shape, spec.dtype)
        self.read_into(slot, array=array, view=view, sample=sample)
        return slot

    def decode(self, name: str, view: int, sample: int) -> np.ndarray:
        """The teacher's answer float32 [C, H, W], logits or a level; of lowrank its direction at each position, of length 1 but
        for what the basis leaves out."""
        arrays = {
            array: torch.from_numpy(self.read(array, view, sample))[None]
            for array in list_arrays(name, self.encodings[name])
        }
        basis = torch.from_numpy(self.bases[name]) if name in self.bases else None
        step = self.encodings[name].step or 1.0
        return step * make_target(name, arrays, basis).decode()[0].numpy()

    def _learn_group(self, group: Group) -> CommitRecord:
        """Read a group's record and keep checksums and sizes, nothing else: parameters of views would fill the memory."""
        record = self.record(group.view, group.index)
        known = self.sample_ids[group.start : group.stop]
        if group.view and record.sample_ids != known:  # the order of samples is taken from view 0
            path = commit_path(self.root, group)
            raise CacheCorruptError(path, "sample ids are not those of view 0", cure=repair_cure(self.root))
        self._crcs[group.view, group.index] = {name: np.array(crcs, np.uint32) for name, crcs in record.crcs.items()}
        self._sizes[group.view, group.index] = {name: file.size_bytes for name, file in record.files.items()}
        return record

    def _find_shard(self, spec: ArraySpec, view: int, sample: int) -> _Shard:
        """Parse a shard's index, once. Raises CacheCorruptError."""
        group = self.layout.group(view, sample // self.layout.shard_samples)
        path, cure = shard_path(self.root, spec, group), repair_cure(self.root)
        if (view, group.index) not in self._sizes:
            self._learn_group(group)
        try:
            check_inside(self.root, path, cure=cure)
            index = read_index(
                path,
                count=group.stop - group.start,
                shard_samples=self.layout.shard_samples,
                size_bytes=self._sizes[view, group.index][spec.name],
                chunk_bytes=None if spec.codec else spec.item_bytes,
                cure=cure,
            )
        except CacheCorruptError as error:
            raise self._corrupt(spec.name, view, sample, error.what) from None
        shard = _Shard(path, index, self._crcs[view, group.index][spec.name])
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
