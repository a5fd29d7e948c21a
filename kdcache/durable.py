"""Every way in which kdcache changes files on disk, one call each.

What survives a kill or a power loss is decided here. The functions are called as `durable.rename`,
so that tests can interrupt, refuse or skip each call. An unfinished file ends in `.partial`.
All functions raise OSError.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Where a file is written before it gets its name, by the holder of its lease or lock only."""
    return path.parent / f"{path.name}{PARTIAL}"


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a new file in place of an old file or link, and flush its contents to disk."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def rename(old: Path, new: Path) -> None:
    """Rename a file in one step, replacing `new`; on disk once the folder is flushed."""
    old.replace(new)


def rename_new(old: Path, new: Path) -> None:
    """Rename a file by a hard link, which replaces nothing.

    If the file system has no hard links, `new` is looked for before. Raises FileExistsError if
    `new` exists.
    """
    try:
        os.link(old, new)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from None
        rename(old, new)
    else:
        remove(old)


def remove(path: Path) -> None:
    """Remove a file if it exists; on disk once the folder is flushed."""
    path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder in an existing one, and flush its name."""
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def make_folders(path: Path, *, below: Path) -> None:
    """Make the missing folders down to `path`, below the existing folder `below`."""
    for folder in reversed([path, *path.parents]):
        if folder.is_relative_to(below) and not folder.is_dir():
            make_folder(folder)


def sync_folder(path: Path) -> None:
    """Flush a folder's names to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems keep names at once
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file: after a crash the old or the new one is there, whole."""
    write_file(partial_path(path), [data])
    rename(partial_path(path), path)
    sync_folder(path.parent)
