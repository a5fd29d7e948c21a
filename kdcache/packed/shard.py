"""A shard file that a packed cache does not have, read as if it were there: for copies of shard files (`cache.stage_dir`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kdcache.cache import shard
from kdcache.cache.chunks import find_chunks
from kdcache.cache.index import read_group_record
from kdcache.cache.layout import CRC_BYTES
from kdcache.cache.manifest import read_manifest
from kdcache.cache.shard import list_tail, read_at
from kdcache.packed.path import PackedPath
from kdcache.packed.table import CURE

Piece = (
    tuple[int, int] | bytes
)  # (offset, size) in the file, or bytes that a packed cache leaves out


class PackedShard:
    """The bytes of a shard file, one piece after the other: chunks from the file, checksums and index made."""

    def __init__(self, descriptor: int, pieces: list[Piece]) -> None:
        self.descriptor, self.pieces = descriptor, pieces
        sizes = [len(piece) if isinstance(piece, bytes) else piece[1] for piece in pieces]
        self.starts = np.cumsum([0, *sizes])

    def read_into(self, offset: int, room: np.ndarray) -> int:
        """Fill uint8 [size] from a position; returns the number of bytes got. Raises OSError."""
        done = 0
        while done < room.size and offset + done < self.starts[-1]:
            number = int(np.searchsorted(self.starts, offset + done, side="right")) - 1
            inner = offset + done - int(self.starts[number])
            part = room[done : done + int(self.starts[number + 1] - self.starts[number]) - inner]
            piece = self.pieces[number]
            if isinstance(piece, bytes):
                part[:] = np.frombuffer(piece, np.uint8)[inner : inner + part.size]
            elif read_at(self.descriptor, piece[0] + inner, [part]) != part.size:
                return done
            done += part.size
        return done


@shard.open_plain.register(PackedPath)
@contextmanager
def open_shard(path: PackedPath) -> Iterator[PackedShard]:
    """As of a shard file. Raises CacheCorruptError, OSError."""
    root = PackedPath(path.file)
    split, name, _, view, index = path.inner.split("/")[:5]
    manifest = read_manifest(root)
    layout = manifest.layouts[split]
    group = layout.group(int(view), int(index))
    record = read_group_record(root, manifest, group)
    chunks = find_chunks(
        root, layout, layout.array(name), group, file=record.files[name], cure=CURE
    )
    pieces: list[Piece] = []
    for (offset, size), crc in zip(chunks.places.tolist(), record.crcs[name], strict=True):
        pieces += [(offset, size), crc.to_bytes(CRC_BYTES, "little")]
    pieces += list_tail(chunks.places[:, 1].tolist(), shard_samples=layout.shard_samples)
    with shard.open_plain(chunks.path) as descriptor:
        yield PackedShard(descriptor, pieces)


@shard.find_size.register(PackedShard)
def find_size(opened: PackedShard) -> int:
    """Of the whole shard file."""
    return int(opened.starts[-1])


@shard.read_at.register(PackedShard)
def read_shard(opened: PackedShard, offset: int, slots: list[np.ndarray]) -> int:
    """As of a shard file."""
    done = 0
    for slot in slots:
        done += opened.read_into(offset + done, slot.reshape(-1).view(np.uint8))
    return done
