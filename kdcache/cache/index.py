"""Finds the bytes of (array, view, sample) in one split, by commit records and shard indices."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdcache.cache.layout import ArraySpec, Group, commit_key, record_name, shard_key
from kdcache.cache.lists import Rows
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

    Samples are numbered in the order of today's list, whichever parts of the cache hold them.

    Args:
        num_views: how many of its views must be complete; None: all.
        stage: the local folder for copies of shard files; None: no copies.
        stored: number the samples of one part as they are stored, listed today or not.

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
        stored: bool = False,
    ) -> None:
        if split not in manifest.layouts:
            raise _refuse_absent(storage, split)
        listing = None if stored else manifest.lists.get(split)
        self.layout = manifest.layouts[split] if listing is None else manifest.listed[split]
        self.storage, self.stage = storage, stage
        self.num_views = self.layout.num_views if num_views is None else num_views
        self._manifest = manifest
        self._specs = {spec.name: spec for spec in self.layout.arrays}
        self._crcs: dict[tuple[str, int, int], dict[str, np.ndarray]] = {}
        self._files: dict[tuple[str, int, int], dict[str, ShardFile]] = {}
        self._shards: dict[tuple[str, str, int, int], _Shard] = {}
        self._ids: dict[tuple[str, int], list[str]] = {}
        """Ids of the samples of (part, group), listed today or not."""
        self._rows = Rows(split, listing)
        for document in list_metadata(manifest, splits=self._rows.parts):
            check_document(storage, document)
        groups = self._rows.list_groups(manifest.layouts)
        _check_complete(storage, manifest, groups, num_views=self.num_views)
        for group, record in zip(groups, self._read_records(groups), strict=True):
            self._learn(group, record)
        self.sample_ids: list[str] = self._list_ids()
        """Ids of all samples, in order."""
        self.groups_per_view = len(groups)
        """How many shard groups hold its samples of one view."""

    @property
    def is_plain(self) -> bool:
        """Whether its samples are the rows of one part, in that order."""
        return self._rows.is_whole

    @property
    def is_remote(self) -> bool:
        """Whether each reading of a sample is a request to another machine."""
        return self.storage.is_remote and self.stage is None

    @property
    def is_single_file(self) -> bool:
        """Whether all samples are read from one file."""
        return self.storage.is_single_file and self.stage is None

    def find_record(self, view: int, sample: int) -> tuple[CommitRecord, int]:
        """The commit record of a sample's group, and the sample's row in it.

        Raises CacheCorruptError.
        """
        group, row = self.find_group(view, sample)
        return self.read_record(group), row

    def locate(self, array: str, view: int, sample: int) -> Location:
        """Where the bytes of (array, view, sample) are.

        Raises CacheCorruptError if the shard file or its commit record is damaged.
        """
        return self._place(self._shard_of(array, view, sample), sample)

    def _list_ids(self) -> list[str]:
        if self._rows.is_whole:
            return [id for ids in self._ids.values() for id in ids]
        places = (self.find_group(0, sample) for sample in range(self.layout.num_samples))
        return [self._ids[group.split, group.index][row] for group, row in places]

    def find_group(self, view: int, sample: int) -> tuple[Group, int]:
        """The group that holds a sample, and its row there."""
        part, row = self._rows.find(sample)
        index, place = divmod(row, self.layout.shard_samples)
        return self._manifest.layouts[part].group(view, index), place

    def read_record(self, group: Group) -> CommitRecord:
        """Read the commit record of a group. Raises CacheCorruptError."""
        return read_group_record(self.storage, self._manifest, group)

    def _read_records(self, groups: list[Group]) -> Iterator[CommitRecord]:
        """Commit records in order; from another machine many are read at once."""
        if not self.storage.is_remote:
            yield from map(self.read_record, groups)
            return
        with ThreadPoolExecutor(self.storage.num_threads(1)) as pool:
            yield from pool.map(self.read_record, groups)

    def stored_bytes(self, array: str) -> int:
        """Bytes of an array's shard files in all views, estimated from view 0."""
        return self.num_views * sum(
            files[array].size_bytes for (_, view, _), files in self._files.items() if view == 0
        )

    def _shard_of(self, array: str, view: int, sample: int) -> _Shard:
        part, row = self._rows.find(sample)
        key = (array, part, view, row // self.layout.shard_samples)
        return self._shards.get(key) or self._find_shard(self._specs[array], view, sample)

    def _place(self, shard: _Shard, sample: int) -> Location:
        row = self._rows.find(sample)[1] % self.layout.shard_samples
        offset, size = shard.chunks.places[row].tolist()
        chunks, crc = shard.chunks, int(shard.crcs[row])
        return Location(chunks.storage, chunks.key, offset, size, crc, chunks.checksums)

    def _find_shard(self, spec: ArraySpec, view: int, sample: int) -> _Shard:
        """Find the chunks of an array and group, and remember them. Raises CacheCorruptError."""
        group, _ = self.find_group(view, sample)
        key = (group.split, view, group.index)
        if key not in self._files:
            self._learn(group, self.read_record(group))
        layout = self._manifest.layouts[group.split]
        file, cure = self._files[key][spec.name], self.storage.repair_cure
        try:
            copied = self._find_copy(spec, group, file) if self.stage else None
            chunks = copied or find_chunks(self.storage, layout, spec, group, file=file, cure=cure)
        except CacheCorruptError as error:
            raise self.describe_damage(spec.name, view, sample, error.what) from None
        except OSError as error:
            what = f"it cannot be fetched ({error.strerror})"
            raise self.describe_damage(spec.name, view, sample, what) from None
        shard = _Shard(chunks, self._crcs[key][spec.name], staged=copied is not None)
        self._shards[spec.name, *key] = shard
        return shard

    def _find_copy(self, spec: ArraySpec, group: Group, file: ShardFile) -> Chunks | None:
        """Find the chunks in the stage; None if it has no room.

        A copy with a damaged index is fetched again, once.
        """
        crcs = self._crcs[group.split, group.view, group.index][spec.name]
        layout = self._manifest.layouts[group.split]
        source = ShardSource(self.storage, layout, spec, group, file=file, crcs=crcs)
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
        layout = self._manifest.layouts[group.split]
        return read_chunks(self.stage.storage, key, layout, spec, group, file=file, cure="")

    def _drop_copy(self, shard: _Shard, array: str, view: int, sample: int) -> None:
        """Remove a damaged or lost copy from the stage, unless another thread has done so."""
        group, copy = self.find_group(view, sample)[0], shard.chunks.key
        key = (group.split, view, group.index)
        with self.stage.hold(copy):
            if self._shards.get((array, *key)) is shard:
                self.stage.remove(copy, size_bytes=self._files[key][array].size_bytes)
                del self._shards[array, *key]

    def describe_damage(self, array: str, view: int, sample: int, what: str) -> CacheCorruptError:
        """Build the error that names array, view, sample and file."""
        group, _ = self.find_group(view, sample)
        return CacheCorruptError(
            self.storage.name(shard_key(self._specs[array], group)),
            f"{group.split}/{array} view {view} sample {self.sample_ids[sample]!r} "
            f"is {'unreadable' if is_forbidden(what) else 'damaged'}: {what}",
            cure=MEND if is_forbidden(what) else self.storage.repair_cure,
        )

    def _learn(self, group: Group, record: CommitRecord) -> None:
        """Keep the checksums and files of a record. Raises CacheCorruptError.

        The parameters of views are dropped: they would fill the memory.
        """
        # view 0 gives the order of samples
        if record.sample_ids != self._ids.setdefault((group.split, group.index), record.sample_ids):
            path, cure = self.storage.name(commit_key(group)), self.storage.repair_cure
            raise CacheCorruptError(path, "sample ids are not those of view 0", cure=cure)
        self._crcs[group.split, group.view, group.index] = {
            name: np.array(crcs, np.uint32) for name, crcs in record.crcs.items()
        }
        self._files[group.split, group.view, group.index] = record.files


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


def _check_complete(
    storage: Storage, manifest: Manifest, groups: list[Group], *, num_views: int
) -> None:
    """Check that the groups of view 0, and those of the other views, are there."""
    there = list_records(storage)
    groups = [replace(group, view=view) for view in range(num_views) for group in groups]
    missing = [group for group in groups if record_name(group) not in there]
    if not missing:
        return
    first = missing[0]
    lost = first.view < manifest.complete_views[first.split]
    state = "has lost shard groups" if lost else "is half-built"
    finish = "run `python -m cache_teacher` with its settings again to finish it"
    raise CacheIncompleteError(
        f"{storage}: cache {state}, {len(groups) - len(missing)} of {len(groups)} shard groups of "
        f"{first.role} are there (first missing: {first.name}); "
        f"{storage.repair_cure if lost else finish}"
    )
