"""Removes what killed runs left in a cache.

That is: files that kdcache wrote, that no commit record names, and that no process is writing now.
Nothing else is ever removed: a file of another name is not ours, and one that a record names is
data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from kdcache.cache.basis import basis_key, basis_name
from kdcache.cache.layout import (
    MANIFEST,
    Group,
    SplitLayout,
    commit_key,
    metadata_key,
    record_name,
    shard_key,
)
from kdcache.cache.lifecycle import SCORE
from kdcache.cache.lists import Listed
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import has_record, list_records
from kdcache.storage import Storage, open_storage
from kdcache.storage.base import LEASES
from kdcache.storage.lock import Lease


@dataclass(frozen=True)
class Leftover:
    """A file that nobody needs: its key, its name for messages, its size, and what it is."""

    key: str
    path: str
    size_bytes: int
    what: str


def collect_leftovers(place: Storage | str | Path, *, dry_run: bool = False) -> list[Leftover]:
    """Remove what killed runs left; files of groups that a process is writing now stay.

    Args:
        dry_run: only find, remove nothing.

    Returns: what was found.

    Raises: CacheMismatchError if the place holds no cache, CacheCorruptError if its manifest is
        damaged, CacheError if it cannot be changed.
    """
    storage = open_storage(place)
    storage.check_changeable()
    manifest, records, found = read_manifest(storage), list_records(storage), []
    ours, touched = _find_leases(storage, manifest), _find_touched(storage, manifest, records)
    dead = ours - storage.find_held_leases(ours)
    groups = [group for group in _list_groups(manifest) if group.name in dead | touched]
    for group in groups:
        found += _collect_group(storage, manifest, group, dry_run=dry_run)
    for name in sorted(dead - {group.name for group in groups}):
        with nullcontext() if dry_run else storage.take_lease(name):  # its end removes the lease
            found.append(_describe_lease(storage, name))
    documents = _list_documents(storage, manifest)
    with storage.lock(wait=True) if documents and not dry_run else nullcontext():
        found += _collect(storage, documents, dry_run=dry_run)
    return found


def _list_groups(manifest: Manifest) -> Iterator[Group]:
    return (group for layout in manifest.layouts.values() for group in layout.groups())


def _find_touched(storage: Storage, manifest: Manifest, records: set[str]) -> set[str]:
    """Names of the groups that have a file which a killed writer may have left.

    A cache may have a million groups: they are looked at view by view, and where files can be
    unfinished only those are asked about whose folders are there, by one listing for each array.
    """
    touched: set[str] = set()
    for layout in manifest.layouts.values():
        for view in range(layout.num_views):
            groups = (layout.group(view, index) for index in range(layout.groups_per_view))
            if storage.unfinished_key("") is not None:
                groups = _find_begun(storage, layout, groups, view=view, records=records)
            files = {group: _list_files(storage, manifest, group, records) for group in groups}
            there = storage.find_sizes(key for keys in files.values() for key in keys)
            touched |= {group.name for group in files if not there.keys().isdisjoint(files[group])}
    return touched


def _find_begun(
    storage: Storage, layout: SplitLayout, groups: Iterable[Group], *, view: int, records: set[str]
) -> list[Group]:
    """Those of a view's groups that have a folder, or an unfinished record."""
    there: set[str] = set()
    for spec in layout.arrays:
        with suppress(NotADirectoryError):
            there |= storage.list_names(f"{layout.split}/{spec.name}/c/{view}")
    unfinished = {name for name in records if not name.endswith(".json")}
    return [
        group
        for group in groups
        if str(group.index) in there or storage.unfinished_key(record_name(group)) in unfinished
    ]


def _collect_group(
    storage: Storage, manifest: Manifest, group: Group, *, dry_run: bool
) -> list[Leftover]:
    stale = [_describe_lease(storage, group.name)] if _has_lease(storage, group.name) else []
    if dry_run:
        if storage.is_held(group.name):
            return []
        files = _list_files(storage, manifest, group, list_records(storage))
        return stale + _collect(storage, files, dry_run=True)
    with storage.take_lease(group.name) as lease:  # its end removes the lease's file
        if lease is None:
            return []
        records = {record_name(group)} if has_record(storage, group) else set()
        files = _list_files(storage, manifest, group, records)
        return stale + _collect(storage, files, dry_run=False, lease=lease)


def _find_leases(storage: Storage, manifest: Manifest) -> set[str]:
    """Names of leases that kdcache takes; a file of another name is not ours."""
    there = storage.list_names(LEASES)
    ours = {name for name in there if name == SCORE or name.startswith(storage.own_leases)}
    return ours | {group.name for group in _list_groups(manifest) if group.name in there}


def _has_lease(storage: Storage, name: str) -> bool:
    return storage.exists(f"{LEASES}/{name}")


def _describe_lease(storage: Storage, name: str) -> Leftover:
    key = f"{LEASES}/{name}"
    return Leftover(key, storage.name(key), 0, "lease of a dead process")


def _list_files(
    storage: Storage, manifest: Manifest, group: Group, records: set[str]
) -> dict[str, str]:
    """Key -> what it is, of each file that a killed writer of a group may have left.

    Args:
        records: names of the commit records that are there.
    """
    complete = manifest.complete_views[group.split]
    listed = Listed(*manifest.find_lists(group.split))
    is_lost = group.view < complete and listed.count(group.split, group.start, group.stop) > 0
    garbage = record_name(group) not in records and not is_lost
    shards = [shard_key(spec, group) for spec in manifest.layouts[group.split].arrays]
    files = dict.fromkeys(shards, "shard without commit record") if garbage else {}
    return files | _list_unfinished(storage, [*shards, commit_key(group)])


def _list_documents(storage: Storage, manifest: Manifest) -> dict[str, str]:
    """Key -> what it is, of unfinished versions of the manifest, zarr.json files and bases."""
    folders = {"", *manifest.layouts}
    for split, layout in manifest.layouts.items():
        folders |= {f"{split}/{spec.name}" for spec in layout.arrays}
    folders |= {f"train/{basis_name(level)}" for level in manifest.encodings}
    names = (MANIFEST, metadata_key())
    keys = [f"{folder}/{name}".lstrip("/") for folder in sorted(folders) for name in names]
    return _list_unfinished(storage, [*keys, *map(basis_key, manifest.encodings)])


def _list_unfinished(storage: Storage, keys: list[str]) -> dict[str, str]:
    unfinished = filter(None, map(storage.unfinished_key, keys))
    return dict.fromkeys(unfinished, "unfinished file")


def _collect(
    storage: Storage, files: dict[str, str], *, dry_run: bool, lease: Lease | None = None
) -> list[Leftover]:
    sizes = storage.find_sizes(files)
    found = [Leftover(key, storage.name(key), sizes[key], files[key]) for key in sizes]
    for leftover in found:
        storage.check_inside(leftover.key.rpartition("/")[0], cure="remove the link")
    for leftover in found if not dry_run else ():
        if lease is not None:
            lease.check()
        storage.remove(leftover.key)
    return found
