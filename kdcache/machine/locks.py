"""System locks (flock) on files, released when their process dies.

A lock's file is removed by its holder, so that none is left but those of killed processes, which
the next holder takes over.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kdcache.disk import open_descriptor


def lock_file(path: Path, *, wait: bool) -> int | None:
    """Lock the file `path` in an existing folder; it is made if it is missing.

    Args:
        wait: wait for the process that holds it.

    Returns: a descriptor for `unlock_file`; None if another process holds it and `wait` is false.
    Raises: OSError, also for a link.
    """
    while True:
        descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if is_same_file(path, descriptor):
            return descriptor
        os.close(descriptor)  # the previous holder has removed it


def unlock_file(path: Path, descriptor: int) -> None:
    """Remove the file, if it is still the one that was locked, and end the lock. Raises OSError."""
    try:
        # removed while it is locked: a process that waits for it then makes a new file
        if is_same_file(path, descriptor):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def is_same_file(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`. Raises OSError."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
