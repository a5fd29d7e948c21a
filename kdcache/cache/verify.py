"""Finds damage in a cache; changes nothing, prints nothing.

Checking the structure compares documents, sizes, shard indices, and each chunk's stored checksum
with the commit record: a few bytes are read for each chunk. Checking the data reads every byte, and
compares each chunk's crc32c and each file's sha256.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdcache.cache.basis import basis_key, read_bases
from kdcache.cache.index import read_group_record
from kdcache.cache.layout import CRC_BYTES, ArraySpec, Group, SplitLayout, commit_key, shard_key
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import CommitRecord, find_committed
from kdcache.cache.shards import Chunks, crc32c, find_chunks, list_tail
from kdcache.cache.zarr_metadata import check_document, list_metadata
from kdcache.errors import CacheCorruptError, refuse
from kdcache.progress import Progress, Silent
from kdcache.storage import Storage, open_storage

VERIFY_THREADS = 2
Choose = Callable[[list[Group]], list[Group]]


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was committed.

    group: None for a zarr.json or a basis. array, sample_id: None if a whole file is damaged.
    """

    key: str
    what: str
    group: Group | None = None
    array: str | None = None
    sample_id: str | None = None


@dataclass
class Findings:
    """What verifying found.

    damage: in the order of groups.
    unwritten: groups that phase one has still to write; this is no damage.
    num_groups: committed groups that were checked.
    data: whether data were to be read. num_bytes: how many bytes of data were read.
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
    storage: Storage | str | Path,
    *,
    data: bool = False,
    choose: Choose = lambda groups: groups,
    progress: Progress | None = None,
) -> Findings:
    """Check a whole cache.

    Args:
        data: also read every byte of the chosen groups.
        choose: picks those of the committed groups whose data are read; the structure of all
            groups is always checked.

    Raises: CacheMismatchError if it is no cache, CacheCorruptError if its manifest is damaged.
    """
    storage = open_storage(storage)
    manifest, findings = read_manifest(storage), Findings(data=data)
    # views may have been added after the manifest was read, so damage is looked for twice
    if list(_find_metadata_damage(storage, manifest)):
        manifest = read_manifest(storage)
        findings.damage += _find_metadata_damage(storage, manifest)
    groups = [group for layout in manifest.layouts.values() for group in layout.groups()]
    committed = find_committed(storage, groups)
    _sort_missing(storage, manifest, set(groups) - set(committed), findings)
    chosen = set(choose(committed)) if data else set()
    with (
        (progress or Silent()).start("verifying", total=len(committed), unit="groups") as bar,
        ThreadPoolExecutor(storage.num_threads(VERIFY_THREADS)) as pool,
    ):
        checks = pool.map(
            lambda group: check_group(storage, manifest, group, data=group in chosen), committed
        )
        first_ids: dict[tuple[str, int], list[str]] = {}
        for group, (damage, num_bytes, ids) in zip(committed, checks, strict=True):
            findings.damage += damage
            if ids and first_ids.setdefault((group.split, group.index), ids) != ids:
                findings.damage.append(
                    Damage(commit_key(group), "sample ids are not those of other views", group)
                )
            findings.num_groups += 1
            findings.num_bytes += num_bytes
            bar.advance(1, size_bytes=num_bytes)
    return findings


def choose_subset(text: str | None) -> Choose:
    """Parse --subset into a function that picks some of a list of groups.

    "5%" picks another random share at every call, "2/7" always the second of seven parts, and None
    picks all. Raises SettingsError for anything else.
    """
    if text is None:
        return lambda groups: groups
    share, part = (
        re.fullmatch(r"(\d+(?:\.\d+)?)%", text),
        re.fullmatch(r"(\d{1,9})/(\d{1,9})", text),
    )
    if share and 0 < float(share[1]) <= 100:
        return lambda groups: _draw(groups, float(share[1]) / 100)
    if part and 1 <= int(part[1]) <= int(part[2]):
        return lambda groups: groups[int(part[1]) - 1 :: int(part[2])]
    raise refuse("--subset", text, "a share above 0% up to 100%, or N/T with N from 1 to T")


def _draw(groups: list[Group], share: float) -> list[Group]:
    """Drawn with the system's randomness, so that repeated checks come to see every group."""
    return random.SystemRandom().sample(groups, math.ceil(len(groups) * share))


