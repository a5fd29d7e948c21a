"""The one way to open a file for reading: only plain files, so that no pipe or device can hang a
command, and documents only up to a size.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

MOST_TEXT_BYTES = 150_000  # of YAML: a few hundred lines, and PyYAML reads 20 kB a second
# of JSON: a commit record has about 0.5 kB a sample, of 65,536 at most, and Python makes less than
# 1 GB of so many bytes, whatever they are
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
    """Open a plain file for reading.

    Args:
        follow: take a link for the file that it names, which is right for what a person has named
            and wrong for the files of a cache or a run.

    Raises OSError, also for a link, a folder, or a pipe, which might never answer.
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
    """A descriptor of a plain file, which is made if `flags` say so. Raises OSError."""
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
        if error.errno in what:
            what = f"file is {what[error.errno]}, expected a plain file"
            raise UnfitFileError(what) from None
        raise


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
