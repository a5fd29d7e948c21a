"""Removes what killed runs left in a cache.

That is: files that kdcache wrote, that no commit record names, and that no process is writing now.
Nothing else is ever removed: a file of another name is not ours, and one that a record names is
data.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from kdcache.cache.basis import basis_key, basis_name
from kdcache.cache.layout import MANIFEST, Group, commit_key, metadata_key, record_name, shard_key
from kdcache.cache.lifecycle import SCORE
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
    groups = [group for layout in manifest.layouts.values() for group in layout.groups()]
    ours = _find_leases(storage, {group.name for group in groups})
    dead = ours - storage.find_held_leases(ours)
    files = {group: _list_files(storage, manifest, group, records) for group in groups}
    there = storage.find_sizes(key for keys in files.values() for key in keys)
    for group in groups:
        if group.name in dead or not there.keys().isdisjoint(files[group]):
            found += _collect_group(storage, manifest, group, dry_run=dry_run)
    for name in sorted(dead - {group.name for group in groups}):
        with nullcontext() if dry_run else storage.take_lease(name):  # its end removes the lease
            found.append(_describe_lease(storage, name))
    documents = _list_documents(storage, manifest)
    with storage.lock(wait=True) if documents and not dry_run else nullcontext():
        found += _collect(storage, documents, dry_run=dry_run)
    return found


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


def _find_leases(storage: Storage, groups: set[str]) -> set[str]:
    """Names of leases that kdcache takes; a file of another name is not ours."""
    return {
        name
        for name in storage.list_names(LEASES)
        if name in groups or name == SCORE or name.startswith(storage.own_leases)
    }


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
    garbage = record_name(group) not in records and group.view >= complete  # else it was lost
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
