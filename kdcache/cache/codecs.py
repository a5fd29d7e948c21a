"""Lossless compression of chunks: each array has at most one Zarr v3 bytes-to-bytes codec.

numcodecs runs blosc and zstd in the calling thread, without the interpreter's lock; every other
codec goes through zarr-python, which is imported only then: it takes half a second to load. How
many bytes a chunk decodes to is known before memory is taken for them: a few hundred hostile bytes
can stand for gigabytes.
"""

from __future__ import annotations

import bz2
import lzma
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numcodecs import blosc, zstd

from kdcache.cache.layout import Codec
from kdcache.errors import one_line, refuse

if TYPE_CHECKING:
    import zarr

# In the main thread numcodecs would use c-blosc's own threads. They write blocks in the order in
# which they finish, so the same numbers would get other bytes each time.
blosc.use_threads = False

RAW = "raw"
# version and flags, then decoded size, block size and coded size as little-endian uint32
_BLOSC_HEADER_BYTES = 16
_SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
# Higher levels gain one per cent and take several times as long.
_BLOSC_LEVELS = {"blosc-lz4": ("lz4", 5), "blosc-zstd": ("zstd", 1)}
ZSTD_HEADER_BYTES, _ZSTD_MAGIC = 18, b"\x28\xb5\x2f\xfd"


class Coder(Protocol):
    """Encodes and decodes the samples of one array; thread-safe."""

    def encode(self, item: np.ndarray) -> bytes:
        """Encode a contiguous sample. Raises ValueError if the codec fails."""

    def decode_into(self, chunk: np.ndarray, slot: np.ndarray) -> None:
        """Decode a chunk, uint8 [size], into a contiguous slot of the sample's shape and dtype.

        Raises ValueError if the chunk does not decode to exactly such a sample.
        """


def choose_codec(name: str, dtype: str) -> Codec | None:
    """The codec that `cache.codec` means for arrays of `dtype`; None means raw bytes.

    Args:
        name: raw, blosc-lz4, blosc-zstd, or the name of a Zarr codec that zarr-python knows, which
            then has its default settings.

    Raises: SettingsError for any other name.
    """
    if name == RAW:
        return None
    if name in _BLOSC_LEVELS:
        cname, level = _BLOSC_LEVELS[name]
        size = np.dtype(dtype).itemsize
        shuffle = "shuffle" if size > 1 else "bitshuffle" if dtype == "int8" else "noshuffle"
        rest = {"shuffle": shuffle, "blocksize": 0}
        settings = {"typesize": size, "cname": cname, "clevel": level, **rest}
        return Codec("blosc", tuple(settings.items()))
    try:
        return Codec.from_dict(_ZarrCoder(name, None, shape=(1,), dtype=dtype).to_dict())
    except ValueError:
        expected = (
            "raw, blosc-lz4, blosc-zstd, zstd, gzip or another codec of zarr-python, "
            "as numcodecs.bz2"
        )
        raise refuse("cache.codec", name, expected) from None


def make_coder(codec: Codec, *, shape: tuple[int, ...], dtype: str) -> Coder:
    """Build the coder of samples of this shape and dtype.

    Raises ValueError if the codec is unknown, or its settings are not valid for it.
    """
    settings = dict(codec.settings or ())
    try:
        if codec.name == "blosc":
            shuffle = _SHUFFLES[settings["shuffle"]]
            return _Blosc(settings["cname"].encode(), settings["clevel"], shuffle, settings)
        if codec.name == "zstd":
            return _Zstd(settings["level"], settings["checksum"])
    except (KeyError, AttributeError) as error:
        raise ValueError(f"codec {codec.name} has no such setting ({error})") from None
    return _ZarrCoder(codec.name, codec.to_dict(), shape=shape, dtype=dtype)


class _Blosc:
    def __init__(self, cname: bytes, level: int, shuffle: int, settings: dict) -> None:
        self.cname, self.level, self.shuffle = cname, level, shuffle
        self.block_bytes, self.type_bytes = settings["blocksize"], settings["typesize"]

    def encode(self, item: np.ndarray) -> bytes:
        return blosc.compress(
            as_bytes(item), self.cname, self.level, self.shuffle, self.block_bytes, self.type_bytes
        )

    def decode_into(self, chunk: np.ndarray, slot: np.ndarray) -> None:
        header = chunk[:_BLOSC_HEADER_BYTES].tobytes()
        sizes = int.from_bytes(header[4:8], "little"), int.from_bytes(header[12:], "little")
        # numcodecs trusts the header: it would read past the end of the chunk
        if sizes != (slot.nbytes, chunk.size):
            raise ValueError("its blosc header speaks of another size")
        try:
            blosc.decompress(chunk, as_bytes(slot))
        except RuntimeError as error:
            raise ValueError(str(error)) from None


