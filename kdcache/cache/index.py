"""Where everything of one split is: its commit records, learned once, and from them where each sample's bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kdcache.cache.chunks import Chunks, find_chunks, read_chunks
from kdcache.cache.layout import ArraySpec, Group, commit_path, shard_path
from kdcache.cache.manifest import Manifest
from kdcache.cache.metadata import check_document, list_metadata
from kdcache.cache.records import CommitRecord, list_records, read_record
from kdcache.cache.shard import ShardFile, check_inside
from kdcache.cache.stage import Stage
from kdcache.errors import CacheCorruptError, CacheIncompleteError, repair_cure
from kdcache.storage.place import Place, is_far

FAR_THREADS = 16  # that ask a store at once: each waits for its answer most of the time


@dataclass(frozen=True)
class Location:
    """Where the chunk of one sample of one array is, and what its bytes must be; with a codec those are not the sample's.

    followed: whether its crc32c stands behind it, too.
    """

    path: Place
    offset: int
    size_bytes: int
    crc32c: int
    followed: bool


@dataclass(frozen=True, slots=True)
class _Shard:
    """What is known of one array of a shard group: where its chunks are, crc32c of each, and whether that is in the stage."""

    chunks: Chunks
    crcs: np.ndarray
    staged: bool


class SplitIndex:
    """One split of a cache, complete for the views in use.

    Args: those of `CacheReader` but for `check`. Raises: what that raises.
    """

    def __init__(
        self,
        root: Place,
        manifest: Manifest,
        split: str,
        *,
        num_views: int | None = None,
        stage: Stage | None = None,
    ) -> None:
        self.root, self.layout, self.stage = root, manifest.layouts[split], stage
        self.num_views = self.layout.num_views if num_views is None else num_views
        self._manifest = manifest
        for document in list_metadata(root, manifest, splits=(split,)):
            check_document(root, document)
        _check_complete(
            root, manifest, [group for group in self.layout.groups() if group.view < self.num_views]
        )
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
    def is_far(self) -> bool:
        """Whether samples are read from another machine, each time."""
        return is_far(self.root) and self.stage is None

    def record(self, view: int, index: int) -> CommitRecord:
        """The commit record of a group, read from disk. Raises CacheCorruptError."""
        return read_group_record(self.root, self._manifest, self.layout.group(view, index))

    def locate(self, array: str, view: int, sample: int) -> Location:
        """Where the bytes of (array, view, sample) are. Raises CacheCorruptError for a damaged shard file or record."""
        return self._place(self._shard_of(array, view, sample), sample)

    def _read_records(self, groups: list[Group]) -> Iterator[CommitRecord]:
        """In order; those of a store many at once."""
        if not is_far(self.root):
            yield from (self.record(group.view, group.index) for group in groups)
            return
        with ThreadPoolExecutor(FAR_THREADS) as pool:
            yield from pool.map(lambda group: self.record(group.view, group.index), groups)

    def stored_bytes(self, array: str) -> int:
        """Bytes of an array's shard files in all views, from those of view 0."""
        return self.num_views * sum(
            files[array].size_bytes for (view, _), files in self._files.items() if view == 0
        )

    def _shard_of(self, array: str, view: int, sample: int) -> _Shard:
        shard = self._shards.get((array, view, sample // self.layout.shard_samples))
        return shard or self._find_shard(self._specs[array], view, sample)

    def _place(self, shard: _Shard, sample: int) -> Location:
        row = sample % self.layout.shard_samples
        offset, size = shard.chunks.places[row].tolist()
        return Location(
            shard.chunks.path, offset, size, int(shard.crcs[row]), shard.chunks.checksums
        )

    def _find_shard(self, spec: ArraySpec, view: int, sample: int) -> _Shard:
        """Where the chunks of a group's array are, found once. Raises CacheCorruptError."""
        group = self.layout.group(view, sample // self.layout.shard_samples)
        if (view, group.index) not in self._files:
            self._learn(group, self.record(view, group.index))
        file, cure = self._files[view, group.index][spec.name], repair_cure(self.root)
        try:
            copied = self._find_copy(spec, group, file) if self.stage else None
            chunks = copied or find_chunks(
                self.root, self.layout, spec, group, file=file, cure=cure
            )
        except CacheCorruptError as error:
            raise self.describe_damage(spec.name, view, sample, error.what) from None
        except OSError as error:
            raise self.describe_damage(
                spec.name, view, sample, f"it cannot be fetched ({error.strerror})"
            ) from None
        shard = _Shard(chunks, self._crcs[view, group.index][spec.name], staged=copied is not None)
        self._shards[spec.name, view, group.index] = shard
        return shard

    def _find_copy(self, spec: ArraySpec, group: Group, file: ShardFile) -> Chunks | None:
        """Where the chunks are in the stage; None where it has no room. A copy with a damaged index is fetched again, once."""
        path = shard_path(self.root, spec, group)
        copy = self.stage.bring(path, file)
        if copy is not None:
            try:
                return read_chunks(copy, self.layout, spec, group, file=file, cure="")
            except CacheCorruptError:
                with self.stage.hold(copy):
                    self.stage.remove(copy, size_bytes=file.size_bytes)
                copy = self.stage.bring(path, file)
        return copy and read_chunks(copy, self.layout, spec, group, file=file, cure="")

    def _drop_copy(self, shard: _Shard, array: str, view: int, sample: int) -> None:
        """Forget a copy in the stage that is damaged or gone, if no other thread has done so."""
        index = sample // self.layout.shard_samples
        with self.stage.hold(shard.chunks.path):
            if self._shards.get((array, view, index)) is shard:
                self.stage.remove(
                    shard.chunks.path, size_bytes=self._files[view, index][array].size_bytes
                )
                del self._shards[array, view, index]

    def describe_damage(self, array: str, view: int, sample: int, what: str) -> CacheCorruptError:
        """The error that names array, view, sample and file."""
        group = self.layout.group(view, sample // self.layout.shard_samples)
        return CacheCorruptError(
            shard_path(self.root, self._specs[array], group),
            f"{self.layout.split}/{array} view {view} sample {self.sample_ids[sample]!r} is damaged: {what}",
            cure=repair_cure(self.root),
        )

    def _learn(self, group: Group, record: CommitRecord) -> None:
        """Keep checksums and files, nothing else: parameters of views would fill the memory. Raises CacheCorruptError."""
        if (
            record.sample_ids != self.sample_ids[group.start : group.stop]
        ):  # the order of samples is taken from view 0
            path = commit_path(self.root, group)
            raise CacheCorruptError(
                path, "sample ids are not those of view 0", cure=repair_cure(self.root)
            )
        self._crcs[group.view, group.index] = {
            name: np.array(crcs, np.uint32) for name, crcs in record.crcs.items()
        }
        self._files[group.view, group.index] = record.files


def read_group_record(root: Place, manifest: Manifest, group: Group) -> CommitRecord:
    """A group's commit record, held against this cache's identity. Raises CacheCorruptError."""
    layout, identity, cure = (
        manifest.layouts[group.split],
        manifest.split_hash(group.split),
        repair_cure(root),
    )
    check_inside(root, commit_path(root, group), cure=cure)
    return read_record(root, layout, group, identity=identity, cure=cure)


def _check_complete(root: Place, manifest: Manifest, groups: list[Group]) -> None:
    there = list_records(root)
    missing = [group for group in groups if commit_path(root, group).name not in there]
    if not missing:
        return
    first = missing[0]
    lost = first.view < manifest.complete_views[first.split]
    state = "has lost shard groups" if lost else "is half-built"
    cure = (
        repair_cure(root)
        if lost
        else "run `python -m cache_teacher` with its settings again to finish it"
    )
    raise CacheIncompleteError(
        f"{root}: cache {state}, {len(groups) - len(missing)} of {len(groups)} shard groups of {first.split} "
        f"are there (first missing: {first.name}); {cure}"
    )
