"""One shard file: chunks, each with the crc32c of its bytes behind it, then the index of a Zarr v3 shard.

Written here and not by zarr, because a file must be flushed, read back and hashed before it may count; that it is what zarr would
have written, byte for byte, is tested.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

import crc32c as crc32c_library
import numpy as np

from kdcache import durable
from kdcache.cache.layout import CRC_BYTES, index_bytes
from kdcache.errors import CacheCorruptError

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # limits of descriptors and of mappings
ABSENT = 2**64 - 1  # offset and size of a chunk that a short shard does not have


@dataclass(frozen=True)
class ShardFile:
    """What a shard file must be: its size and the sha256 (hex) of all its bytes.

    mark: what the system says of the file that was read back (number, size, time of change); None for a file of a record.
    """

    size_bytes: int
    sha256: str
    mark: tuple[int, int, int] | None = None

    def check_unchanged(self, path: Path) -> None:
        """Raises OSError where the file is not the one that was read back: another writer has put its own there."""
        if _mark(path.lstat()) != self.mark:
            raise OSError(errno.ESTALE, "another writer has replaced it")


def crc32c(array: np.ndarray) -> int:
    """crc32c of a contiguous array's bytes; other threads run meanwhile."""
    return crc32c_library.crc32c(array.reshape(-1).view(np.uint8))


def write_shard(
    path: Path, chunks: list[np.ndarray], crcs: list[int], *, shard_samples: int
) -> ShardFile:
    """Write a shard, flush it, read it back from the disk and hash it.

    Args:
        chunks: bytes of each sample, coded or not, uint8 [size]. crcs: crc32c of each. shard_samples: entries of the index.

    Raises: OSError, also where the bytes read back are not those written.
    """
    parts = list_parts(chunks, crcs, shard_samples=shard_samples)
    durable.write_file(path, parts)
    return _read_back(path, parts)


def list_parts(
    chunks: list[np.ndarray], crcs: list[int], *, shard_samples: int
) -> list[memoryview | bytes]:
    """The bytes of a shard file, one part after the other; arguments as of `write_shard`."""
    parts: list[memoryview | bytes] = []
    for chunk, crc in zip(chunks, crcs, strict=True):
        parts += [memoryview(chunk), crc.to_bytes(CRC_BYTES, "little")]
    return parts + list_tail([chunk.size for chunk in chunks], shard_samples=shard_samples)


def list_tail(chunk_bytes: list[int], *, shard_samples: int) -> list[bytes]:
    """What follows the chunks: the index and its checksum."""
    index = build_index(chunk_bytes, shard_samples=shard_samples)
    return [index.tobytes(), crc32c(index).to_bytes(CRC_BYTES, "little")]


def build_index(chunk_bytes: list[int], *, shard_samples: int) -> np.ndarray:
    """(offset, size) of each chunk, little-endian uint64 [shard_samples, 2]; size with the chunk's checksum."""
    index = np.full((shard_samples, 2), ABSENT, "<u8")
    sizes = np.array(chunk_bytes, "<u8") + np.uint64(CRC_BYTES)
    index[: len(sizes), 0] = np.cumsum(sizes) - sizes
    index[: len(sizes), 1] = sizes
    return index


def read_index(
    path: Path,
    *,
    count: int,
    shard_samples: int,
    size_bytes: int,
    chunk_bytes: int | None,
    cure: str,
) -> np.ndarray:
    """The index of a shard file, as `build_index` makes it.

    Args:
        count: samples in the file. size_bytes: of the file. chunk_bytes: of each chunk without checksum; None: any.

    Raises: CacheCorruptError.
    """
    tail = np.empty(index_bytes(shard_samples), np.uint8)
    try:
        with open_plain(path) as descriptor:
            found = find_size(descriptor)
            got = read_at(descriptor, found - tail.size, [tail]) if found == size_bytes else 0
    except OSError as error:
        raise CacheCorruptError(path, f"file is unreadable ({error.strerror})", cure=cure) from None
    if found != size_bytes:
        raise CacheCorruptError(path, f"size is {found} bytes, expected {size_bytes}", cure=cure)
    if got != tail.size or crc32c(tail[:-CRC_BYTES]) != int.from_bytes(
        tail[-CRC_BYTES:].tobytes(), "little"
    ):
        raise CacheCorruptError(path, "shard index is damaged, its checksum differs", cure=cure)
    index = tail[:-CRC_BYTES].view("<u8").reshape(-1, 2)
    sizes = (
        [chunk_bytes + CRC_BYTES] * count if chunk_bytes is not None else index[:count, 1].tolist()
    )
    plausible = sum(sizes) == size_bytes - tail.size and min(sizes) > CRC_BYTES
    if not plausible or not np.array_equal(
        index, build_index([size - CRC_BYTES for size in sizes], shard_samples=shard_samples)
    ):
        raise CacheCorruptError(path, "shard index is not that of its samples", cure=cure)
    return index


