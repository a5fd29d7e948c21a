"""What killed runs left in a bucket, by the rules of a folder: what kdcache wrote, no record names and nobody writes now."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from kdcache.cache.layout import LEASES, Group, commit_path, shard_path
from kdcache.cache.lease import lease_path, take_lease
from kdcache.cache.leftovers import Leftover, collect_leftovers
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.objects.lease import LOST_S, is_alive
from kdcache.objects.path import ObjectPath

log = logging.getLogger("kdcache")


@collect_leftovers.register(ObjectPath)
def collect_from_bucket(root: ObjectPath, *, dry_run: bool = False) -> list[Leftover]:
    """As `kdcache.cache.leftovers.collect_leftovers`; where leases lie, it watches them for a while to know the dead."""
    manifest, sizes = read_manifest(root), dict(root.walk())
    leases = [path for path in sizes if path.parent == root / LEASES]
    alive = _watch(leases)
    found = [
        Leftover(path, sizes[path], "lease of a dead process")
        for path in leases
        if path not in alive
    ]
    for group in _find_unwritten(root, manifest, sizes):
        if lease_path(root, group.name) not in alive:
            found += _collect_group(root, manifest, group, sizes, dry_run=dry_run)
    for leftover in found if not dry_run else ():
        if leftover.path in leases and leftover.path.exists() and not is_alive(leftover.path):
            leftover.path.remove()
    return found


def _watch(leases: list[ObjectPath]) -> set[ObjectPath]:
    """Those whose holders live: their tags change."""
    if not [path for path in leases if is_alive(path)]:
        return set()
    log.warning(
        "%d leases are looked at for %g s: those that do not change are of dead processes",
        len(leases),
        LOST_S,
    )
    time.sleep(LOST_S)
    return {path for path in leases if is_alive(path)}


def _find_unwritten(
    root: ObjectPath, manifest: Manifest, sizes: dict[ObjectPath, int]
) -> Iterator[Group]:
    """Groups without record that were never complete: what is there of them is garbage."""
    for split, layout in manifest.layouts.items():
        for group in layout.groups():
            if (
                group.view >= manifest.complete_views[split]
                and commit_path(root, group) not in sizes
            ):
                yield group


def _collect_group(
    root: ObjectPath,
    manifest: Manifest,
    group: Group,
    sizes: dict[ObjectPath, int],
    *,
    dry_run: bool,
) -> list[Leftover]:
    paths = [shard_path(root, spec, group) for spec in manifest.layouts[group.split].arrays]
    found = [
        Leftover(path, sizes[path], "shard without commit record")
        for path in paths
        if path in sizes
    ]
    if dry_run or not found:
        return found
    with take_lease(root, group.name) as lease:
        if lease is None or commit_path(root, group).exists():
            return []
        for leftover in found:
            lease.check()
            leftover.path.remove()
    return found
