"""What killed runs left in a cache: files that kdcache wrote, that no commit record names and that nobody is writing now.

Nothing else is ever removed: a file of another name is not ours, a file that a record names is data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

from kdcache import durable
from kdcache.cache.basis import basis_name, basis_path
from kdcache.cache.layout import Group, commit_path, metadata_path, shard_path
from kdcache.cache.lease import SCORE, Lease, is_held, lease_path, take_lease
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import has_record
from kdcache.cache.shard import check_inside
from kdcache.storage.lock import hold_folder


@dataclass(frozen=True)
class Leftover:
    """A file that nobody needs, its size, and what it is."""

    path: Path
    size_bytes: int
    what: str


@singledispatch
def collect_leftovers(root: Path, *, dry_run: bool = False) -> list[Leftover]:
    """Remove what killed runs left; files of groups that a process is writing now stay.

    Args:
        dry_run: only find.

    Returns: what was found. Raises: CacheMismatchError where `root` is no cache, CacheCorruptError where its manifest is damaged.
    """
    manifest, found = read_manifest(root), []
    for layout in manifest.layouts.values():
        for group in layout.groups():
            found += _collect_group(root, manifest, group, dry_run=dry_run)
    found += _collect_score_lease(root, dry_run=dry_run)
    with nullcontext() if dry_run else hold_folder(root, wait=True):
        found += _collect(root, _find_document_partials(root, manifest), dry_run=dry_run)
    return found


def _collect_group(
    root: Path, manifest: Manifest, group: Group, *, dry_run: bool
) -> list[Leftover]:
    stale = _find_lease(root, group.name)
    if not stale and not list(_find_group_files(root, manifest, group)):
        return []
    if dry_run:
        held = is_held(root, group.name)
        return (
            []
            if held
            else stale + _collect(root, _find_group_files(root, manifest, group), dry_run=True)
        )
    with take_lease(root, group.name) as lease:  # which removes its file in the end
        if lease is None:
            return []
        return stale + _collect(
            root, _find_group_files(root, manifest, group), dry_run=False, lease=lease
        )


def _collect_score_lease(root: Path, *, dry_run: bool) -> list[Leftover]:
    stale = _find_lease(root, SCORE)
    if not stale or is_held(root, SCORE):
        return []
    with nullcontext() if dry_run else take_lease(root, SCORE):
        return stale


def _find_lease(root: Path, name: str) -> list[Leftover]:
    path = lease_path(root, name)
    return [Leftover(path, 0, "lease of a dead process")] if path.exists() else []


def _find_group_files(root: Path, manifest: Manifest, group: Group) -> Iterator[Leftover]:
    garbage = (
        not has_record(root, group) and group.view >= manifest.complete_views[group.split]
    )  # else its record was lost
    for spec in manifest.layouts[group.split].arrays:
        path = shard_path(root, spec, group)
        if garbage:
            yield from _describe(path, "shard without commit record")
        yield from _find_partials(path)
    yield from _find_partials(commit_path(root, group))


def _find_document_partials(root: Path, manifest: Manifest) -> Iterator[Leftover]:
    """Of the manifest, every zarr.json and every basis."""
    folders = {root, *(metadata_path(root, split).parent for split in manifest.layouts)}
    folders |= {
        root / split / spec.name
        for split, layout in manifest.layouts.items()
        for spec in layout.arrays
    }
    bases = [basis_path(root, level) for level in manifest.encodings]
    folders |= {
        metadata_path(root, "train", basis_name(level)).parent for level in manifest.encodings
    }
    for path in [
        *(folder / name for folder in sorted(folders) for name in ("manifest.json", "zarr.json")),
        *bases,
    ]:
        yield from _find_partials(path)


def _find_partials(path: Path) -> Iterator[Leftover]:
    return _describe(durable.partial_path(path), "unfinished file")


def _describe(path: Path, what: str) -> Iterator[Leftover]:
    with suppress(FileNotFoundError):  # a writer may have given it its name meanwhile
        if path.is_file():
            yield Leftover(path, path.lstat().st_size, what)


def _collect(
    root: Path, leftovers: Iterator[Leftover], *, dry_run: bool, lease: Lease | None = None
) -> list[Leftover]:
    found = list(leftovers)
    for leftover in found:
        check_inside(root, leftover.path.parent, cure="remove the link")
    for leftover in found if not dry_run else ():
        if lease is not None:
            lease.check()
        durable.remove(leftover.path)
        durable.sync_folder(leftover.path.parent)
    return found
