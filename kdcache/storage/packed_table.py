"""The table of a packed cache: offsets of documents and samples, read once from its HDF5 structure.

HDF5 is open only while the table is read. Samples are read later without HDF5's lock or handle, so
that threads do not wait for each other and processes may be forked.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdcache.disk import open_plain
from kdcache.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheMismatchError,
    Phrase,
    describe,
)

if TYPE_CHECKING:
    import h5py

DOCUMENTS = "documents"  # the HDF5 group of JSON documents and bases
FORMAT = "kdcache"
_SPLITS = ("train", "val")  # that every cache has
_UNLABELLED = "unlabelled"
MOST_ITEMS = 1 << 24  # samples of all views of an array, whose table takes 16 bytes each
SIGNATURE = b"\x89HDF\r\n\x1a\n"
CURE = "copy it again from where it was made, or export it again"
_DAMAGE = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    IndexError,
    AttributeError,
    MemoryError,
)


@dataclass(frozen=True)
class PackedArray:
    """One array of shape [views, samples, ...].

    places: (offset, size) of each sample's bytes, uint64 [views, samples, 2].
    """

    shape: tuple[int, ...]
    dtype: str
    places: np.ndarray


@dataclass(frozen=True)
class Table:
    """The contents of a packed cache.

    file: its path, links resolved. documents: key -> (offset, size) in bytes.
    arrays: "train/low", for example, -> the array.
    """

    file: Path
    documents: dict[str, tuple[int, int]]
    arrays: dict[str, PackedArray]


def read_table(file: Path) -> Table:
    """The table of a packed cache; it is read again only if the file changes.

    Raises: CacheMismatchError if the file is no packed cache, CacheIncompleteError if its export
        was not finished, CacheCorruptError if it is damaged.
    """
    try:
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(None, "it is no plain file")
        return _read_table(file, (facts.st_ino, facts.st_size, facts.st_mtime_ns))
    except OSError as error:
        raise CacheCorruptError(file, f"file is unreadable ({error.strerror})", cure=CURE) from None


@lru_cache(maxsize=8)
def _read_table(file: Path, mark: tuple[int, int, int]) -> Table:
    import h5py  # here, because it takes a fifth of a second

    with open_plain(file, follow=True) as plain:
        if plain.read(len(SIGNATURE)) != SIGNATURE:
            raise _refuse(file, "file", "no HDF5 file")
    try:
        # without locks: a finished file never changes, and some file systems have none
        with h5py.File(file, locking=False) as opened:
            _check_kind(file, opened)
            return Table(
                Path(os.path.realpath(file)), _list_documents(opened), _list_arrays(opened, mark[1])
            )
    except CacheError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        if "already open for write" in reason:
            raise _say_unfinished(file) from None
        what = (
            "is cut short"
            if "truncated file" in reason
            else f"has a damaged structure ({reason[:80]})"
        )
        raise CacheCorruptError(file, f"file {what}", cure=CURE) from None


def check_count(name: str, num_samples: int) -> None:
    """Raise CacheError if an array has more samples, over all views, than a file can have."""
    if num_samples > MOST_ITEMS:
        raise CacheError(
            f"{name}: it has {num_samples} samples over all views, expected {MOST_ITEMS} at most "
            "in one packed file; pack fewer views (--views)"
        )


def _check_kind(file: Path, opened: h5py.File) -> None:
    form = opened.attrs.get("format")
    if form != FORMAT:
        raise _refuse(file, "attribute format", "missing" if form is None else repr(form)[:40])
    if opened.attrs.get("complete") != 1:
        raise _say_unfinished(file)


def _say_unfinished(file: Path) -> CacheIncompleteError:
    return CacheIncompleteError(
        f"{file}: export of it is not finished; wait for it, or remove it and export again"
    )


def _refuse(file: Path, field: str, found: str) -> CacheMismatchError:
    cure = "give the folder of a cache, or a file that `python -m cache_teacher export` has written"
    return CacheMismatchError(
        describe(
            file, field=field, found=Phrase(found), expected=Phrase("a packed cache"), cure=cure
        )
    )


def _list_documents(opened: h5py.File) -> dict[str, tuple[int, int]]:
    import h5py

    group, places = _get(opened, DOCUMENTS).id, {}

    def look(name: bytes) -> None:
        one = h5py.h5o.open(group, name)
        if isinstance(one, h5py.h5d.DatasetID):
            places[name.decode()] = (one.get_offset(), one.get_storage_size())

    h5py.h5o.visit(group, look)
    lost = next((name for name, (offset, _) in places.items() if offset is None), None)
    if lost:
        raise ValueError(f"document {lost} is not contiguous")
    return places


def _list_arrays(opened: h5py.File, size_bytes: int) -> dict[str, PackedArray]:
    arrays = {}
    for split in (*_SPLITS, *({_UNLABELLED} & set(opened))):
        group = _get(opened, split)
        for name in group:
            dataset = _get(group, name)
            _check_layout(dataset)
            find = _find_contiguous if dataset.chunks is None else _find_chunks
            places = find(dataset, size_bytes)
            if places.max(initial=0) > size_bytes or places.sum(-1).max(initial=0) > size_bytes:
                raise ValueError(f"{split}/{name} lies beyond the end of the file")
            arrays[f"{split}/{name}"] = PackedArray(dataset.shape, dataset.dtype.name, places)
    return arrays


def _get(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """What is in the file itself. Raises ValueError for a link, perhaps to another file."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    return group[name]


def _check_layout(dataset: h5py.Dataset) -> None:
    """Raise ValueError if bytes are elsewhere (asking for the shape may open them), or too many.

    Our chunks have filters; without one HDF5 counts chunks that nobody wrote.
    """
    import h5py

    how = dataset.id.get_create_plist()
    is_chunked = how.get_layout() == h5py.h5d.CHUNKED
    if how.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or (
        is_chunked and not how.get_nfilters()
    ):
        raise ValueError(f"{dataset.name} has another layout")
    if how.get_external_count():
        raise ValueError(f"{dataset.name} is in other files")
    num_views, num_samples = dataset.shape[:2]
    if not 0 < num_views * num_samples <= MOST_ITEMS:
        raise ValueError(f"{dataset.name} has {num_views} x {num_samples} samples")


def _find_contiguous(dataset: h5py.Dataset, size_bytes: int) -> np.ndarray:
    num_views, num_samples = dataset.shape[:2]
    start, size = dataset.id.get_offset(), dataset.id.get_storage_size()
    if start is None or size != dataset.nbytes or not size:
        raise ValueError(f"{dataset.name} is not allocated as a whole")
    if start + size > size_bytes:
        raise ValueError(f"{dataset.name} lies beyond the end of the file")
    item = size // (num_views * num_samples)
    places = np.empty((num_views * num_samples, 2), np.uint64)
    places[:, 0] = np.arange(start, start + size, item, dtype=np.uint64)
    places[:, 1] = item
    return places.reshape(num_views, num_samples, 2)


def _find_chunks(dataset: h5py.Dataset, size_bytes: int) -> np.ndarray:
    """Find chunks by one pass over the index, which asking for each might search every time."""
    num_views, num_samples = dataset.shape[:2]
    count = dataset.id.get_num_chunks()
    if dataset.chunks != (1, 1, *dataset.shape[2:]) or count != num_views * num_samples:
        raise ValueError(f"{dataset.name} has {count} chunks of {dataset.chunks}")
    places = np.zeros((num_views, num_samples, 2), np.uint64)

    def note(chunk: object) -> None:
        places[chunk.chunk_offset[:2]] = chunk.byte_offset, chunk.size

    dataset.id.chunk_iter(note)
    return places
