"""Shard files of Zarr v3: chunks, each followed by its crc32c, then the index and its crc32c.

`find_chunks` finds the samples of one array and shard group: in a folder or a bucket by the index
at the end of a shard file, in a packed cache by offsets in its one file.

Shards are written here and not by zarr, because a file must be flushed, read back and hashed before
it counts. A test checks that the bytes are those that zarr would write.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import crc32c as crc32c_library
import numpy as np

from kdcache.cache.layout import CRC_BYTES, ArraySpec, Group, SplitLayout, index_bytes, shard_key
from kdcache.disk import find_identity, open_plain
from kdcache.errors import CacheCorruptError
from kdcache.storage.base import OpenFile, ShardFile, Storage

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # too many descriptors or mappings
ABSENT = 2**64 - 1  # offset and size of a chunk that a short shard does not have


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where the samples of one array and shard group are.

    storage, key: the file.
    places: (offset, size) of each chunk, uint64 [samples, 2]; size without checksum, in bytes.
    checksums: whether the file is a shard: each chunk is followed by 4 bytes of crc32c, and the
        last one by the index.
    """

    storage: Storage
    key: str
    places: np.ndarray
    checksums: bool = True


def find_chunks(
    storage: Storage,
    layout: SplitLayout,
    spec: ArraySpec,
    group: Group,
    *,
    file: ShardFile,
    cure: str,
) -> Chunks:
    """Find a group's samples of one array.

    Args:
        file: the shard file by the commit record. cure: for the message.

    Raises: CacheCorruptError if the storage does not hold that.
    """
    array, shape = f"{layout.split}/{spec.name}", (layout.num_views, layout.num_samples)
    places = storage.find_places(array, shape=(*shape, *spec.item_shape), dtype=spec.dtype)
    if places is None:
        key = shard_key(spec, group)
        storage.check_inside(key, cure=cure)
        return read_chunks(storage, key, layout, spec, group, file=file, cure=cure)
    places = places[group.view, group.start : group.stop]
    least = 1 if spec.codec else spec.item_bytes
    if not ((least <= places[:, 1]) & (places[:, 1] <= spec.most_chunk_bytes)).all():
        what = f"chunks of {array} have another size than their array"
        raise CacheCorruptError(storage, what, cure=cure)
    return Chunks(storage, "", places, checksums=False)


def read_chunks(
    storage: Storage,
    key: str,
    layout: SplitLayout,
    spec: ArraySpec,
    group: Group,
    *,
    file: ShardFile,
    cure: str,
) -> Chunks:
    """Find a group's samples in the shard file `key`. Raises CacheCorruptError."""
    count = group.stop - group.start
    index = read_index(
        storage,
        key,
        count=count,
        shard_samples=layout.shard_samples,
        size_bytes=file.size_bytes,
        chunk_bytes=None if spec.codec else spec.item_bytes,
        cure=cure,
    )
    return Chunks(storage, key, index[:count] - np.array([0, CRC_BYTES], index.dtype))


@dataclass(frozen=True, eq=False)
class ShardSource:
    """The bytes of one shard file.

    A packed cache keeps only the chunks; checksums and index are computed again.

    file: the shard file by the commit record. crcs: crc32c of each chunk.
    """

    storage: Storage
    layout: SplitLayout
    spec: ArraySpec
    group: Group
    file: ShardFile
    crcs: list[int]

    def read_parts(self, max_bytes: int) -> Iterator[np.ndarray]:
        """Read the whole file in parts, uint8 [size] each. Raises OSError, CacheCorruptError.

        Args:
            max_bytes: the most bytes of a part; in a packed cache a part is a chunk.
        """
        if self.storage.is_single_file:
            yield from self._join_chunks()
            return
        with self.storage.open_file(shard_key(self.spec, self.group)) as opened:
            for offset in range(0, self.file.size_bytes, max_bytes):
                size = min(max_bytes, self.file.size_bytes - offset)
                yield _read_exactly(opened, offset, size)

    def _join_chunks(self) -> Iterator[np.ndarray]:
        args = self.storage, self.layout, self.spec, self.group
        chunks = find_chunks(*args, file=self.file, cure=self.storage.repair_cure)
        with self.storage.open_file(chunks.key) as opened:
            for (offset, size), crc in zip(chunks.places.tolist(), self.crcs, strict=True):
                yield _read_exactly(opened, offset, size)
                yield np.array([crc], "<u4").view(np.uint8)
        sizes = chunks.places[:, 1].tolist()
        for part in list_tail(sizes, shard_samples=self.layout.shard_samples):
            yield np.frombuffer(part, np.uint8)


