"""Finds what is damaged in a cache; changes nothing, prints nothing.

By structure: documents, sizes, indices, and each chunk's stored checksum against its commit record, a few bytes a chunk. By data:
every byte, against each chunk's crc32c and each file's sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdcache.cache.basis import basis_path, read_bases
from kdcache.cache.chunks import Chunks, find_chunks
from kdcache.cache.index import FAR_THREADS, read_group_record
from kdcache.cache.layout import CRC_BYTES, ArraySpec, Group, SplitLayout, commit_path, shard_path
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.metadata import check_document, list_metadata
from kdcache.cache.records import CommitRecord, find_committed
from kdcache.cache.shard import crc32c, list_tail, open_plain, read_at
from kdcache.errors import CacheCorruptError
from kdcache.progress import Progress, Silent
from kdcache.storage.place import is_far

VERIFY_THREADS = 2
Choose = Callable[[list[Group]], list[Group]]


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was committed; `group` is None for a zarr.json or a basis, `sample_id` for a whole file."""

    path: Path
    what: str
    group: Group | None = None
    array: str | None = None
    sample_id: str | None = None


@dataclass
class Findings:
    """What verifying found.

    damage: in the order of groups. unwritten: groups that phase one has still to write, no damage.
    num_groups: committed groups looked at. data: whether data were to be read. num_bytes: how many bytes were.
    """

    damage: list[Damage] = field(default_factory=list)
    unwritten: list[Group] = field(default_factory=list)
    num_groups: int = 0
    data: bool = False
    num_bytes: int = 0

    @property
    def damaged_groups(self) -> list[Group]:
        """Groups to be recomputed, each once."""
        return sorted({damage.group for damage in self.damage if damage.group is not None})


def verify_cache(
    root: Path,
    *,
    data: bool = False,
    choose: Choose = lambda groups: groups,
    progress: Progress | None = None,
) -> Findings:
    """Look at a whole cache.

    Args:
        data: read every byte of the chosen groups, too.
        choose: which of the committed groups' data are read; structure is always checked everywhere.

    Raises: CacheMismatchError where `root` is no cache, CacheCorruptError where its manifest is damaged.
    """
    manifest, findings = read_manifest(root), Findings(data=data)
    if list(
        _find_metadata_damage(root, manifest)
    ):  # or views were added between reading the one and the other
        manifest = read_manifest(root)
        findings.damage += _find_metadata_damage(root, manifest)
    groups = [group for layout in manifest.layouts.values() for group in layout.groups()]
    committed = find_committed(root, groups)
    _sort_missing(root, manifest, set(groups) - set(committed), findings)
    chosen = set(choose(committed)) if data else set()
    with (
        (progress or Silent()).start("verifying", total=len(committed), unit="groups") as bar,
        ThreadPoolExecutor(FAR_THREADS if is_far(root) else VERIFY_THREADS) as pool,
    ):
        checks = pool.map(
            lambda group: check_group(root, manifest, group, data=group in chosen), committed
        )
        first_ids: dict[tuple[str, int], list[str]] = {}
        for group, (damage, num_bytes, ids) in zip(committed, checks, strict=True):
            findings.damage += damage
            if ids and first_ids.setdefault((group.split, group.index), ids) != ids:
                findings.damage.append(
                    Damage(
                        commit_path(root, group), "sample ids are not those of other views", group
                    )
                )
            findings.num_groups += 1
            findings.num_bytes += num_bytes
            bar.advance(1, size_bytes=num_bytes)
    return findings


def _find_metadata_damage(root: Path, manifest: Manifest) -> Iterator[Damage]:
    for document in list_metadata(root, manifest):
        try:
            check_document(root, document)
        except CacheCorruptError as error:
            yield Damage(document.path, error.what)
    for level, encoding in manifest.encodings.items():
        try:
            read_bases(root, {level: encoding})
        except CacheCorruptError as error:
            yield Damage(basis_path(root, level), error.what)


