"""One process at a time in a folder: a run for as long as it trains, a cache while its documents change."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import singledispatch
from pathlib import Path

from kdcache.errors import KdcacheError

LOCK = ".lock"


class FolderInUseError(KdcacheError):
    """Another process writes into the folder."""


@singledispatch
@contextmanager
def hold_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` (which must exist) until the block ends; the system lets go of it when a process dies.

    Raises: FolderInUseError where another process holds it, unless told to wait for that one.
    """
    descriptor = os.open(
        folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
    )
    try:
        _lock(folder, descriptor, wait=wait)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int, *, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise FolderInUseError(
            f"{folder}: folder is in use by another process; wait for it or choose another"
        ) from None


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but perhaps our lock."""
    return all(entry.name == LOCK for entry in folder.iterdir())
