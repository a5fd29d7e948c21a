"""The only ways in which kdcache opens a file for reading and in which it changes files on disk.

What survives a kill or a power loss is decided here. The functions that change something are called
as `disk.rename`, so that tests can interrupt, refuse or skip each call. An unfinished file ends in
`.partial`. Nothing is written through a link: a file is a new one, which then takes its name, and
`check_way` refuses links on the way from the root of a cache, a run or a stage. Only plain files
are read: no pipe or device hangs a command. Functions raise OSError.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def partial_path(path: Path) -> Path:
    """Where a file is written before it gets its name, by the holder of its lease or lock only."""
    return path.parent / f"{path.name}{PARTIAL}"


def open_new(path: Path) -> FileIO:
    """Open a new file, in place of an old file or link, for writing; a write may be a short one."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return FileIO(os.open(path, flags, 0o666), "w")


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a new file in place of an old one, flushed. An OSError says what a full disk lacks."""
    _write(path, list(parts), flush=True)


def _write(path: Path, parts: list[bytes | memoryview], *, flush: bool) -> None:
    try:
        with BufferedWriter(open_new(path)) as file:
            for part in parts:
                file.write(part)
            if flush:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        needed, what = sum(map(len, parts)), error.strerror
        if error.errno in FULL:
            what += f", it needs {needed} bytes, {shutil.disk_usage(path.parent).free} are free"
        raise OSError(error.errno, what, str(path)) from None


def rename(old: Path, new: Path) -> None:
    """Rename a file in one step, replacing `new`; on disk once the folder is flushed."""
    old.replace(new)


def rename_new(old: Path, new: Path) -> None:
    """Rename a file by a hard link, which replaces nothing, or if there are none after a look.

    Raises: FileExistsError if `new` exists.
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


def replace_file(path: Path, *parts: bytes | memoryview, partial: Path | None = None) -> None:
    """Replace a file: after a crash the old or the new one is there, whole.

    Args:
        partial: where it is unfinished, by the holder of a lease or lock; None: a name of its own.
    """
    try:
        with name_own(path) if partial is None else nullcontext(partial) as unfinished:
            write_file(unfinished, parts)
            rename(unfinished, path)
    except (OSError, KeyboardInterrupt):
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def put_file(path: Path, data: bytes | memoryview) -> None:
    """Replace a file that is easily made again: it may be lost with the power."""
    with name_own(path) as unfinished:
        _write(unfinished, [data], flush=False)
        rename(unfinished, path)


@contextmanager
def name_own(path: Path) -> Iterator[Path]:
    """A name beside `path` that nobody else writes to or can foresee, for an unfinished file.

    If the block fails, or has not renamed the file, it is removed. An OSError then names `path`.
    """
    own = path.parent / f"{path.name[:40]}.{secrets.token_hex(4)}{PARTIAL}"
    try:
        yield own
    except OSError as error:
        if error.filename == str(own):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            own.unlink(missing_ok=True)


MOST_TEXT_BYTES = 150_000  # of YAML: a few hundred lines, and PyYAML reads 20 kB a second
# of JSON: a commit record has 0.5 kB a sample, of 65,536 at most; Python makes less than 1 GB of it
MOST_DOCUMENT_BYTES = 34 << 20
MOST_LIST_BYTES = 256 << 20  # of ids
_READ_BYTES = 1 << 30  # Linux reads no more than 2 GB at once


class UnfitFileError(OSError):
    """A document is a link, a folder or too large; `strerror` is the whole message."""

    def __init__(self, what: str) -> None:
        super().__init__(None, what)

    def __reduce__(self) -> tuple:  # it may come from another process
        return type(self), (self.strerror,)


class PlainFile:
    """An open plain file, read by position, also by several threads at once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def size(self) -> int:
        """Size in bytes. Raises OSError."""
        return os.fstat(self.descriptor).st_size

    def find_identity(self) -> int:
        """See `find_identity`. Raises OSError."""
        return find_identity(os.fstat(self.descriptor))

    def read_into(self, offset: int, slots: list[np.ndarray]) -> int:
        """Fill contiguous arrays from an offset; returns the bytes read. Raises OSError."""
        views = [memoryview(slot.reshape(-1).view("u1")) for slot in slots]
        done = 0
        while views:
            count = os.preadv(self.descriptor, views, offset + done)
            if count == 0:
                break
            done += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if views:
                views[0] = views[0][count:]
        return done

    def read(self, most_bytes: int) -> bytes:
        """The bytes that the file has now, or the first of them. Raises OSError."""
        left, parts = min(self.size(), most_bytes), []
        while left and (part := os.read(self.descriptor, min(left, _READ_BYTES))):
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def open_plain(path: str | Path, *, follow: bool = False) -> Iterator[PlainFile]:
    """Open a plain file for reading. Raises OSError, also for a link, a folder, or a pipe.

    Args:
        follow: take a link for the file that it names: for what a person has named, never for the
            files of a cache or a run.
    """
    descriptor = open_descriptor(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW))
    try:
        yield PlainFile(descriptor)
    finally:
        os.close(descriptor)


def open_stream(path: str | Path, *, follow: bool = True) -> BinaryIO:
    """A plain file as an object for other libraries. Raises: as `open_plain`."""
    return os.fdopen(open_descriptor(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW)), "rb")


def open_descriptor(path: str | Path, flags: int) -> int:
    """A descriptor of a plain file, made if `flags` say so. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return descriptor


def read_plain(path: str | Path, *, most_bytes: int, follow: bool = True) -> bytes:
    """The contents of a plain file.

    Args:
        most_bytes: of a larger file nothing is read. follow: as for `open_plain`.

    Raises: FileNotFoundError; UnfitFileError for a link, a folder, a pipe, a larger file; OSError.
    """
    try:
        with open_plain(path, follow=follow) as opened:
            check_document(opened.size(), most_bytes=most_bytes)
            return opened.read(most_bytes)
    except OSError as error:
        what = {errno.ELOOP: "a link", errno.EINVAL: "no file", errno.ENXIO: "no file"}
        if error.errno not in what:
            raise
        raise UnfitFileError(f"file is {what[error.errno]}, expected a plain file") from None


def check_document(size_bytes: int, *, most_bytes: int) -> None:
    """Raise UnfitFileError if a document is too large to be one."""
    if size_bytes > most_bytes:
        raise UnfitFileError(f"size is {size_bytes} bytes, expected {most_bytes} at most")


def read_text(path: str | Path, *, most_bytes: int, follow: bool = True) -> str:
    """The contents of a plain file in UTF-8. Raises: as `read_plain`; UnicodeDecodeError."""
    return read_plain(path, most_bytes=most_bytes, follow=follow).decode("utf-8")


def find_identity(facts: os.stat_result) -> int:
    """A number other than 0 that tells a file from any other, and from itself after a change."""
    times = facts.st_mtime_ns, facts.st_ctime_ns
    return hash((facts.st_dev, facts.st_ino, facts.st_size, *times)) or 1
