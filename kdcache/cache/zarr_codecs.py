"""Codecs that only zarr-python knows.

Imported where one is used: zarr takes half a second to load.
"""

from __future__ import annotations

import warnings

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.registry import get_codec_class

from kdcache.errors import one_line


class ZarrCoder:
    """Codes each chunk as a zarr array of one chunk in memory: slow, but works with any codec.

    A damaged chunk may take as much memory as its codec allocates.

    Args:
        document: the codec as in zarr.json; None: the codec `name` with zarr-python's defaults.

    Raises: ValueError if zarr-python knows no such bytes-to-bytes codec, or refuses its settings.
    """

    def __init__(
        self, name: str, document: dict | None, *, shape: tuple[int, ...], dtype: str
    ) -> None:
        kind = _find_class(name)
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
        store = {}
        array = self._make_array(store)
        store[self.key] = default_buffer_prototype().buffer.from_bytes(chunk.tobytes())
        try:
            slot[...] = array[...]
        except Exception as error:
            raise ValueError(one_line(error)) from None

    def _make_array(self, store: dict) -> zarr.Array:
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
    try:
        kind = get_codec_class(name)
    except KeyError:
        kind = None
    if kind is None or not issubclass(kind, BytesBytesCodec):
        raise ValueError(f"codec {name[:40]!r} is none that zarr-python knows")
    return kind
