"""The one question below reading and verifying: where are the bytes of an array's samples of one shard group?

A folder or a bucket answers with a shard file and the index at its end; a packed cache with places in its one file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from kdcache.cache.layout import CRC_BYTES, ArraySpec, Group, SplitLayout, shard_path
from kdcache.cache.shard import ShardFile, check_inside, read_index
from kdcache.storage.place import Place


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where the samples of one array and shard group are.

    path: what is opened. places: (offset, size) of each chunk, uint64 [samples, 2], size without any checksum.
    checksums: whether 4 bytes of crc32c follow each chunk, and a shard's index the last.
    """

    path: Place
    places: np.ndarray
    checksums: bool = True


@singledispatch
def find_chunks(
    root: Place, layout: SplitLayout, spec: ArraySpec, group: Group, *, file: ShardFile, cure: str
) -> Chunks:
    """Where a group's samples of one array are.

    Args:
        file: what the commit record says of the shard. cure: for the message.

    Raises: CacheCorruptError where that is not what is there.
    """
    path = shard_path(root, spec, group)
    check_inside(root, path, cure=cure)
    return read_chunks(path, layout, spec, group, file=file, cure=cure)


def read_chunks(
    path: Place, layout: SplitLayout, spec: ArraySpec, group: Group, *, file: ShardFile, cure: str
) -> Chunks:
    """The same of a shard file, wherever that is."""
    index = read_index(
        path,
        count=group.stop - group.start,
        shard_samples=layout.shard_samples,
        size_bytes=file.size_bytes,
        chunk_bytes=None if spec.codec else spec.item_bytes,
        cure=cure,
    )
    return Chunks(path, index[: group.stop - group.start] - np.array([0, CRC_BYTES], index.dtype))