@singledispatch
def check_inside(root: Path, path: Path, *, cure: str) -> None:
    """Raises CacheCorruptError where a link leads from the cache at `root` to a place outside."""
    base = os.path.realpath(root)
    if os.path.commonpath([base, os.path.realpath(path)]) != base:
        raise CacheCorruptError(
            path, f"it is outside of the cache, at {os.path.realpath(path)}", cure=cure
        )


@singledispatch
@contextmanager
def open_plain(path: Path) -> Iterator[int]:
    """A descriptor to read a plain file, no link, folder or pipe (which may never answer). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        yield descriptor
    finally:
        os.close(descriptor)


@singledispatch
def sum_sizes(root: Path, files: list[Path]) -> int:
    """Bytes of some files of the cache at `root`; missing ones have none."""
    return sum(path.stat().st_size for path in files if path.is_file())


@singledispatch
def find_size(descriptor: int) -> int:
    """Bytes of what `open_plain` has opened."""
    return os.fstat(descriptor).st_size


@singledispatch
def read_at(descriptor: int, offset: int, slots: list[np.ndarray]) -> int:
    """Fill contiguous arrays one after the other from a position; returns the number of bytes got."""
    views = [memoryview(slot.reshape(-1).view(np.uint8)) for slot in slots]
    done = 0
    while views:
        count = os.preadv(descriptor, views, offset + done)
        if count == 0:
            break
        done += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views:
            views[0] = views[0][count:]
    return done


class MappedFiles:
    """Shard files mapped into memory, read only, each once. Each holds a file descriptor until this object goes."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def open(self, path: Path) -> mmap.mmap | None:
        """The mapping of a file; None where the system has no room for one more, or for what is no file.

        Raises: OSError, also where the file is shorter than when it was mapped: reading what is gone would end the process.
        """
        mapped = self._maps.get(path)
        if mapped is None:
            if not isinstance(path, Path):
                return None
            with open_plain(path) as descriptor:
                try:
                    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        return None
                    raise
            self._maps[path] = mapped
        if mapped.size() < len(mapped):
            raise OSError(errno.ESTALE, "it has become shorter")
        return mapped

    def forget(self, path: Path) -> None:
        """Map a file anew at its next use: another one has its name now."""
        self._maps.pop(path, None)


def copy_into(slots: list[np.ndarray], source: mmap.mmap, offset: int) -> int:
    """Fill contiguous arrays one after the other from a position of a mapping; returns the number of bytes got."""
    done = 0
    for slot in slots:
        part = np.frombuffer(source, np.uint8)[offset + done : offset + done + slot.nbytes]
        slot.reshape(-1).view(np.uint8)[: part.size] = part
        done += part.size
    return done


def _read_back(path: Path, parts: list[memoryview | bytes]) -> ShardFile:
    """Hash the file as the disk has it: its pages are dropped from memory first, where the system does that."""
    total, size = hashlib.sha256(), 0
    with open_plain(path) as descriptor:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # some file systems have no such thing
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for part in parts:
            found = np.empty(len(part), np.uint8)
            count = read_at(descriptor, size, [found])
            if count != len(part) or not np.array_equal(found, np.frombuffer(part, np.uint8)):
                raise OSError(errno.EIO, "what was read back is not what was written")
            total.update(found)
            size += count
        return ShardFile(size, total.hexdigest(), _mark(os.fstat(descriptor)))


def _mark(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns
