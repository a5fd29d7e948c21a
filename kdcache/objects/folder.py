"""What a cache does with its folder, done in a bucket: each function of the folder's that differs has its other half here.

Writing and tidying have files of their own.
"""

from __future__ import annotations

import errno
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np

from kdcache import durable
from kdcache.cache import documents, folder, lease, records, shard
from kdcache.cache.layout import COMMITS, LEASES, Group, commit_path
from kdcache.cache.lease import LeaseLostError
from kdcache.errors import CacheCorruptError, CacheError
from kdcache.objects.lease import ObjectLease, is_alive, take_object_lease
from kdcache.objects.path import AlreadyThereError, ObjectPath, Tag, fill
from kdcache.storage.lock import FolderInUseError, hold_folder

DOCUMENTS = "documents"  # the lease under which they change
FEW = 20  # sizes that are asked for one by one

lease.take_lease.register(ObjectPath, take_object_lease)


# --- documents


@documents.read_bytes.register(ObjectPath)
def read_bytes(path: ObjectPath, *, cure: str) -> bytes:
    """As of a file; under the documents' lease its version is noted, which must still be there when it is replaced."""
    try:
        if _holds.current is not None:
            _holds.current.tags[path] = path.find_tag()
        return path.read_bytes()
    except FileNotFoundError:
        raise CacheCorruptError(path, "file is missing, expected a plain file", cure=cure) from None
    except OSError as error:
        raise CacheCorruptError(path, f"file is unreadable ({error.strerror})", cure=cure) from None


@durable.replace_file.register(ObjectPath)
def replace_document(path: ObjectPath, data: bytes) -> None:
    """Put a document in the place of the version that was read under the documents' lease, or is there now.

    Raises: LeaseLostError where another process has replaced it meanwhile: this one must have been stopped for long.
    """
    hold = _holds.current
    tag = hold.tags[path] if path in hold.tags else path.find_tag()
    hold.lease.check()
    try:
        hold.tags[path] = path.create(data) if tag is None else path.replace(data, tag=tag)
    except (AlreadyThereError, FileNotFoundError):
        hold.tags[path] = path.find_tag()
        if path.read_bytes() != data:  # else only the answer was lost
            raise LeaseLostError(
                f"{path}: document was changed by another process meanwhile; run this again"
            ) from None


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
        raise CacheError(
            f"{path}: commit record cannot be looked for ({error.strerror}); mend that first"
        ) from None


@records.list_records.register(ObjectPath)
def list_records(root: ObjectPath) -> set[str]:
    """As in a folder."""
    try:
        return {path.name for path, _ in (root / COMMITS).walk()}
    except OSError as error:
        where = root / COMMITS
        raise CacheError(
            f"{where}: commit records cannot be looked for ({error.strerror}); mend that first"
        ) from None


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


@dataclass
class _Hold:
    """The documents' lease, and the version of each that was read or put under it."""

    lease: ObjectLease
    tags: dict[ObjectPath, Tag | None] = field(default_factory=dict)


class _Holds(threading.local):
    current: _Hold | None = None


_holds = _Holds()


@hold_folder.register(ObjectPath)
@contextmanager
def hold_documents(root: ObjectPath, *, wait: bool = False) -> Iterator[None]:
    """Documents change under a lease of their own."""
    with take_object_lease(root, DOCUMENTS, wait=wait) as lease:
        if lease is None:
            raise FolderInUseError(f"{root}: cache is in use by another process; wait for it")
        _holds.current = _Hold(lease)
        try:
            yield
        finally:
            _holds.current = None


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
        if _find_conditions(probe):
            return
    except OSError as error:
        if error.errno != errno.EIO or "NotImplemented" not in str(error.strerror):
            raise
    finally:
        with suppress(OSError):
            probe.remove()
    raise CacheError(
        f"{root.bucket}: bucket has no conditional put (If-None-Match, If-Match), expected one: it keeps workers from committing "
        "a group twice; use a store that has it, or a folder"
    )


def _find_conditions(probe: ObjectPath) -> bool:
    """Whether puts are done exactly where their conditions hold; what is there tells, since an answer may be lost."""

    def is_done(data: bytes, put: Callable[[], object]) -> bool:
        with suppress(AlreadyThereError):
            put()
        return probe.read_bytes() == data

    if not is_done(b"1", lambda: probe.create(b"1")) or is_done(b"2", lambda: probe.create(b"2")):
        return False
    first = probe.find_tag()
    return is_done(b"3", lambda: probe.replace(b"3", tag=first)) and not is_done(
        b"4", lambda: probe.replace(b"4", tag=first)
    )


@folder.find_free_bytes.register(ObjectPath)
def find_free_bytes(root: ObjectPath) -> float:
    """A bucket has no end."""
    return float("inf")


@shard.sum_sizes.register(ObjectPath)
def sum_sizes(root: ObjectPath, files: list[ObjectPath]) -> int:
    """By one listing for each array and view of which many are asked for."""
    places = defaultdict(list)
    for path in files:
        places["/".join(path.relative_to(root).split("/")[:4])].append(path)
    total = 0
    for place, paths in places.items():
        few = len(paths) < FEW
        sizes = (
            {path: path.size() for path in paths if path.exists()}
            if few
            else dict((root / place).walk())
        )
        total += sum(sizes.get(path, 0) for path in paths)
    return total