def _read_exactly(opened: OpenFile, offset: int, size_bytes: int) -> np.ndarray:
    part = np.empty(size_bytes, np.uint8)
    if opened.read_into(offset, [part]) != size_bytes:
        raise OSError(None, "it is too short")
    return part


def crc32c(array: np.ndarray) -> int:
    """crc32c of a contiguous array's bytes, computed without the interpreter's lock."""
    return crc32c_library.crc32c(array.reshape(-1).view(np.uint8))


def list_parts(
    chunks: list[np.ndarray], crcs: list[int], *, shard_samples: int
) -> list[memoryview | bytes]:
    """The bytes of a shard file, in parts.

    Args:
        chunks: stored bytes of each sample, coded or not, uint8 [size].
        crcs: crc32c of each chunk.
        shard_samples: number of entries of the index.
    """
    parts: list[memoryview | bytes] = []
    for chunk, crc in zip(chunks, crcs, strict=True):
        parts += [memoryview(chunk), crc.to_bytes(CRC_BYTES, "little")]
    return parts + list_tail([chunk.size for chunk in chunks], shard_samples=shard_samples)


def list_tail(chunk_bytes: list[int], *, shard_samples: int) -> list[bytes]:
    """The bytes that follow the chunks: the index and its checksum.

    Args:
        chunk_bytes: of each chunk, without its checksum.
    """
    index = build_index(chunk_bytes, shard_samples=shard_samples)
    return [index.tobytes(), crc32c(index).to_bytes(CRC_BYTES, "little")]


def build_index(chunk_bytes: list[int], *, shard_samples: int) -> np.ndarray:
    """(offset, size) of each chunk, little-endian uint64 [shard_samples, 2].

    Sizes include the 4 bytes of the chunk's checksum, which `chunk_bytes` do not. Entries without a
    chunk are ABSENT.
    """
    index = np.full((shard_samples, 2), ABSENT, "<u8")
    sizes = np.array(chunk_bytes, "<u8") + np.uint64(CRC_BYTES)
    index[: len(sizes), 0] = np.cumsum(sizes) - sizes
    index[: len(sizes), 1] = sizes
    return index


def read_index(
    storage: Storage,
    key: str,
    *,
    count: int,
    shard_samples: int,
    size_bytes: int,
    chunk_bytes: int | None,
    cure: str,
) -> np.ndarray:
    """Read and check the index of a shard file, as `build_index` makes it.

    Args:
        count: number of samples in the file. size_bytes: of the file.
        chunk_bytes: of each chunk, without checksum; None: any.
        cure: for the message.

    Raises: CacheCorruptError if size, checksum or contents are not as expected.
    """
    path, tail = storage.name(key), np.empty(index_bytes(shard_samples), np.uint8)
    try:
        with storage.open_file(key) as opened:
            found = opened.size()
            got = opened.read_into(found - tail.size, [tail]) if found == size_bytes else 0
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


class MappedFiles:
    """Shard files mapped into memory, read-only, each once.

    Each mapping keeps a file descriptor until this object is deleted.
    """

    def __init__(self) -> None:
        self._maps: dict[str, tuple[int, mmap.mmap]] = {}

    def open(self, path: str, *, identity: int) -> mmap.mmap | None:
        """Map a local file.

        Args:
            identity: of the file that is wanted, see `disk.find_identity`.

        Returns: None if it has changed, or if the system allows no further mapping. A file that
            becomes shorter while it is copied from its mapping ends the process (SIGBUS).

        Raises: OSError.
        """
        known, mapped = self._maps.get(path, (None, None))
        try:
            found = find_identity(os.lstat(path))
        except FileNotFoundError:
            found = known  # removed, as copies in a stage are; the mapping keeps it
        if found != identity:
            return None
        if known == identity:
            return mapped
        with open_plain(path) as opened:
            if opened.find_identity() != identity:
                return None
            try:
                mapped = mmap.mmap(opened.descriptor, 0, access=mmap.ACCESS_READ)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    return None
                raise
        self._maps[path] = identity, mapped
        return mapped


def copy_into(slots: list[np.ndarray], source: mmap.mmap, offset: int) -> int:
    """Fill contiguous arrays in turn from an offset of a mapping; returns the bytes copied."""
    done = 0
    for slot in slots:
        part = np.frombuffer(source, np.uint8)[offset + done : offset + done + slot.nbytes]
        slot.reshape(-1).view(np.uint8)[: part.size] = part
        done += part.size
    return done