def _sort_missing(root: Path, manifest: Manifest, missing: set[Group], findings: Findings) -> None:
    """A record that is not there is a loss in views that were complete once, else work to do."""
    for group in sorted(missing):
        if group.view < manifest.complete_views[group.split]:
            findings.damage.append(
                Damage(commit_path(root, group), "commit record is missing", group)
            )
        else:
            findings.unwritten.append(group)


def check_group(
    root: Path, manifest: Manifest, group: Group, *, data: bool
) -> tuple[list[Damage], int, list[str]]:
    """Damage of one committed group, how many bytes of data were read, and its sample ids."""
    layout = manifest.layouts[group.split]
    try:
        record = read_group_record(root, manifest, group)
    except CacheCorruptError as error:
        return [Damage(commit_path(root, group), error.what, group)], 0, []
    damage, num_bytes = [], 0
    for spec in layout.arrays:
        flaws = _check_shard(root, layout, spec, group, record, data=data)
        path = shard_path(root, spec, group)
        damage += [Damage(path, what, group, spec.name, sample_id) for what, sample_id in flaws]
        num_bytes += record.files[spec.name].size_bytes if data else 0
    return damage, num_bytes, record.sample_ids


def _check_shard(
    root: Path,
    layout: SplitLayout,
    spec: ArraySpec,
    group: Group,
    record: CommitRecord,
    *,
    data: bool,
) -> list[tuple[str, str | None]]:
    """What is wrong with one shard file, and with which sample (None: the whole file)."""
    file, total = record.files[spec.name], hashlib.sha256()
    try:
        chunks = find_chunks(root, layout, spec, group, file=file, cure="")
        if not data:
            return list(_compare_stored_checksums(chunks, spec, record))
        flaws = list(_compare_data(chunks, spec, record, total, shard_samples=layout.shard_samples))
    except CacheCorruptError as error:
        return [(error.what, None)]
    except OSError as error:
        return [(f"file is unreadable ({error.strerror})", None)]
    if not flaws and total.hexdigest() != file.sha256:
        return [("its sha256 differs from the commit record", None)]
    return flaws


def _compare_stored_checksums(
    chunks: Chunks, spec: ArraySpec, record: CommitRecord
) -> Iterator[tuple[str, str]]:
    """Four bytes a chunk: they tell a swapped or stale chunk, but no flipped bit in its data."""
    stored = np.empty(1, "<u4")
    with open_plain(chunks.path) as descriptor:
        for id, crc, (offset, size) in (
            _zip_chunks(spec, record, chunks) if chunks.checksums else ()
        ):
            if read_at(descriptor, offset + size, [stored]) != CRC_BYTES or stored[0] != crc:
                yield "stored checksum differs from the commit record", id


def _compare_data(
    chunks: Chunks,
    spec: ArraySpec,
    record: CommitRecord,
    total: hashlib._Hash,
    *,
    shard_samples: int,
) -> Iterator[tuple[str, str]]:
    """Every chunk against the record, every byte of the shard file into `total`; what a packed cache leaves out is made."""
    room = np.empty(max(chunks.places[:, 1].tolist()), np.uint8)
    tail = list_tail(chunks.places[:, 1].tolist(), shard_samples=shard_samples)
    with open_plain(chunks.path) as descriptor:
        for id, crc, (offset, size) in _zip_chunks(spec, record, chunks):
            chunk, follower = room[:size], np.array([crc], "<u4")
            read_at(descriptor, offset, [chunk, follower] if chunks.checksums else [chunk])
            total.update(chunk)
            total.update(follower)
            if crc32c(chunk) != crc:
                yield "its bytes differ from the commit record's checksum", id
            elif follower[0] != crc:
                yield "stored checksum differs from the commit record", id
    for part in tail:  # compared when the chunks were found
        total.update(part)


def _zip_chunks(
    spec: ArraySpec, record: CommitRecord, chunks: Chunks
) -> Iterator[tuple[str, int, list[int]]]:
    """Id, committed checksum, (offset, size) of each chunk."""
    return zip(record.sample_ids, record.crcs[spec.name], chunks.places.tolist(), strict=True)
