"""Every way in which kdcache changes a cache on disk, one call each, flushed where the name says
so.

They stand together, and are called as `durable.rename`, so that tests can stop, refuse or forget
each of them: what survives a kill or a power loss is decided here. A file that is not wanted yet
ends in `.partial`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Where a file is written before it takes its name; only the holder of its lease or lock writes
    there.
    """
    return path.parent / f"{path.name}{PARTIAL}"


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file anew, never through a link that stands in its place, and flush its contents to
    disk.
    """
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def rename(old: Path, new: Path) -> None:
    """Give a file its name, in place of what had it; one step, on disk once the folder is flushed."""
    old.replace(new)


def rename_new(old: Path, new: Path) -> None:
    """The same where nothing has that name, by a link, which replaces nothing; file systems without
    links are looked at before.

    Raises: FileExistsError.
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
    """Remove a file, absent ones too; on disk once the folder is flushed."""
    path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder in an existing one, and flush its name."""
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def make_folders(path: Path, *, below: Path) -> None:
    """Make what `path` lacks below the existing folder `below`."""
    for folder in reversed([path, *path.parents]):
        if folder.is_relative_to(below) and not folder.is_dir():
            make_folder(folder)


def sync_folder(path: Path) -> None:
    """Flush a folder's names to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network file systems keep names at once
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file so that after a crash the old or the new one is there, whole."""
    write_file(partial_path(path), [data])
    rename(partial_path(path), path)
    sync_folder(path.parent)
