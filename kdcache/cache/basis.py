"""The bases of lowrank levels.

They are learned from the teacher's features, stored in the cache, and named by hash in its
identity.

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
from kdcache.disk import UnfitFileError
from kdcache.errors import CacheCorruptError
from kdcache.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

# Measured: 6 are too few, 12 nearly enough, 24 good; more were not tried (BENCHMARKS.md).
BASIS_SAMPLES = 48


class BasisLearner:
    """Sums second moments of each level's feature directions, over samples and positions.

    The cosine in the loss depends on directions only, so every position has the same weight,
    whatever its length. The basis of rank R holds the eigenvectors of the R largest eigenvalues:
    no other basis keeps more of the energy (Eckart and Young 1936, doi:10.1007/BF02288367).
    """

    def __init__(self) -> None:
        self.moments: dict[str, Tensor] = {}  # level -> float64 [C, C]

    def add(self, level: str, values_NCHW: Tensor) -> None:
        """Add a batch of float32 features to the moments of `level`."""
        x_CP = find_directions(values_NCHW).transpose(0, 1).flatten(1)
        moment = (x_CP @ x_CP.T).double().cpu()
        self.moments[level] = self.moments.get(level, 0.0) + moment

    def finish(self, ranks: dict[str, int]) -> dict[str, np.ndarray]:
        """Compute the basis of each level.

        Args:
            ranks: level -> R, 1 to C.

        Returns: level -> float32 [C, R] with orthonormal columns, largest eigenvalue first. The
            element of largest magnitude in each column is positive.
        """
        import torch

        bases = {}
        for level, rank in ranks.items():
            vectors_CR = torch.linalg.eigh(self.moments[level])[1].flip(1)[:, :rank]
            peaks = vectors_CR.gather(0, vectors_CR.abs().argmax(0, keepdim=True))
            bases[level] = (vectors_CR * peaks.sign()).float().contiguous().numpy()
        return bases


def hash_basis(basis_CR: np.ndarray) -> str:
    """sha256 (hex) of a basis as little-endian float32 in C order."""
    return hashlib.sha256(_to_bytes(basis_CR)).hexdigest()


def count_basis_bytes(encodings: Mapping[str, Encoding]) -> dict[str, int]:
    """Lowrank level -> bytes of its basis on disk, checksum included."""
    lowrank = {
        level: encoding for level, encoding in encodings.items() if encoding.kind == "lowrank"
    }
    return {
        level: 4 * encoding.channels * encoding.rank + CRC_BYTES
        for level, encoding in lowrank.items()
    }


def basis_name(level: str) -> str:
    """Name of the array that holds a level's basis; it has no view or sample axis."""
    return f"{level}_basis"


def basis_key(level: str) -> str:
    """Key of a basis's only chunk, by Zarr v3's default chunk keys."""
    return f"train/{basis_name(level)}/c/0/0"


def write_bases(storage: Storage, bases: dict[str, np.ndarray]) -> None:
    """Write each basis that is missing or has other bytes, each in one step.

    Args:
        bases: level -> float32 [C, R].

    Raises: OSError; CacheCorruptError if a link leads out of the cache.
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
    """Whether a plain file of this key exists with these bytes. Raises OSError."""
    try:
        return storage.read_bytes(key) == data
    except (FileNotFoundError, UnfitFileError):
        return False


def read_basis(storage: Storage, level: str, encoding: Encoding) -> np.ndarray:
    """Read the basis that `encoding` names by hash, float32 [C, R].

    Raises CacheCorruptError if the stored basis is missing, damaged or another one.
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
    """Read a basis of this shape, float32 [C, R], without comparing it with an identity.

    Raises CacheCorruptError if it is missing or its checksum differs.
    """
    body, crc = _read_chunk(storage, level, shape)
    if crc != crc32c(np.frombuffer(body, np.uint8)):
        where, cure = storage.name(basis_key(level)), storage.repair_cure
        raise CacheCorruptError(where, "stored checksum of the basis differs", cure=cure)
    return np.frombuffer(body, "<f4").astype(np.float32).reshape(shape)


def _read_chunk(storage: Storage, level: str, shape: tuple[int, int]) -> tuple[bytes, int]:
    """The bytes of a basis, and the checksum stored behind them."""
    key, cure, size_bytes = basis_key(level), storage.repair_cure, 4 * shape[0] * shape[1]
    storage.check_inside(key, cure=cure)
    data = storage.read_document(key, cure=cure)
    if len(data) != size_bytes + CRC_BYTES:
        what = f"basis is {len(data)} bytes, expected {size_bytes + CRC_BYTES}"
        raise CacheCorruptError(storage.name(key), what, cure=cure)
    return data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "little")


def read_bases(storage: Storage, encodings: dict[str, Encoding]) -> dict[str, np.ndarray]:
    """Lowrank level -> its basis, float32 [C, R]. Raises CacheCorruptError."""
    return {
        level: read_basis(storage, level, enc)
        for level, enc in encodings.items()
        if enc.kind == "lowrank"
    }


def choose_samples(count: int) -> list[int]:
    """Indices of the samples to learn a basis from, spread evenly over a split of `count`."""
    chosen = min(count, BASIS_SAMPLES)
    return [index * (count - 1) // max(chosen - 1, 1) for index in range(chosen)]


def _to_bytes(basis_CR: np.ndarray) -> bytes:
    return np.ascontiguousarray(basis_CR, "<f4").tobytes()