def _find_metadata_damage(storage: Storage, manifest: Manifest) -> Iterator[Damage]:
    for document in list_metadata(manifest):
        try:
            check_document(storage, document)
        except CacheCorruptError as error:
            yield Damage(document.key, error.what)
    for level, encoding in manifest.encodings.items():
        try:
            read_bases(storage, {level: encoding})
        except CacheCorruptError as error:
            yield Damage(basis_key(level), error.what)


def _sort_missing(
    storage: Storage, manifest: Manifest, missing: set[Group], findings: Findings
) -> None:
    """Missing records are damage in views that were complete once, else not written yet.

    Nobody misses those of samples that are not listed.
    """
    needed = {group for part in manifest.layouts for group in manifest.list_groups(part)}
    for group in sorted(missing & needed):
        if group.view < manifest.complete_views[group.split]:
            findings.damage.append(Damage(commit_key(group), "commit record is missing", group))
        else:
            findings.unwritten.append(group)


def check_group(
    storage: Storage, manifest: Manifest, group: Group, *, data: bool
) -> tuple[list[Damage], int, list[str]]:
    """Check one committed group.

    Args:
        data: also read every byte.

    Returns: its damage, the number of bytes of data that were read, and its sample ids ([] if its
        record is damaged).
    """
    layout = manifest.layouts[group.split]
    try:
        record = read_group_record(storage, manifest, group)
    except CacheCorruptError as error:
        return [Damage(commit_key(group), error.what, group)], 0, []
    damage, num_bytes = [], 0
    for spec in layout.arrays:
        flaws = _check_shard(storage, layout, spec, group, record, data=data)
        key = shard_key(spec, group)
        damage += [Damage(key, what, group, spec.name, sample_id) for what, sample_id in flaws]
        num_bytes += record.files[spec.name].size_bytes if data else 0
    return damage, num_bytes, record.sample_ids


def _check_shard(
    storage: Storage,
    layout: SplitLayout,
    spec: ArraySpec,
    group: Group,
    record: CommitRecord,
    *,
    data: bool,
) -> list[tuple[str, str | None]]:
    """(what is wrong, id of the sample or None for the whole file), for one shard file."""
    file, total = record.files[spec.name], hashlib.sha256()
    try:
        chunks = find_chunks(storage, layout, spec, group, file=file, cure="")
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
    """Read four bytes a chunk: they reveal a swapped or stale chunk, but no bit flipped in it."""
    stored = np.empty(1, "<u4")
    with chunks.storage.open_file(chunks.key) as opened:
        for id, crc, (offset, size) in (
            _zip_chunks(spec, record, chunks) if chunks.checksums else ()
        ):
            if opened.read_into(offset + size, [stored]) != CRC_BYTES or stored[0] != crc:
                yield "stored checksum differs from the commit record", id


def _compare_data(
    chunks: Chunks,
    spec: ArraySpec,
    record: CommitRecord,
    total: hashlib._Hash,
    *,
    shard_samples: int,
) -> Iterator[tuple[str, str]]:
    """Compare every chunk with the record, and hash every byte of the shard file into `total`.

    What a packed cache leaves out of the shard file is computed.
    """
    room = np.empty(max(chunks.places[:, 1].tolist()), np.uint8)
    tail = list_tail(chunks.places[:, 1].tolist(), shard_samples=shard_samples)
    with chunks.storage.open_file(chunks.key) as opened:
        for id, crc, (offset, size) in _zip_chunks(spec, record, chunks):
            chunk, follower = room[:size], np.array([crc], "<u4")
            opened.read_into(offset, [chunk, follower] if chunks.checksums else [chunk])
            total.update(chunk)
            total.update(follower)
            if crc32c(chunk) != crc:
                yield "its bytes differ from the commit record's checksum", id
            elif follower[0] != crc:
                yield "stored checksum differs from the commit record", id
    for part in tail:  # `find_chunks` has compared the index with the sizes
        total.update(part)


def _zip_chunks(
    spec: ArraySpec, record: CommitRecord, chunks: Chunks
) -> Iterator[tuple[str, int, list[int]]]:
    """Id, committed checksum, (offset, size) of each chunk."""
    return zip(record.sample_ids, record.crcs[spec.name], chunks.places.tolist(), strict=True)
