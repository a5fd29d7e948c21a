"""The bases of lowrank levels: learned from the teacher's own answers, kept in the cache, named by
hash in its identity.

Letters: N samples, C channels, R coefficients, H, W height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kdcache.cache.encodings import Encoding, find_directions
from kdcache.cache.layout import CRC_BYTES
from kdcache.cache.shards import crc32c
from kdcache.errors import CacheCorruptError
from kdcache.storage.base import Storage, UnfitFileError

if TYPE_CHECKING:
    from torch import Tensor

BASIS_SAMPLES = (
    48  # measured: 6 are too few, 12 nearly enough, 24 good; more were not tried (BENCHMARKS.md)
)


class BasisLearner:
    """Second moments of the directions of a level's features, position by position.

    The cosine of the loss knows directions only, so each position counts alike, whatever its
    length. The basis of rank R is the eigenvectors of the R largest eigenvalues: no other keeps
    more of them (Eckart and Young 1936, doi:10.1007/BF02288367).
    """

    def __init__(self) -> None:
        self.moments: dict[str, Tensor] = {}  # level -> float64 [C, C]

    def add(self, level: str, values_NCHW: Tensor) -> None:
        """Take a batch of float32 features into account."""
        x_CP = find_directions(values_NCHW).transpose(0, 1).flatten(1)
        moment = (x_CP @ x_CP.T).double().cpu()
        self.moments[level] = self.moments.get(level, 0.0) + moment

    def finish(self, ranks: dict[str, int]) -> dict[str, np.ndarray]:
        """level -> float32 [C, R], orthonormal columns, most important first; the largest number of
        each is positive.
        """
        import torch

        bases = {}
        for level, rank in ranks.items():
            vectors_CR = torch.linalg.eigh(self.moments[level])[1].flip(1)[:, :rank]
            peaks = vectors_CR.gather(0, vectors_CR.abs().argmax(0, keepdim=True))
            bases[level] = (vectors_CR * peaks.sign()).float().contiguous().numpy()
        return bases


def hash_basis(basis_CR: np.ndarray) -> str:
    """sha256 (hex) over its little-endian float32 numbers in C order."""
    return hashlib.sha256(_to_bytes(basis_CR)).hexdigest()


def count_basis_bytes(encodings: Mapping[str, Encoding]) -> dict[str, int]:
    """Lowrank level -> size of its basis on the disk, checksum included."""
    lowrank = {
        level: encoding for level, encoding in encodings.items() if encoding.kind == "lowrank"
    }
    return {
        level: 4 * encoding.channels * encoding.rank + CRC_BYTES
        for level, encoding in lowrank.items()
    }


def basis_name(level: str) -> str:
    """The array beside the level's, of no view and no sample."""
    return f"{level}_basis"


def basis_key(level: str) -> str:
    """The one chunk of a basis, by Zarr v3's default chunk keys."""
    return f"train/{basis_name(level)}/c/0/0"


def write_bases(storage: Storage, bases: dict[str, np.ndarray]) -> None:
    """Write each basis that is not there, whole.

    Raises OSError; CacheCorruptError if a link leads out of the cache.
    """
    for level, basis_CR in bases.items():
        key, data = basis_key(level), _to_bytes(basis_CR)
        folder = key.rpartition("/")[0]
        storage.check_inside(folder, cure="remove the link")
        storage.make_folders(folder)
        chunk = data + crc32c(np.frombuffer(data, np.uint8)).to_bytes(CRC_BYTES, "little")
        if not _holds(storage, key, chunk):
            storage.replace(key, chunk)


def _holds(storage: Storage, key: str, data: bytes) -> bool:
    """Whether a plain file is there and has these bytes. Raises OSError if it cannot be read."""
    try:
        return storage.read_bytes(key) == data
    except (FileNotFoundError, UnfitFileError):
        return False


def read_basis(storage: Storage, level: str, encoding: Encoding) -> np.ndarray:
    """float32 [C, R].

    Raises CacheCorruptError if it is not the one that the cache's numbers are coefficients of.
    """
    where, cure = storage.name(basis_key(level)), storage.repair_cure
    body, crc = _read_chunk(storage, level, (encoding.channels, encoding.rank))
    if hashlib.sha256(body).hexdigest() != encoding.basis_sha256:
        raise CacheCorruptError(
            where, "basis is not the one this cache was written with", cure=cure
        )
    if crc != crc32c(np.frombuffer(body, np.uint8)):
        raise CacheCorruptError(where, "stored checksum of the basis differs", cure=cure)
    return np.frombuffer(body, "<f4").astype(np.float32).reshape(encoding.channels, encoding.rank)


def read_any_basis(storage: Storage, level: str, shape: tuple[int, int]) -> np.ndarray:
    """float32 [C, R], whatever cache it is of.

    Raises CacheCorruptError if its checksum says that it is damaged.
    """
    body, crc = _read_chunk(storage, level, shape)
    if crc != crc32c(np.frombuffer(body, np.uint8)):
        where, cure = storage.name(basis_key(level)), storage.repair_cure
        raise CacheCorruptError(where, "stored checksum of the basis differs", cure=cure)
    return np.frombuffer(body, "<f4").astype(np.float32).reshape(shape)


def _read_chunk(storage: Storage, level: str, shape: tuple[int, int]) -> tuple[bytes, int]:
    """The bytes of a basis, and the checksum behind them."""
    key, cure, size_bytes = basis_key(level), storage.repair_cure, 4 * shape[0] * shape[1]
    storage.check_inside(key, cure=cure)
    data = storage.read_document(key, cure=cure)
    if len(data) != size_bytes + CRC_BYTES:
        what = f"basis is {len(data)} bytes, expected {size_bytes + CRC_BYTES}"
        raise CacheCorruptError(storage.name(key), what, cure=cure)
    return data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "little")


def read_bases(storage: Storage, encodings: dict[str, Encoding]) -> dict[str, np.ndarray]:
    """The basis of every lowrank level. Raises CacheCorruptError."""
    return {
        level: read_basis(storage, level, enc)
        for level, enc in encodings.items()
        if enc.kind == "lowrank"
    }


def choose_samples(count: int) -> list[int]:
    """Which samples of view 0 a basis is learned from: evenly over the split."""
    chosen = min(count, BASIS_SAMPLES)
    return [index * (count - 1) // max(chosen - 1, 1) for index in range(chosen)]


def _to_bytes(basis_CR: np.ndarray) -> bytes:
    return np.ascontiguousarray(basis_CR, "<f4").tobytes()
