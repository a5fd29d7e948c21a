"""Writes shard groups: each by one process, which holds its lease; the commit record last."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from kdcache import disk
from kdcache.cache.codecs import as_bytes, make_coder
from kdcache.cache.layout import ArraySpec, Group, SplitLayout, commit_key, shard_key
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import CommitRecord, write_record
from kdcache.cache.shards import crc32c, list_parts
from kdcache.errors import CacheError
from kdcache.storage.base import ShardFile, Storage
from kdcache.storage.lock import Lease

Files = dict[str, ShardFile]


@dataclass(frozen=True)
class GroupContents:
    """What a shard group holds.

    arrays: name -> contiguous [samples, *item_shape] of the array's dtype.
    ids: of the samples, in order. views: the parameters that each sample was drawn with.
    """

    arrays: dict[str, np.ndarray]
    ids: list[str]
    views: list[dict]


def write_group(
    storage: Storage,
    manifest: Manifest,
    group: Group,
    *,
    contents: GroupContents,
    lease: Lease,
) -> int:
    """Write all arrays of a shard group without a record, check their bytes, then commit it.

    Args:
        contents: of the whole group.
        lease: of this group; it is checked before each step that others could see.

    Returns: bytes of its shard files.

    Raises: CacheError if the disk refuses, LeaseLostError. Committed groups stay as they are.
    """

    def make_record(files: Files, crcs: dict[str, list[int]]) -> CommitRecord:
        return CommitRecord(
            manifest.split_hash(group.split), contents.ids, files, crcs, contents.views
        )

    def encode_array(spec: ArraySpec) -> list[np.ndarray]:
        return encode_samples(spec, contents.arrays[spec.name])

    layout = manifest.layouts[group.split]
    return write_chunks(
        storage, layout, group, chunks=encode_array, record=make_record, lease=lease
    )


def write_chunks(
    storage: Storage,
    layout: SplitLayout,
    group: Group,
    *,
    chunks: Callable[[ArraySpec], list[np.ndarray]],
    record: Callable[[Files, dict[str, list[int]]], CommitRecord],
    lease: Lease,
) -> int:
    """Like `write_group`, with callbacks.

    Args:
        chunks: makes the stored chunks of an array, uint8 [size] each.
        record: makes the commit record, from the shard files and the checksums of chunks.
    """
    keys = _list_keys(layout, group)
    check_targets(storage, layout, group)
    try:
        files, crcs = _write_shards(storage, layout, group, chunks, lease)
        made = record(files, crcs)
        for spec in layout.arrays:
            storage.publish_shard(shard_key(spec, group), files[spec.name], lease=lease)
        write_record(storage, group, made, lease=lease)
    except ValueError as error:
        storage.discard_unpublished(keys, lease=lease)
        cure = "set cache.codec to another and cache.path to a new folder"
        raise CacheError(
            f"{storage}: shard group {group.name} cannot be coded ({error}); {cure}"
        ) from None
    except KeyboardInterrupt:
        with suppress(CacheError, OSError):
            storage.discard_unpublished(keys, lease=lease)
        raise
    except OSError as error:
        storage.discard_unpublished(keys, lease=lease)
        raise _explain(storage, layout, group, error) from None
    return made.size_bytes


def check_targets(storage: Storage, layout: SplitLayout, group: Group) -> None:
    """Raise CacheError if a folder, or a link out of the cache, is in the way of a group's file."""
    for key in _list_keys(layout, group):
        storage.check_target(key)


def retract_group(storage: Storage, group: Group, *, lease: Lease) -> None:
    """Remove a group's commit record: from then on the group counts as not written.

    Raises CacheError if it cannot be removed, LeaseLostError.
    """
    key = commit_key(group)
    storage.check_inside(key.rpartition("/")[0], cure="remove the link")
    lease.check()
    try:
        storage.remove(key)
    except OSError as error:
        raise CacheError(
            f"{storage.name(key)}: commit record cannot be removed ({error.strerror}); "
            "remove it and repair again"
        ) from None


def _list_keys(layout: SplitLayout, group: Group) -> list[str]:
    """Keys of the commit record and every shard file."""
    return [commit_key(group), *(shard_key(spec, group) for spec in layout.arrays)]


def _write_shards(
    storage: Storage,
    layout: SplitLayout,
    group: Group,
    make_chunks: Callable[[ArraySpec], list[np.ndarray]],
    lease: Lease,
) -> tuple[Files, dict[str, list[int]]]:
    """Write every shard file without publishing it. Returns files and checksums, by array."""
    files, crcs = {}, {}
    for spec in layout.arrays:
        chunks = make_chunks(spec)
        crcs[spec.name] = [crc32c(chunk) for chunk in chunks]
        parts = list_parts(chunks, crcs[spec.name], shard_samples=layout.shard_samples)
        files[spec.name] = storage.write_shard(shard_key(spec, group), parts, lease=lease)
    return files, crcs


def encode_samples(spec: ArraySpec, block: np.ndarray) -> list[np.ndarray]:
    """Encode samples [count, *item_shape] into chunks, uint8 [size] each.

    Without a codec a chunk is the sample's own memory.

    Raises ValueError if a codec does not give back exactly the bytes it was given.
    """
    if spec.codec is None:
        return [item.reshape(-1).view(np.uint8) for item in block]
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
                f"codec {spec.codec.name} makes {chunk.size} bytes of {spec.item_bytes} "
                f"of {spec.name}"
            )
    return chunks


def _explain(storage: Storage, layout: SplitLayout, group: Group, error: OSError) -> CacheError:
    """The error if a disk or object store refuses to take a group."""
    why, lack = error.strerror or error, ""
    free = storage.find_free_bytes() if error.errno in disk.FULL else float("inf")
    if free < float("inf"):
        # the error of a disk has the bytes of one file; those of the group count here
        why = os.strerror(error.errno)
        lack = f", it needs {layout.group_bytes(group)} bytes and {free} are free here"
    return CacheError(
        f"{storage}: shard group {group.name} cannot be written ({why}){lack}; "
        "mend that and run the same command again, what is committed is kept"
    )
