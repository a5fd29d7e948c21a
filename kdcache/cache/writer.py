"""Writes whole shard groups: one owner each, commit record last."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

import numpy as np

from kdcache import durable
from kdcache.cache.codecs import as_bytes, make_coder
from kdcache.cache.layout import ArraySpec, Group, SplitLayout, commit_path, shard_path
from kdcache.cache.lease import Lease
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import CommitRecord, write_record
from kdcache.cache.shard import ShardFile, check_inside, crc32c, write_shard
from kdcache.errors import CacheError
from kdcache.storage.place import Place

Files = dict[str, ShardFile]
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


@singledispatch
def write_group(
    root: Path,
    manifest: Manifest,
    group: Group,
    *,
    contents: GroupContents,
    lease: Lease,
) -> int:
    """Write all arrays of one shard group that has no record, flush them, read them back, then commit.

    Args:
        contents: of the whole group.
        lease: of this group; checked before each step that others could see.

    Returns: bytes of its shard files. Raises: CacheError where the disk refuses, LeaseLostError; committed groups stay.
    """

    def make_record(files: Files, crcs: dict[str, list[int]]) -> CommitRecord:
        return CommitRecord(
            manifest.split_hash(group.split), contents.ids, files, crcs, contents.views
        )

    def encode_array(spec: ArraySpec) -> list[np.ndarray]:
        return encode_samples(spec, contents.arrays[spec.name])

    return write_chunks(
        root,
        manifest.layouts[group.split],
        group,
        chunks=encode_array,
        record=make_record,
        lease=lease,
    )


def write_chunks(
    root: Path,
    layout: SplitLayout,
    group: Group,
    *,
    chunks: Callable[[ArraySpec], list[np.ndarray]],
    record: Callable[[Files, dict[str, list[int]]], CommitRecord],
    lease: Lease,
) -> int:
    """The same of what is to be stored: `chunks` makes an array's, `record` what is committed of files and checksums."""
    check_targets(root, layout, group)
    try:
        files, crcs = _write_partials(root, layout, group, chunks, lease)
        made = record(files, crcs)
        _give_names(root, layout, group, files, lease)
        lease.check()
        write_record(root, group, made)
    except ValueError as error:
        _remove_partials(root, layout, group)
        raise refuse_coding(root, group, error) from None
    except OSError as error:
        lease.check()  # without it the files are another writer's, and so is the error
        _remove_partials(root, layout, group)
        raise _explain(root, layout, group, error) from None
    return made.size_bytes


def refuse_coding(root: Place, group: Group, error: ValueError) -> CacheError:
    """What to raise of what a codec said."""
    cure = "set cache.codec to another and cache.path to a new folder"
    return CacheError(f"{root}: shard group {group.name} cannot be coded ({error}); {cure}")


@singledispatch
def check_targets(root: Path, layout: SplitLayout, group: Group) -> None:
    """Raises CacheError where a folder, or a way out of the cache, stands where a file of the group belongs."""
    for path in [
        commit_path(root, group),
        *(shard_path(root, spec, group) for spec in layout.arrays),
    ]:
        check_inside(root, path.parent, cure="remove the link")
        if path.is_dir() and not path.is_symlink():
            raise CacheError(
                f"{path}: it is a folder, expected a file of the cache; move it away and run again"
            )


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


def _write_partials(
    root: Path,
    layout: SplitLayout,
    group: Group,
    make_chunks: Callable[[ArraySpec], list[np.ndarray]],
    lease: Lease,
) -> tuple[Files, dict[str, list[int]]]:
    """Every shard under its `.partial` name, flushed and read back; and the checksum of each sample."""
    files, crcs = {}, {}
    for spec in layout.arrays:
        path, chunks = shard_path(root, spec, group), make_chunks(spec)
        crcs[spec.name] = [crc32c(chunk) for chunk in chunks]
        lease.check()
        durable.make_folders(path.parent, below=root)
        partial = durable.partial_path(path)
        files[spec.name] = write_shard(
            partial, chunks, crcs[spec.name], shard_samples=layout.shard_samples
        )
    return files, crcs


def encode_samples(spec: ArraySpec, block: np.ndarray) -> list[np.ndarray]:
    """The chunks of samples [count, *item_shape], uint8 each; without a codec they are the samples' own memory.

    Raises: ValueError where a codec does not give back what it was given: what is stored is what the teacher said.
    """
    if spec.codec is None:
        return [as_bytes(item) for item in block]
    coder = make_coder(spec.codec, shape=spec.item_shape, dtype=spec.dtype)
    chunks, decoded = (
        [np.frombuffer(coder.encode(item), np.uint8) for item in block],
        np.empty_like(block[0]),
    )
    for item, chunk in zip(block, chunks, strict=True):
        coder.decode_into(chunk, decoded)
        if not np.array_equal(as_bytes(decoded), as_bytes(item)):
            raise ValueError(f"codec {spec.codec.name} changes {spec.name}")
        if chunk.size > spec.most_chunk_bytes:
            raise ValueError(
                f"codec {spec.codec.name} makes {chunk.size} bytes of {spec.item_bytes} of {spec.name}"
            )
    return chunks


def _give_names(root: Path, layout: SplitLayout, group: Group, files: Files, lease: Lease) -> None:
    """Rename each shard to what readers look for, if it is still the file that was read back."""
    for spec in layout.arrays:
        path = shard_path(root, spec, group)
        lease.check()
        files[spec.name].check_unchanged(durable.partial_path(path))
        durable.rename(durable.partial_path(path), path)
        array = root / group.split / spec.name
        for folder in path.relative_to(
            array
        ).parents:  # each may be new, made by a process now dead
            durable.sync_folder(array / folder)


def _remove_partials(root: Path, layout: SplitLayout, group: Group) -> None:
    """What a full disk did not hold must not fill it further."""
    for path in [
        commit_path(root, group),
        *(shard_path(root, spec, group) for spec in layout.arrays),
    ]:
        with suppress(OSError):
            durable.remove(durable.partial_path(path))


def _explain(root: Path, layout: SplitLayout, group: Group, error: OSError) -> CacheError:
    lack = ""
    if error.errno in _FULL:
        free = shutil.disk_usage(root).free
        lack = f", it needs {layout.group_bytes(group)} bytes and {free} are free here"
    return refuse_writing(root, group, error, lack=lack)


def refuse_writing(root: Place, group: Group, error: OSError, *, lack: str = "") -> CacheError:
    """What to raise where the disk or the store refuses a group."""
    what = f"{root}: shard group {group.name} cannot be written ({error.strerror}){lack}"
    return CacheError(
        f"{what}; mend that and run the same command again, what is committed is kept"
    )