class _Zstd:
    def __init__(self, level: int, checksum: bool) -> None:
        self.level, self.checksum = level, checksum

    def encode(self, item: np.ndarray) -> bytes:
        return zstd.compress(as_bytes(item), self.level, self.checksum)

    def decode_into(self, chunk: np.ndarray, slot: np.ndarray) -> None:
        found = read_zstd_size(chunk[:ZSTD_HEADER_BYTES].tobytes())
        # numcodecs would leave the rest of the slot as it was, or allocate terabytes
        if found != slot.nbytes:
            raise ValueError(f"its zstd frame holds {found} bytes")
        try:
            zstd.decompress(chunk, as_bytes(slot))
        except RuntimeError as error:
            raise ValueError(str(error)) from None


class _ZarrCoder:
    """Codes each chunk as a zarr array of one chunk in memory: slow, but works with any codec.

    What a chunk decodes to is bounded before memory is taken for it: by a header, as it comes from
    a stream, or by its own size. Codecs of which nobody knows that (BOUNDED) are refused by name.

    Args:
        document: the codec as in zarr.json; None: the codec `name` with zarr-python's defaults.

    Raises: ValueError if zarr-python knows no such bytes-to-bytes codec, or refuses its settings,
        or if its chunks have no bound.
    """

    def __init__(
        self, name: str, document: dict | None, *, shape: tuple[int, ...], dtype: str
    ) -> None:
        kind, self.name = _find_class(name), name
        settings = (document or {}).get("configuration", {})
        is_raw = settings.get("format", lzma.FORMAT_XZ) != lzma.FORMAT_XZ
        if name not in BOUNDED or (is_raw and name == "numcodecs.lzma"):
            raise ValueError(f"codec {name[:40]} has no bound on what a chunk decodes to")
        self.make_stream = STREAMS.get(name)
        # Filters concern all threads, so this one is set for good and not only around the call
        warnings.filterwarnings(
            "ignore", message="Numcodecs codecs are not in the Zarr version 3 specification"
        )
        self.key, self.shape, self.dtype = "/".join(["c", *("0" for _ in shape)]), shape, dtype
        try:
            self.codec = kind() if document is None else kind.from_dict(document)
            self._make_array({})
        except Exception as error:  # a codec may be anybody's
            raise ValueError(f"codec {name[:40]} is not possible ({one_line(error)})") from None

    def to_dict(self) -> dict:
        """The codec as an object of zarr.json, with the defaults that zarr-python writes out."""
        return self._make_array({}).metadata.to_dict()["codecs"][-1]

    def encode(self, item: np.ndarray) -> bytes:
        """Encode a sample. Raises ValueError if the codec fails."""
        store = {}
        try:
            self._make_array(store)[...] = item
        except Exception as error:
            raise ValueError(one_line(error)) from None
        return store[self.key].to_bytes()

    def decode_into(self, chunk: np.ndarray, slot: np.ndarray) -> None:
        """Decode a chunk, uint8 [size], into a slot of the sample's shape and dtype.

        Raises ValueError if the codec fails.
        """
        if self.make_stream is not None:
            decode_streams(self.make_stream, chunk.tobytes(), as_bytes(slot))
            return
        find_size = SIZES.get(self.name)
        header = chunk[:ZSTD_HEADER_BYTES].tobytes()
        if find_size is not None and find_size(header, chunk.size) != slot.nbytes:
            raise ValueError("its header speaks of another size")
        from zarr.core.buffer import default_buffer_prototype

        store = {}
        array = self._make_array(store)
        store[self.key] = default_buffer_prototype().buffer.from_bytes(chunk.tobytes())
        try:
            slot[...] = array[...]
        except Exception as error:
            raise ValueError(one_line(error)) from None

    def _make_array(self, store: dict) -> zarr.Array:
        import zarr

        return zarr.create_array(
            zarr.storage.MemoryStore(store),
            shape=self.shape,
            chunks=self.shape,
            dtype=self.dtype,
            compressors=[self.codec],
            fill_value=0,
            config={"write_empty_chunks": True},
        )


def _find_class(name: str) -> type:
    """The class of a bytes-to-bytes codec. Raises ValueError if zarr-python has none."""
    from zarr.abc.codec import BytesBytesCodec
    from zarr.registry import get_codec_class

    try:
        kind = get_codec_class(name)
    except KeyError:
        kind = None
    if kind is None or not issubclass(kind, BytesBytesCodec):
        raise ValueError(f"codec {name[:40]!r} is none that zarr-python knows")
    return kind


def as_bytes(array: np.ndarray) -> np.ndarray:
    """A contiguous array seen as uint8 [size], without a copy."""
    return array.reshape(-1).view(np.uint8)


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
SAME_SIZE = (
    *("crc32c", "numcodecs.crc32c", "numcodecs.crc32", "numcodecs.adler32"),
    *("numcodecs.fletcher32", "numcodecs.jenkins_lookup3", "numcodecs.shuffle"),
)  # their chunks decode to no more bytes than they have
BOUNDED = {"zstd", "blosc", *STREAMS, *SIZES, *SAME_SIZE}  # two have coders of their own


def _read_blosc_size(header: bytes, size_bytes: int) -> int | None:
    """None if the chunk is not as long as it says: blosc would read on behind its end."""
    coded = int.from_bytes(header[12:16], "little")
    return int.from_bytes(header[4:8], "little") if coded == size_bytes else None
