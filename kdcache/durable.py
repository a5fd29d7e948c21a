"""Every way in which kdcache changes files on disk, one call each.

What survives a kill or a power loss is decided here. The functions are called as `durable.rename`,
so that tests can interrupt, refuse or skip each call. An unfinished file ends in `.partial`.
All functions raise OSError.

Nothing is written through a link: a file is always a new one, which then takes its name, and
`check_way` refuses folders that are links on the way from the root of a cache, a run or a stage.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BufferedWriter, FileIO
from pathlib import Path

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Where a file is written before it gets its name, by the holder of its lease or lock only."""
    return path.parent / f"{path.name}{PARTIAL}"


def open_new(path: Path) -> FileIO:
    """Open a new file, in place of an old file or link, for writing; a write may be a short one."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return FileIO(os.open(path, flags, 0o666), "w")


def write_file(
    path: Path,
    parts: Iterable[bytes | memoryview],
) -> None:
    """Write a new file in place of an old file or link, and flush its contents to disk."""
    with BufferedWriter(open_new(path)) as file:
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
    """Make the missing folders down to `path`, below the existing folder `below`.

    Raises OSError also if one of them is a link; `below` itself may be one.
    """
    for folder in _list_way(path, below=below):
        if not _is_folder(folder):
            make_folder(folder)


def check_way(path: Path, *, below: Path) -> None:
    """Raise OSError if a folder down to `path` is a link; `below` itself may be one."""
    for folder in _list_way(path, below=below):
        _is_folder(folder)


def _list_way(path: Path, *, below: Path) -> list[Path]:
    above = [folder for folder in (path, *path.parents) if folder.is_relative_to(below)]
    return [folder for folder in reversed(above) if folder != below]


def _is_folder(path: Path) -> bool:
    """Whether there is a folder. Raises OSError for a link."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "it is a link, expected a folder", str(path))
    return stat.S_ISDIR(mode)


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


def replace_file(path: Path, data: bytes | memoryview, *, partial: Path | None = None) -> None:
    """Replace a file: after a crash the old or the new one is there, whole.

    Args:
        partial: the name of the unfinished file, by the holder of a lease or lock only; None: one
            of its own, so that two writers cannot mix their bytes.
    """
    with name_own(path) if partial is None else nullcontext(partial) as unfinished:
        write_file(unfinished, [data])
        rename(unfinished, path)
    sync_folder(path.parent)


def put_file(path: Path, data: bytes | memoryview) -> None:
    """Replace a file that is easily made again: it may be lost with the power."""
    with name_own(path) as unfinished:
        with BufferedWriter(open_new(unfinished)) as file:
            file.write(data)
        rename(unfinished, path)


@contextmanager
def name_own(path: Path) -> Iterator[Path]:
    """A name beside `path` that nobody else writes to or can foresee, for an unfinished file.

    If the block fails, or ends without having renamed the file, it is removed.
    """
    own = path.parent / f"{path.name[:40]}.{secrets.token_hex(4)}{PARTIAL}"
    try:
        yield own
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)
