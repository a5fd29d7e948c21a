"""Removes samples that no list of a cache names any more; asks no teacher.

Samples that share a shard group with such are copied into a new part first. A stop at any time
loses nothing: until all copies are committed the list names the rows of before, and only groups
without a listed sample are removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdcache.cache.flat import find_rows
from kdcache.cache.layout import ArraySpec, Group, find_role, shard_key
from kdcache.cache.lifecycle import complete_views, find_missing_groups
from kdcache.cache.lists import Listed, Listing, Part, hash_lines, join_rows, name_part
from kdcache.cache.manifest import Manifest, read_manifest, write_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.records import CommitRecord, find_committed, has_record
from kdcache.cache.writer import Files, retract_group, write_chunks
from kdcache.cache.zarr_metadata import write_metadata
from kdcache.errors import CacheError
from kdcache.progress import Progress, Silent
from kdcache.storage import Storage, open_storage
from kdcache.storage.base import explain_refusal

_AGAIN = "run it again while nothing else changes the cache"


@dataclass(frozen=True)
class Unlisted:
    """What was removed, or would be.

    num_samples: that are not listed. num_copied: listed ones that shared a shard group with such.
    size_bytes: of the shard files, less those of the copies.
    """

    num_samples: int
    num_copied: int
    size_bytes: int


def collect_unlisted(
    place: Storage | str | Path, *, dry_run: bool = False, progress: Progress | None = None
) -> Unlisted:
    """Remove the samples that are not listed; nothing may train on the cache meanwhile.

    Args:
        dry_run: only find, change nothing.

    Raises: CacheError, also if phase one has not finished a list.
    """
    storage = open_storage(place)
    storage.check_changeable()
    manifest = read_manifest(storage)
    _check_settled(storage, manifest)
    holders = _find_holders(storage, manifest)
    found = _measure(storage, manifest, holders)
    if dry_run or not holders:
        return found
    manifest = _plan_copies(storage, manifest, holders)
    _copy_groups(storage, manifest, progress or Silent())
    manifest = complete_views(storage)
    for group in _find_holders(storage, manifest):
        _remove_group(storage, manifest, group)
    _forget(storage)
    return found


def count_unlisted(place: Storage | str | Path) -> int:
    """How many stored samples are in no list. Raises CacheError."""
    storage = open_storage(place)
    manifest = read_manifest(storage)
    listed = _find_listed(manifest)
    return sum(
        group.stop - group.start - listed.count(group.split, group.start, group.stop)
        for group in _find_holders(storage, manifest)
        if group.view == 0
    )


def _check_settled(storage: Storage, manifest: Manifest) -> None:
    """Raise CacheError if a list is growing; that of a command like this is finished by it."""
    for split, listing in manifest.growing.items():
        if listing.sha256 != manifest.find_list(split).sha256:
            cure = "finish that with `python -m cache_teacher` and its settings first"
            raise CacheError(
                f"{storage}: {split} is growing to {listing.num_samples} samples; {cure}"
            )


def _find_holders(storage: Storage, manifest: Manifest) -> list[Group]:
    """The committed groups, of each view, that hold a sample which is not listed."""
    groups = (group for part in manifest.parts for group in manifest.layouts[part].groups())
    listed = _find_listed(manifest)
    return [
        group
        for group in find_committed(storage, groups)
        if listed.count(group.split, group.start, group.stop) < group.stop - group.start
    ]


def _find_listed(manifest: Manifest) -> Listed:
    return Listed(*map(manifest.find_list, {find_role(part) for part in manifest.parts}))


def _measure(storage: Storage, manifest: Manifest, holders: list[Group]) -> Unlisted:
    listed, size_bytes, gone, copied = _find_listed(manifest), 0.0, 0, 0
    for group in holders:
        specs = manifest.layouts[group.split].arrays
        stored = storage.sum_sizes(shard_key(spec, group) for spec in specs)
        count = group.stop - group.start
        kept = listed.count(group.split, group.start, group.stop)
        size_bytes += stored * (count - kept) / count
        gone += count - kept if group.view == 0 else 0
        copied += kept if group.view == 0 else 0
    return Unlisted(gone, copied, round(size_bytes))


def _plan_copies(storage: Storage, manifest: Manifest, holders: list[Group]) -> Manifest:
    """The manifest, as it is now on disk, with new parts for the listed samples of `holders`.

    Raises: CacheError.
    """
    planned, crowded = manifest, {(group.split, group.index) for group in holders}
    for split in {find_role(part) for part in manifest.parts} - manifest.growing.keys():
        planned = _plan_part(planned, split, crowded)
    if planned == manifest:
        return manifest
    with explain_refusal(storage), storage.lock(wait=True):
        if read_manifest(storage) != manifest:
            raise CacheError(f"{storage}: manifest was changed by another process; {_AGAIN}")
        added = tuple(part for part in planned.layouts if part not in manifest.layouts)
        write_metadata(storage, planned, splits=added, replace=True)
        write_manifest(storage, planned)
    return planned


def _plan_part(manifest: Manifest, split: str, crowded: set[tuple[str, int]]) -> Manifest:
    """The manifest with a part for the samples of today in groups that are `crowded`.

    It is `manifest` itself if there are none, or their contents are not noted.
    """
    listing, size = manifest.find_list(split), manifest.layouts[split].shard_samples
    rows = list(listing.rows())
    moved = [row for row in rows if (row[0], row[1] // size) in crowded]
    lines = _read_lines(manifest, moved)
    if not moved or None in lines:
        return manifest
    part = name_part(split, manifest.layouts)
    place = {row: (part, number) for number, row in enumerate(moved)}
    ranges = join_rows(place.get(row, row) for row in rows)
    grid = replace(manifest.listed[split], split=part, num_samples=len(moved))
    return replace(
        manifest,
        layouts={**manifest.layouts, part: grid},
        complete_views={**manifest.complete_views, part: 0},
        growing={**manifest.growing, split: Listing(listing.sha256, ranges)},
        parts={**manifest.parts, part: Part(hash_lines(lines), tuple(lines))},
    )


def _read_lines(manifest: Manifest, rows: list[tuple[str, int]]) -> list[str | None]:
    """What the manifest notes of rows."""
    noted = {part: one.samples for part, one in manifest.parts.items()}
    return [noted[part][row] if noted[part] else None for part, row in rows]


def _copy_groups(storage: Storage, manifest: Manifest, progress: Progress) -> None:
    """Write the missing groups of growing lists from rows of the lists of before.

    Raises: CacheError, also if the stored bytes are damaged.
    """
    missing = [
        group
        for split, listing in manifest.growing.items()
        for part in listing.parts
        for group in find_missing_groups(storage, manifest, part)
    ]
    with progress.start("copying", total=len(missing), unit="groups") as bar:
        for split in manifest.growing if missing else ():
            reader = CacheReader(storage, manifest, split, check="always")
            lines = _read_lines(manifest, list(manifest.find_list(split).rows()))
            number = {line: sample for sample, line in enumerate(lines)}
            for group in (group for group in missing if group.role == split):
                wanted = manifest.parts[group.split].samples[group.start : group.stop]
                _copy_group(storage, manifest, reader, group, [number[line] for line in wanted])
                bar.advance(1)


def _copy_group(
    storage: Storage, manifest: Manifest, reader: CacheReader, group: Group, samples: list[int]
) -> None:
    """Write a group of the samples of these numbers in the list."""
    rows = find_rows(reader, group.view, samples)

    def read_chunks(spec: ArraySpec) -> list[np.ndarray]:
        return [reader.read_stored(spec.name, group.view, n).copy() for n in samples]

    def make_record(files: Files, crcs: dict[str, list[int]]) -> CommitRecord:
        ids = [record.sample_ids[row] for record, row in rows]
        views = [record.views[row] for record, row in rows]
        return CommitRecord(manifest.split_hash(group.split), ids, files, crcs, views)

    with storage.take_lease(group.name, wait=True) as lease:
        if not has_record(storage, group):
            layout = manifest.layouts[group.split]
            write_chunks(
                storage, layout, group, chunks=read_chunks, record=make_record, lease=lease
            )


def _remove_group(storage: Storage, manifest: Manifest, group: Group) -> None:
    """Remove a group without a listed sample: its record, then its files. Raises CacheError."""
    if _find_listed(manifest).count(group.split, group.start, group.stop):
        return  # its samples could not be copied
    with explain_refusal(storage), storage.take_lease(group.name) as lease:
        if lease is None:
            holder = storage.read_holder(group.name)
            raise CacheError(f"{storage}: {holder} writes shard group {group.name}; {_AGAIN}")
        retract_group(storage, group, lease=lease)
        for spec in manifest.layouts[group.split].arrays:
            lease.check()
            storage.remove(shard_key(spec, group))


def _forget(storage: Storage) -> None:
    """Take what is noted of removed samples out of the manifest. Raises CacheError."""
    with explain_refusal(storage), storage.lock(wait=True):
        manifest = read_manifest(storage)
        kept = {
            part: set(_list_kept(storage, manifest, part))
            for part, one in manifest.parts.items()
            if one.samples
        }
        parts = {
            part: replace(
                manifest.parts[part],
                samples=tuple(
                    line if row in rows else None
                    for row, line in enumerate(manifest.parts[part].samples)
                ),
            )
            for part, rows in kept.items()
        }
        write_manifest(storage, replace(manifest, parts={**manifest.parts, **parts}))


def _list_kept(storage: Storage, manifest: Manifest, part: str) -> Iterator[int]:
    """The rows of a part that are stored, or will be."""
    layout = manifest.layouts[part]
    groups = [layout.group(0, index) for index in range(layout.groups_per_view)]
    for group in {*find_committed(storage, groups), *manifest.list_groups(part)}:
        yield from range(group.start, group.stop)
