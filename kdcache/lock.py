"""One process at a time in a folder: a run, a cache being written."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import KdcacheError

LOCK = ".lock"


class FolderInUseError(KdcacheError):
    """Another process writes into the folder."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` (which must exist) until the block ends; the system lets go of it when a process dies.

    Raises: FolderInUseError where another process holds it.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(
                f"{folder}: folder is in use by another process; wait for it or choose another"
            ) from None
        yield


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but perhaps our lock."""
    return all(entry.name == LOCK for entry in folder.iterdir())
