"""Writes a shard group into a bucket: whole objects, each under a condition, the commit record last.

Nothing is put over what another process has put since we looked. So a writer that was stopped, and robbed of its lease, finds
its puts refused; and where two wrote different bytes (GPUs round differently), the last holder's record names its own shards.
"""

from __future__ import annotations

import hashlib

from kdcache.cache.layout import Group, commit_path, shard_path
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import CommitRecord, seal_record
from kdcache.cache.shard import ShardFile, crc32c, list_parts
from kdcache.cache.writer import (
    GroupContents,
    check_targets,
    encode_samples,
    refuse_coding,
    refuse_writing,
    write_group,
)
from kdcache.objects.lease import ObjectLease
from kdcache.objects.path import AlreadyThereError, ObjectPath


@check_targets.register(ObjectPath)
def check_nothing(root: ObjectPath, *_: object) -> None:
    """No folder or link can stand in the way of a key."""


@write_group.register(ObjectPath)
def put_group(
    root: ObjectPath,
    manifest: Manifest,
    group: Group,
    *,
    contents: GroupContents,
    lease: ObjectLease,
) -> int:
    """As `kdcache.cache.writer.write_group`."""
    layout = manifest.layouts[group.split]
    files, crcs = {}, {}
    try:
        for spec in layout.arrays:
            chunks = encode_samples(spec, contents.arrays[spec.name])
            crcs[spec.name] = [crc32c(chunk) for chunk in chunks]
            data = b"".join(list_parts(chunks, crcs[spec.name], shard_samples=layout.shard_samples))
            put_own(shard_path(root, spec, group), data, lease=lease)
            files[spec.name] = ShardFile(len(data), hashlib.sha256(data).hexdigest())
        record = CommitRecord(
            manifest.split_hash(group.split), contents.ids, files, crcs, contents.views
        )
        put_own(commit_path(root, group), seal_record(group, record), lease=lease)
    except ValueError as error:
        raise refuse_coding(root, group, error) from None
    except OSError as error:
        raise refuse_writing(root, group, error) from None
    return record.size_bytes


def put_own(path: ObjectPath, data: bytes, *, lease: ObjectLease) -> None:
    """Put an object, in place of what a writer before us left, as long as the lease is ours.

    Raises: LeaseLostError, OSError.
    """
    while True:
        try:
            lease.check()
            path.create(data)
            return
        except AlreadyThereError:
            tag = path.find_tag()
        try:
            lease.check()  # after the look at the tag: whoever has the lease by then changes it
            if tag is not None:
                path.replace(data, tag=tag)
                return
        except (AlreadyThereError, FileNotFoundError):
            continue  # the late put of a writer before us, or ours, of which the answer was lost
