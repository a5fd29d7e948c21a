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
    """Each chunk as an array of one chunk in a store in memory: slow, but whatever zarr-python
    knows works.

    How much memory a chunk takes that is not what was written is up to its codec.

    Args:
        document: the codec as in zarr.json; None: the one of that `name` with zarr-python's
            defaults.

    Raises: ValueError if zarr-python knows no such codec from bytes to bytes, or not with these
    settings.
    """

    def __init__(
        self, name: str, document: dict | None, *, shape: tuple[int, ...], dtype: str
    ) -> None:
        kind = _find_class(name)
        # Not for a moment but for good: a filter of one thread is in all of them
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
        """The codec as zarr.json has it, defaults written out as far as it does that itself."""
        return self._make_array({}).metadata.to_dict()["codecs"][-1]

    def encode(self, item: np.ndarray) -> bytes:
        """The chunk of a sample. Raises ValueError."""
        store = {}
        try:
            self._make_array(store)[...] = item
        except Exception as error:
            raise ValueError(one_line(error)) from None
        return store[self.key].to_bytes()

    def decode_into(self, chunk: np.ndarray, slot: np.ndarray) -> None:
        """Fill a slot of the sample's shape and dtype. Raises ValueError."""
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
    """Raises ValueError if zarr-python has no codec from bytes to bytes of that name."""
    try:
        kind = get_codec_class(name)
    except KeyError:
        kind = None
    if kind is None or not issubclass(kind, BytesBytesCodec):
        raise ValueError(f"codec {name[:40]!r} is none that zarr-python knows")
    return kind
