"""What a cache does with its folder, done in a bucket: each function of the folder's that differs has its other half here.

Writing and tidying have files of their own.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from kdcache.cache import documents, durable, folder, lease, records, shard
from kdcache.cache.layout import COMMITS, LEASES, Group, commit_path
from kdcache.errors import CacheCorruptError, CacheError
from kdcache.lock import hold_folder
from kdcache.objects.lease import ObjectLease, is_alive, take_object_lease
from kdcache.objects.path import AlreadyThereError, ObjectPath, fill

DOCUMENTS = "documents"  # the lease under which they change

lease.take_lease.register(ObjectPath, take_object_lease)


# --- documents


@documents.read_bytes.register(ObjectPath)
def read_bytes(path: ObjectPath, *, cure: str) -> bytes:
    """As of a file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CacheCorruptError(path, "file is missing, expected a plain file", cure=cure) from None
    except OSError as error:
        raise CacheCorruptError(path, f"file is unreadable ({error.strerror})", cure=cure) from None


@durable.replace_file.register(ObjectPath)
def replace_file(path: ObjectPath, data: bytes) -> None:
    """A put is whole or it is not."""
    path.put(bytes(data))


@durable.remove.register(ObjectPath)
def remove(path: ObjectPath) -> None:
    """As of a file."""
    path.remove()


@durable.make_folders.register(ObjectPath)
@durable.sync_folder.register(ObjectPath)
def do_nothing(path: ObjectPath, **_: object) -> None:
    """There are no folders, and what is put is kept."""


@shard.check_inside.register(ObjectPath)
def check_inside(root: ObjectPath, path: ObjectPath, *, cure: str) -> None:
    """There are no links."""


# --- commit records


@records.has_record.register(ObjectPath)
def has_record(root: ObjectPath, group: Group) -> bool:
    """As in a folder."""
    path = commit_path(root, group)
    try:
        return path.exists()
    except OSError as error:
        raise CacheError(f"{path}: commit record cannot be looked for ({error.strerror}); mend that first") from None


@records.list_records.register(ObjectPath)
def list_records(root: ObjectPath) -> set[str]:
    """As in a folder."""
    try:
        return {path.name for path, _ in (root / COMMITS).walk()}
    except OSError as error:
        where = root / COMMITS
        raise CacheError(f"{where}: commit records cannot be looked for ({error.strerror}); mend that first") from None


@records.look_again.register(ObjectPath)
def look_again(root: ObjectPath) -> None:
    """A store shows at once what has been put."""


# --- leases


@lease.is_held.register(ObjectPath)
def is_held(root: ObjectPath, name: str) -> bool:
    """Whether somebody holds it, or did lately."""
    return is_alive(lease.lease_path(root, name))


@lease.read_holder.register(ObjectPath)
def read_holder(root: ObjectPath, name: str) -> str:
    """As in a folder."""
    with suppress(OSError):
        return lease.lease_path(root, name).read_bytes().decode(errors="replace").partition(",")[0]
    return "another process"


@hold_folder.register(ObjectPath)
@contextmanager
def hold_documents(root: ObjectPath, *, wait: bool = False) -> Iterator[ObjectLease | None]:
    """Documents change under a lease of their own."""
    with take_object_lease(root, DOCUMENTS, wait=wait) as held:
        yield held


# --- shard files


@shard.open_plain.register(ObjectPath)
@contextmanager
def open_plain(path: ObjectPath) -> Iterator[ObjectPath]:
    """Nothing is opened: each reading is a request of its own."""
    yield path


@shard.find_size.register(ObjectPath)
def find_size(path: ObjectPath) -> int:
    """One request."""
    return path.size()


@shard.read_at.register(ObjectPath)
def read_at(path: ObjectPath, offset: int, slots: list[np.ndarray]) -> int:
    """One request for all slots."""
    return fill(path, offset, slots)


# --- the cache as a whole


@folder.make_root.register(ObjectPath)
def check_bucket(root: ObjectPath) -> None:
    """Raises CacheError where a put under a condition is not one: two workers could both commit."""
    probe = root / LEASES / f"probe-{uuid.uuid4().hex}"
    try:
        probe.create(b"1")
        probe.create(b"2")
    except AlreadyThereError:
        return
    except OSError as error:
        if error.errno != errno.EIO or "NotImplemented" not in str(error.strerror):
            raise
    finally:
        with suppress(OSError):
            probe.remove()
    raise CacheError(
        f"{root.bucket}: bucket has no conditional put (If-None-Match), expected one: it keeps workers from committing a group "
        "twice; use a store that has it, or a folder"
    )


@folder.find_free_bytes.register(ObjectPath)
def find_free_bytes(root: ObjectPath) -> float:
    """A bucket has no end."""
    return float("inf")


@shard.sum_sizes.register(ObjectPath)
def sum_sizes(root: ObjectPath, files: list[ObjectPath]) -> int:
    """By one listing of what these have in common, where they are many."""
    if len(files) < 20:
        return sum(path.size() for path in files if path.exists())
    common = os.path.commonpath([path.key for path in files])
    sizes = dict(ObjectPath(root.bucket, common).walk())
    return sum(sizes.get(path, 0) for path in files)
