"""The right to write a shard group: a lock on a file, held by one process, given back by the system when that process dies.

There is no time in it, so no clock can be wrong and no lease can run out under a process that was only stopped. What a killed
process leaves is the file, which the next one takes over and `gc` removes.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import singledispatch
from pathlib import Path

from kdcache.cache.layout import LEASES
from kdcache.cache.shard import check_inside
from kdcache.errors import CacheError
from kdcache.storage.place import Place

SCORE = "score"  # of the teacher: what several workers do once


class LeaseLostError(CacheError):
    """The lease file was removed or replaced under its holder; nothing more may be written."""


class Lease:
    """A held lease; `check` it before each change that others could see."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def check(self) -> None:
        """Raises LeaseLostError where the lease file is no longer the one that is locked."""
        if not _is_same(self.path, self.descriptor):
            raise refuse_lost(self.path, "removed")


def refuse_lost(path: Place, fate: str) -> LeaseLostError:
    """What to raise of a lease that was removed, or whatever its `fate` was, under its holder."""
    return LeaseLostError(
        f"{path}: lease was {fate} while it was held; what this process had not committed is left to others, "
        "run the same command again"
    )


def lease_path(root: Path, name: str) -> Path:
    """The lease file of a shard group."""
    return root / LEASES / name


@singledispatch
@contextmanager
def take_lease(root: Path, name: str, *, wait: bool = False) -> Iterator[Lease | None]:
    """Hold the lease of that name until the block ends; None where another process holds it.

    Args:
        root: folder of the cache, which must exist.
        wait: until the other process is done or dead, instead of None.
    """
    path = lease_path(root, name)
    check_inside(root, path.parent, cure="remove the link")
    descriptor = _open_and_lock(path, wait=wait)
    if descriptor is None:
        yield None
        return
    try:
        yield Lease(path, descriptor)
    finally:
        try:
            # removed while it is locked: whoever waits for it sees that it is gone and makes a new one
            if _is_same(path, descriptor):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


@singledispatch
def is_held(root: Path, name: str) -> bool:
    """Whether a process holds the lease of that name; nobody else can take it at that moment."""
    try:
        descriptor = os.open(lease_path(root, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(
            descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # exclusive ones need a file open for writing on NFS
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@singledispatch
def read_holder(root: Path, name: str) -> str:
    """Who says to hold a lease, for a message."""
    try:
        return (
            lease_path(root, name).read_text(encoding="utf-8", errors="replace").strip()
            or "another process"
        )
    except OSError:
        return "another process"


def _open_and_lock(path: Path, *, wait: bool) -> int | None:
    """Raises CacheError where the file system refuses the file or the lock."""
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor = _lock(path, wait=wait)
    except OSError as error:
        cure = "make room, mend permissions, or use a file system with locks (flock)"
        raise CacheError(f"{path}: lease cannot be taken ({error.strerror}); {cure}") from None
    if descriptor is not None:
        with suppress(OSError):  # who holds it is only for messages
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _lock(path: Path, *, wait: bool) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_same(path, descriptor):
            return descriptor
        os.close(descriptor)  # the holder before us removed it


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
