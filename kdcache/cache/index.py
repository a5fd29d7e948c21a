"""Finds the bytes of (array, view, sample) in one split, by commit records and shard indices."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.cache.layout import ArraySpec, Group, commit_key, record_name, shard_key
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import CommitRecord, list_records, read_record
from kdcache.cache.shards import Chunks, ShardSource, find_chunks, read_chunks
from kdcache.cache.stage import Stage
from kdcache.cache.zarr_metadata import check_document, list_metadata
from kdcache.errors import (
    MEND,
    CacheCorruptError,
    CacheIncompleteError,
    Phrase,
    describe,
    is_forbidden,
)
from kdcache.storage.base import ShardFile, Storage


@dataclass(frozen=True)
class Location:
    """Where the chunk of one sample of one array is, and the checksum its bytes must have.

    With a codec the chunk is the coded sample.

    storage, key: the file. offset, size_bytes: the chunk in it, without its checksum.
    crc32c: by the commit record. followed: whether the crc32c is also stored behind the chunk.
    """

    storage: Storage
    key: str
    offset: int
    size_bytes: int
    crc32c: int
    followed: bool

    @property
    def path(self) -> Path | None:
        """The local file that holds the chunk; None if it is on another machine."""
        path = self.storage.local_path(self.key)
        return None if path is None else Path(path)


@dataclass(frozen=True, slots=True)
class _Shard:
    """The chunks of one array and shard group, the crc32c of each, and whether they are staged."""

    chunks: Chunks
    crcs: np.ndarray
    staged: bool


class SplitIndex:
    """One split of a cache, complete for the views in use.

    Args:
        num_views: how many of its views must be complete; None: all.
        stage: the local folder for copies of shard files; None: no copies.

    Raises: CacheIncompleteError if shard groups are not written yet, or the cache has no unlabelled
        split; CacheCorruptError if a document is damaged.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        split: str,
        *,
        num_views: int | None = None,
        stage: Stage | None = None,
    ) -> None:
        if split not in manifest.layouts:
            raise _refuse_absent(storage, split)
        self.storage, self.layout, self.stage = storage, manifest.layouts[split], stage
        self.num_views = self.layout.num_views if num_views is None else num_views
        self._manifest = manifest
        for document in list_metadata(manifest, splits=(split,)):
            check_document(storage, document)
        wanted = [group for group in self.layout.groups() if group.view < self.num_views]
        _check_complete(storage, manifest, wanted)
        self._specs = {spec.name: spec for spec in self.layout.arrays}
        self._crcs: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        self._files: dict[tuple[int, int], dict[str, ShardFile]] = {}
        self._shards: dict[tuple[str, int, int], _Shard] = {}
        self.sample_ids: list[str] = []
        """Ids of all samples, in order."""
        groups = [self.layout.group(0, index) for index in range(self.layout.groups_per_view)]
        for group, record in zip(groups, self._read_records(groups), strict=True):
            self.sample_ids += record.sample_ids
            self._learn(group, record)

    @property
    def is_remote(self) -> bool:
        """Whether each reading of a sample is a request to another machine."""
        return self.storage.is_remote and self.stage is None

    @property
    def is_single_file(self) -> bool:
        """Whether all samples are read from one file."""
        return self.storage.is_single_file and self.stage is None

    def record(self, view: int, index: int) -> CommitRecord:
        """Read the commit record of a group. Raises CacheCorruptError."""
        return read_group_record(self.storage, self._manifest, self.layout.group(view, index))

    def locate(self, array: str, view: int, sample: int) -> Location:
        """Where the bytes of (array, view, sample) are.

        Raises CacheCorruptError if the shard file or its commit record is damaged.
        """
        return self._place(self._shard_of(array, view, sample), sample)

    def _read_records(self, groups: list[Group]) -> Iterator[CommitRecord]:
        """Commit records in order; from another machine many are read at once."""
        if not self.storage.is_remote:
            yield from (self.record(group.view, group.index) for group in groups)
            return
        with ThreadPoolExecutor(self.storage.num_threads(1)) as pool:
            yield from pool.map(lambda group: self.record(group.view, group.index), groups)

    def stored_bytes(self, array: str) -> int:
        """Bytes of an array's shard files in all views, estimated from view 0."""
        return self.num_views * sum(
            files[array].size_bytes for (view, _), files in self._files.items() if view == 0
        )

    def _shard_of(self, array: str, view: int, sample: int) -> _Shard:
        shard = self._shards.get((array, view, sample // self.layout.shard_samples))
        return shard or self._find_shard(self._specs[array], view, sample)

    def _place(self, shard: _Shard, sample: int) -> Location:
        row = sample % self.layout.shard_samples
        offset, size = shard.chunks.places[row].tolist()
        chunks, crc = shard.chunks, int(shard.crcs[row])
        return Location(chunks.storage, chunks.key, offset, size, crc, chunks.checksums)

    def _find_shard(self, spec: ArraySpec, view: int, sample: int) -> _Shard:
        """Find the chunks of an array and group, and remember them. Raises CacheCorruptError."""
        group = self.layout.group(view, sample // self.layout.shard_samples)
        if (view, group.index) not in self._files:
            self._learn(group, self.record(view, group.index))
        file, cure = self._files[view, group.index][spec.name], self.storage.repair_cure
        try:
            copied = self._find_copy(spec, group, file) if self.stage else None
            chunks = copied or find_chunks(
                self.storage, self.layout, spec, group, file=file, cure=cure
            )
        except CacheCorruptError as error:
            raise self.describe_damage(spec.name, view, sample, error.what) from None
        except OSError as error:
            what = f"it cannot be fetched ({error.strerror})"
            raise self.describe_damage(spec.name, view, sample, what) from None
        shard = _Shard(chunks, self._crcs[view, group.index][spec.name], staged=copied is not None)
        self._shards[spec.name, view, group.index] = shard
        return shard

    def _find_copy(self, spec: ArraySpec, group: Group, file: ShardFile) -> Chunks | None:
        """Find the chunks in the stage; None if it has no room.

        A copy with a damaged index is fetched again, once.
        """
        crcs = self._crcs[group.view, group.index][spec.name]
        source = ShardSource(self.storage, self.layout, spec, group, file=file, crcs=crcs)
        copy = self.stage.bring(source, file)
        if copy is not None:
            try:
                return self._read_copy(copy, spec, group, file)
            except CacheCorruptError:
                with self.stage.hold(copy):
                    self.stage.remove(copy, size_bytes=file.size_bytes)
                copy = self.stage.bring(source, file)
        return copy and self._read_copy(copy, spec, group, file)

    def _read_copy(self, key: str, spec: ArraySpec, group: Group, file: ShardFile) -> Chunks:
        return read_chunks(self.stage.storage, key, self.layout, spec, group, file=file, cure="")

    def _drop_copy(self, shard: _Shard, array: str, view: int, sample: int) -> None:
        """Remove a damaged or lost copy from the stage, unless another thread has done so."""
        index, copy = sample // self.layout.shard_samples, shard.chunks.key
        with self.stage.hold(copy):
            if self._shards.get((array, view, index)) is shard:
                self.stage.remove(copy, size_bytes=self._files[view, index][array].size_bytes)
                del self._shards[array, view, index]

    def describe_damage(self, array: str, view: int, sample: int, what: str) -> CacheCorruptError:
        """Build the error that names array, view, sample and file."""
        group = self.layout.group(view, sample // self.layout.shard_samples)
        return CacheCorruptError(
            self.storage.name(shard_key(self._specs[array], group)),
            f"{self.layout.split}/{array} view {view} sample {self.sample_ids[sample]!r} "
            f"is {'unreadable' if is_forbidden(what) else 'damaged'}: {what}",
            cure=MEND if is_forbidden(what) else self.storage.repair_cure,
        )

    def _learn(self, group: Group, record: CommitRecord) -> None:
        """Keep the checksums and files of a record. Raises CacheCorruptError.

        The parameters of views are dropped: they would fill the memory.
        """
        # view 0 gives the order of samples
        if record.sample_ids != self.sample_ids[group.start : group.stop]:
            path, cure = self.storage.name(commit_key(group)), self.storage.repair_cure
            raise CacheCorruptError(path, "sample ids are not those of view 0", cure=cure)
        self._crcs[group.view, group.index] = {
            name: np.array(crcs, np.uint32) for name, crcs in record.crcs.items()
        }
        self._files[group.view, group.index] = record.files


def _refuse_absent(storage: Storage, split: str) -> CacheIncompleteError:
    found, expected = Phrase("missing"), Phrase("one of unlabelled images")
    cure = "run `python -m cache_teacher` with its settings and dataset.unlabelled to add it"
    return CacheIncompleteError(
        describe(storage, field=f"split {split}", found=found, expected=expected, cure=cure)
    )


def read_group_record(storage: Storage, manifest: Manifest, group: Group) -> CommitRecord:
    """Read a group's commit record and check that it has this cache's identity.

    Raises CacheCorruptError.
    """
    layout, identity = manifest.layouts[group.split], manifest.split_hash(group.split)
    cure = storage.repair_cure
    storage.check_inside(commit_key(group), cure=cure)
    return read_record(storage, layout, group, identity=identity, cure=cure)


def _check_complete(storage: Storage, manifest: Manifest, groups: list[Group]) -> None:
    there = list_records(storage)
    missing = [group for group in groups if record_name(group) not in there]
    if not missing:
        return
    first = missing[0]
    lost = first.view < manifest.complete_views[first.split]
    state = "has lost shard groups" if lost else "is half-built"
    finish = "run `python -m cache_teacher` with its settings again to finish it"
    raise CacheIncompleteError(
        f"{storage}: cache {state}, {len(groups) - len(missing)} of {len(groups)} shard groups of "
        f"{first.split} are there (first missing: {first.name}); "
        f"{storage.repair_cure if lost else finish}"
    )
