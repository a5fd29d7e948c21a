"""Writes whole shard groups: one owner each, commit record last."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.cache import durable
from kdcache.cache.layout import Group, SplitLayout, commit_path, shard_path
from kdcache.cache.lease import Lease
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import CommitRecord, write_record
from kdcache.cache.shard import check_inside, crc32c, write_shard
from kdcache.errors import CacheError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class GroupContents:
    """What a shard group holds.

    arrays: name -> contiguous [samples, *item_shape] of the array's dtype.
    ids: of the samples, in order. views: the parameters each was drawn with.
    """

    arrays: dict[str, np.ndarray]
    ids: list[str]
    views: list[dict]


def write_group(
    root: Path,
    manifest: Manifest,
    group: Group,
    *,
    contents: GroupContents,
    lease: Lease,
) -> None:
    """Write all arrays of one shard group that has no record, flush them, read them back, then commit.

    Args:
        contents: of the whole group.
        lease: of this group; checked before each step that others could see.

    Raises: CacheError where the disk refuses, LeaseLostError; committed groups stay.
    """
    layout = manifest.layouts[group.split]
    crcs = {spec.name: [crc32c(item) for item in contents.arrays[spec.name]] for spec in layout.arrays}
    paths = {spec.name: shard_path(root, spec, group) for spec in layout.arrays}
    check_inside(root, commit_path(root, group).parent, cure="remove the link")
    try:
        files = {}
        for name, path in paths.items():
            lease.check()
            check_inside(root, path.parent, cure="remove the link")
            durable.make_folders(path.parent, below=root)
            files[name] = write_shard(
                durable.partial_path(path), contents.arrays[name], crcs[name], shard_samples=layout.shard_samples
            )
        for path in paths.values():
            lease.check()
            durable.rename(durable.partial_path(path), path)
            durable.sync_folder(path.parent)
        lease.check()
        identity = manifest.split_hash(group.split)
        write_record(root, group, CommitRecord(identity, contents.ids, files, crcs, contents.views))
    except OSError as error:
        lease.check()  # without it the files are another writer's, and so is the error
        _remove_partials([*paths.values(), commit_path(root, group)])
        raise CacheError(_explain(root, layout, group, error)) from None


def retract_group(root: Path, group: Group, *, lease: Lease) -> None:
    """Take back a group's commit record, damaged or not: from here on the group counts as not written."""
    path = commit_path(root, group)
    check_inside(root, path.parent, cure="remove the link")
    lease.check()
    try:
        durable.remove(path)
        durable.sync_folder(path.parent)
    except OSError as error:
        raise CacheError(
            f"{path}: commit record cannot be removed ({error.strerror}); remove it and repair again"
        ) from None


def _remove_partials(paths: list[Path]) -> None:
    """What a full disk did not hold must not fill it further."""
    for path in paths:
        with suppress(OSError):
            durable.remove(durable.partial_path(path))


def _explain(root: Path, layout: SplitLayout, group: Group, error: OSError) -> str:
    what = f"{root}: shard group {group.name} cannot be written ({error.strerror})"
    if error.errno in _FULL:
        free = shutil.disk_usage(root).free
        what += f", it needs {layout.group_bytes(group)} bytes and {free} are free here"
    return f"{what}; mend that and run `python -m cache_teacher` again, what is committed is kept"
