"""Lossless compression of chunks, one Zarr v3 codec from bytes to bytes an array.

numcodecs codes blosc and zstd, in the thread that asks and without the interpreter's lock; anything else goes through
zarr-python.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numcodecs import blosc, zstd

from kdcache.checks import refuse

RAW = "raw"
_BLOSC_HEADER_BYTES = 16  # version, flags, then decoded size, block size, coded size as little-endian uint32
_SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
_BLOSC_LEVELS = {"blosc-lz4": ("lz4", 5), "blosc-zstd": ("zstd", 1)}  # higher ones gain a hundredth and take a multiple


@dataclass(frozen=True)
class Codec:
    """A Zarr v3 codec from bytes to bytes, as zarr.json names it; `settings` is its configuration, None where it has none."""

    name: str
    settings: tuple[tuple[str, str | int | bool], ...] | None = None

    def to_dict(self) -> dict:
        """As in zarr.json."""
        return (
            {"name": self.name} if self.settings is None else {"name": self.name, "configuration": dict(self.settings)}
        )

    @classmethod
    def from_dict(cls, stored: dict) -> Codec:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        settings = tuple(stored["configuration"].items()) if "configuration" in stored else None
        if type(stored["name"]) is not str or not all(isinstance(value, str | int) for _, value in settings or ()):
            raise ValueError(f"codec is {json.dumps(stored)[:80]}")
        return cls(stored["name"], settings)


class Coder(Protocol):
    """Codes the samples of one array; thread-safe."""

    def encode(self, item: np.ndarray) -> bytes:
        """The chunk of a contiguous sample."""

    def decode_into(self, chunk: np.ndarray, slot: np.ndarray) -> None:
        """Fill a contiguous slot of the sample's shape and dtype. Raises ValueError where the chunk is not one of it."""


def choose_codec(name: str, dtype: str) -> Codec | None:
    """The codec that `cache.codec` means for an array; None is raw bytes.

    Args:
        name: raw, blosc-lz4, blosc-zstd, or the name of a Zarr codec that zarr-python knows, with its default settings.

    Raises: SettingsError for any other name.
    """
    if name == RAW:
        return None
    if name in _BLOSC_LEVELS:
        cname, level = _BLOSC_LEVELS[name]
        size = np.dtype(dtype).itemsize
        shuffle = "shuffle" if size > 1 else "noshuffle"
        settings = {"typesize": size, "cname": cname, "clevel": level, "shuffle": shuffle, "blocksize": 0}
        return Codec("blosc", tuple(settings.items()))
    return _ask_zarr(name, dtype)


def make_coder(codec: Codec, *, shape: tuple[int, ...], dtype: str) -> Coder:
    """What codes chunks of that shape and dtype. Raises ValueError for a codec that nothing here knows."""
    settings = dict(codec.settings or ())
    try:
        if codec.name == "blosc":
            return _Blosc(settings["cname"].encode(), settings["clevel"], _SHUFFLES[settings["shuffle"]], settings)
        if codec.name == "zstd":
            return _Zstd(settings["level"], settings["checksum"])
    except (KeyError, AttributeError) as error:
        raise ValueError(f"codec {codec.name} has no such setting ({error})") from None
    return _ByZarr(codec, shape, dtype)


class _Blosc:
    def __init__(self, cname: bytes, level: int, shuffle: int, settings: dict) -> None:
        self.cname, self.level, self.shuffle = cname, level, shuffle
        self.block_bytes, self.type_bytes = settings["blocksize"], settings["typesize"]

    def encode(self, item: np.ndarray) -> bytes:
        return blosc.compress(as_bytes(item), self.cname, self.level, self.shuffle, self.block_bytes, self.type_bytes)

    def decode_into(self, chunk: np.ndarray, slot: np.ndarray) -> None:
        header = chunk[:_BLOSC_HEADER_BYTES].tobytes()
        sizes = int.from_bytes(header[4:8], "little"), int.from_bytes(header[12:], "little")
        if sizes != (slot.nbytes, chunk.size):  # numcodecs believes the header: it would read past the end
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
        try:
            decoded = np.frombuffer(zstd.decompress(chunk), np.uint8)  # into the slot, fewer bytes would pass unnoticed
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        if decoded.size != slot.nbytes:
            raise ValueError(f"it holds {decoded.size} bytes")
        as_bytes(slot)[:] = decoded


class _ByZarr:
    """Each chunk as an array of one chunk in a store in memory: slow, but whatever zarr-python knows works."""

    def __init__(self, codec: Codec, shape: tuple[int, ...], dtype: str) -> None:
        _find_class(codec.name)
        self.codec, self.shape, self.dtype = codec, shape, dtype
        self.key = "/".join(["c", *("0" for _ in shape)])

    def encode(self, item: np.ndarray) -> bytes:
        store, array = self._open_array()
        array[...] = item
        return store[self.key].to_bytes()

    def decode_into(self, chunk: np.ndarray, slot: np.ndarray) -> None:
        from zarr.core.buffer import default_buffer_prototype

        store, array = self._open_array()
        store[self.key] = default_buffer_prototype().buffer.from_bytes(chunk.tobytes())
        try:
            slot[...] = array[...]
        except Exception as error:  # a codec may be anybody's
            raise ValueError(str(error) or type(error).__name__) from None

    def _open_array(self):
        import zarr

        store = {}
        with warnings.catch_warnings(action="ignore"):  # codecs outside of the specification
            kind = _find_class(self.codec.name)
            array = zarr.create_array(
                zarr.storage.MemoryStore(store),
                shape=self.shape,
                chunks=self.shape,
                dtype=self.dtype,
                compressors=[kind.from_dict(self.codec.to_dict())],
                fill_value=0,
                config={"write_empty_chunks": True},
            )
        return store, array


def _ask_zarr(name: str, dtype: str) -> Codec:
    """A codec of zarr-python with its defaults written out, which differ between versions."""
    import zarr

    try:
        kind = _find_class(name)
    except ValueError:
        raise refuse(
            "cache.codec", name, "raw, blosc-lz4, blosc-zstd, zstd, gzip or another codec of zarr-python"
        ) from None
    with warnings.catch_warnings(action="ignore"):
        array = zarr.create_array({}, shape=(1,), chunks=(1,), dtype=dtype, compressors=[kind()], fill_value=0)
    return Codec.from_dict(array.metadata.to_dict()["codecs"][-1])


def _find_class(name: str) -> type:
    """zarr-python's codec from bytes to bytes of that name. Raises ValueError where there is none."""
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
    """The bytes of a contiguous array, uint8 [size], in the same memory."""
    return array.reshape(-1).view(np.uint8)
