"""Locks on folders, and leases of shard groups, in a file system.

A lock is held for a run, or while documents of a cache change; a lease is the right to write one
shard group. Both are system locks (flock) on a file, and released when their process dies. They
have no times, so no clock can be wrong and nothing expires while a process is suspended. A killed
process leaves the file of its lease, which the next one takes over and `gc` removes.
"""

from __future__ import annotations

import fcntl
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdcache.disk import open_descriptor
from kdcache.errors import CacheError, KdcacheError
from kdcache.machine.process import check_lock, is_same_file, lock_file, unlock_file

LOCK = ".lock"


class FolderInUseError(KdcacheError):
    """Another process writes into the folder."""


class LeaseLostError(CacheError):
    """The lease was removed or taken over while it was held; its group must not be written now."""


class Lease(ABC):
    """The right to write one shard group; call `check` before each change that others can see."""

    @abstractmethod
    def check(self) -> None:
        """Raise LeaseLostError if it is no longer held, OSError if the store does not answer."""


def refuse_lost(where: str, fate: str) -> LeaseLostError:
    """The error for a lease that was lost while it was held; `fate` is "removed", for example."""
    return LeaseLostError(
        f"{where}: lease was {fate} while it was held; what this process had not committed is left "
        "to others, run the same command again"
    )


class FolderLock:
    """The held lock of a folder; call `check` before each change of a file in it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def check(self) -> None:
        """Raise LockLostError if the file was removed: another process may hold a new one."""
        check_lock(self.path, self.descriptor)


@contextmanager
def hold_folder(folder: Path, *, wait: bool = False) -> Iterator[FolderLock]:
    """Hold the lock of an existing folder until the block ends. The lock's file stays.

    Args:
        wait: wait if another process holds it.

    Raises: FolderInUseError if another process holds it and `wait` is false, OSError.
    """
    descriptor = lock_file(folder / LOCK, wait=wait)
    if descriptor is None:
        raise FolderInUseError(
            f"{folder}: folder is in use by another process; wait for it or choose another"
        )
    try:
        yield FolderLock(folder / LOCK, descriptor)
    finally:
        os.close(descriptor)


class FileLease(Lease):
    """A held lease: a locked file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def check(self) -> None:
        """Raise LeaseLostError if the lease's file is no longer the one that is locked."""
        if not is_same_file(self.path, self.descriptor):
            raise refuse_lost(str(self.path), "removed")


@contextmanager
def take_file_lease(path: Path, *, wait: bool) -> Iterator[FileLease | None]:
    """Hold the lease `path` until the block ends; None if another process holds it.

    Its folder is made if it is missing.

    Args:
        wait: wait for the other process, instead of returning None.

    Raises: CacheError if the file system refuses the file or the lock.
    """
    descriptor = _open_and_lock(path, wait=wait)
    if descriptor is None:
        yield None
        return
    try:
        yield FileLease(path, descriptor)
    finally:
        unlock_file(path, descriptor)


def is_file_held(path: Path) -> bool:
    """Whether a process holds the lease `path`. Raises OSError.

    For the moment of the test no other process can take it.
    """
    try:
        descriptor = open_descriptor(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        # exclusive locks need a file that is open for writing on NFS
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _open_and_lock(path: Path, *, wait: bool) -> int | None:
    """Raise CacheError if the file system refuses the file or the lock."""
    try:
        path.parent.mkdir(exist_ok=True)
        descriptor = lock_file(path, wait=wait)
    except OSError as error:
        cure = "make room, mend permissions, or use a file system with locks (flock)"
        raise CacheError(f"{path}: lease cannot be taken ({error.strerror}); {cure}") from None
    if descriptor is not None:
        with suppress(OSError):  # the holder's name is only for messages
            if os.fstat(descriptor).st_nlink > 1:  # nothing of ours has another name
                return descriptor
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor
