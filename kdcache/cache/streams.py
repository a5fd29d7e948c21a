"""How many bytes a chunk of a codec decodes to, before memory is taken for them: a few hundred
hostile bytes can stand for gigabytes.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np

from kdcache.errors import one_line

ZSTD_HEADER_BYTES, _ZSTD_MAGIC = 18, b"\x28\xb5\x2f\xfd"


def read_zstd_size(header: bytes) -> int | None:
    """Decoded size in bytes by a frame's header (RFC 8878, 3.1.1.1); None if it has none."""
    if len(header) < 6 or header[:4] != _ZSTD_MAGIC:
        return None
    descriptor = header[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    size = int.from_bytes(header[start : start + width], "little") + (256 if width == 2 else 0)
    return size if width and len(header) >= start + width else None


def decode_streams(make: Callable[[], object], data: bytes, room: np.ndarray) -> None:
    """Fill `room`, uint8 [size], from streams one behind the other.

    Raises ValueError if they are damaged or do not hold exactly as many bytes.
    """
    done = 0
    while data:
        stream = make()
        try:
            part = stream.decompress(data, room.size - done + 1)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ValueError(one_line(error)) from None
        if done + len(part) > room.size or not stream.eof:
            break
        room[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done, data = done + len(part), stream.unused_data
    if data or done != room.size:
        raise ValueError(f"it does not hold {room.size} bytes")


STREAMS = {
    "gzip": partial(zlib.decompressobj, 16 + zlib.MAX_WBITS),
    "numcodecs.gzip": partial(zlib.decompressobj, 16 + zlib.MAX_WBITS),
    "numcodecs.zlib": zlib.decompressobj,
    "numcodecs.bz2": bz2.BZ2Decompressor,
    "numcodecs.lzma": lzma.LZMADecompressor,
}
SIZES = {  # by the first bytes of a chunk and its size
    "numcodecs.blosc": lambda header, size: _read_blosc_size(header, size),
    "numcodecs.zstd": lambda header, _: read_zstd_size(header),
    "numcodecs.lz4": lambda header, _: int.from_bytes(header[:4], "little"),
}


def _read_blosc_size(header: bytes, size_bytes: int) -> int | None:
    """None if the chunk is not as long as it says: blosc would read on behind its end."""
    coded = int.from_bytes(header[12:16], "little")
    return int.from_bytes(header[4:8], "little") if coded == size_bytes else None
