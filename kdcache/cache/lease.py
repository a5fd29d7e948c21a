"""The right to write a shard group: a lock on a file, held by one process, given back by the system when that process dies.

There is no time in it, so no clock can be wrong and no lease can run out under a process that was only stopped. What a killed
process leaves is the file, which the next one takes over and `gc` removes.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.cache.layout import LEASES
from kdcache.cache.shard import check_inside
from kdcache.errors import CacheError


class LeaseLostError(CacheError):
    """The lease file was removed or replaced under its holder; nothing more may be written."""


class Lease:
    """A held lease; `check` it before each change that others could see."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def check(self) -> None:
        """Raises LeaseLostError where the lease file is no longer the one that is locked."""
        if not _is_same(self.path, self.descriptor):
            raise LeaseLostError(
                f"{self.path}: lease was removed while it was held; what this process had not committed is left to others, "
                "run `python -m cache_teacher` again"
            )


def lease_path(root: Path, name: str) -> Path:
    """The lease file of a shard group."""
    return root / LEASES / name


@contextmanager
def take_lease(root: Path, name: str, *, wait: bool = False) -> Iterator[Lease | None]:
    """Hold the lease of that name until the block ends; None where another process holds it.

    Args:
        root: folder of the cache, which must exist.
        wait: until the other process is done or dead, instead of None.
    """
    path = lease_path(root, name)
    check_inside(root, path.parent, cure="remove the link")
    path.parent.mkdir(exist_ok=True)
    descriptor = _lock(path, wait=wait)
    if descriptor is None:
        yield None
        return
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield Lease(path, descriptor)
    finally:
        if _is_same(path, descriptor):
            path.unlink()  # while it is locked: whoever waits for it sees that it is gone and makes a new one
        os.close(descriptor)


def read_holder(root: Path, name: str) -> str:
    """Who says to hold a lease, for a message."""
    try:
        return lease_path(root, name).read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


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
