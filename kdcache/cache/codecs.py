"""Lossless compression of chunks: each array has at most one Zarr v3 bytes-to-bytes codec.

numcodecs runs blosc and zstd in the calling thread, without the interpreter's lock; every other
codec goes through zarr-python, which is imported only then: it takes half a second to load.
"""

from __future__ import annotations

import json
import lzma
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numcodecs import blosc, zstd

from kdcache.cache.streams import SIZES, STREAMS, ZSTD_HEADER_BYTES, decode_streams, read_zstd_size
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


@dataclass(frozen=True)
class Codec:
    """A Zarr v3 bytes-to-bytes codec, as zarr.json names it.

    settings: its configuration as (name, value) pairs; None if it has none.
    """

    name: str
    settings: tuple[tuple[str, str | int | float | None], ...] | None = None

    def to_dict(self) -> dict:
        """The codec as an object of zarr.json."""
        return (
            {"name": self.name}
            if self.settings is None
            else {"name": self.name, "configuration": dict(self.settings)}
        )

    @classmethod
    def from_dict(cls, stored: dict) -> Codec:
        """The inverse of `to_dict`.

        Raises KeyError, TypeError, AttributeError or ValueError if `stored` is not such an object.
        """
        settings = tuple(stored["configuration"].items()) if "configuration" in stored else None
        plain = all(isinstance(value, str | int | float | None) for _, value in settings or ())
        if (
            type(stored["name"]) is not str
            or not plain
            or not set(stored) <= {"name", "configuration"}
        ):
            raise ValueError(f"codec is {json.dumps(stored)[:80]}")
        return cls(stored["name"], settings)


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
        settings = {
            "typesize": size,
            "cname": cname,
            "clevel": level,
            "shuffle": shuffle,
            "blocksize": 0,
        }
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
            return _Blosc(
                settings["cname"].encode(),
                settings["clevel"],
                _SHUFFLES[settings["shuffle"]],
                settings,
            )
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

    What a chunk decodes to is bounded before memory is taken for it: by a header, or as it comes
    from a stream. Of codecs that are not in STREAMS and SIZES a hostile chunk may take as much
    memory as they allocate.

    Args:
        document: the codec as in zarr.json; None: the codec `name` with zarr-python's defaults.

    Raises: ValueError if zarr-python knows no such bytes-to-bytes codec, or refuses its settings.
    """

    def __init__(
        self, name: str, document: dict | None, *, shape: tuple[int, ...], dtype: str
    ) -> None:
        kind, self.name = _find_class(name), name
        settings = (document or {}).get("configuration", {})
        is_raw = settings.get("format", lzma.FORMAT_XZ) != lzma.FORMAT_XZ
        self.make_stream = None if is_raw else STREAMS.get(name)
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
