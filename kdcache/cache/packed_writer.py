"""Writes the HDF5 file of a packed cache: documents first, then samples one by one.

Raw arrays are contiguous and allocated at once, so the offset of a sample is computed and its bytes
are written there, past HDF5. Chunks of arrays with a codec go through HDF5, which keeps their
index; they are written as they are stored, and no filter runs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdcache import disk
from kdcache.cache.layout import ArraySpec, SplitLayout
from kdcache.cache.manifest import Manifest
from kdcache.disk import open_descriptor
from kdcache.errors import CacheError, one_line
from kdcache.machine.process import is_same_file
from kdcache.storage.packed_table import DOCUMENTS, FORMAT

if TYPE_CHECKING:
    import h5py

# v110 is the oldest version that has checksums of its whole structure
_SHARED = {"libver": ("v110", "v110"), "locking": False}
_ALIGN_FROM, _ALIGN = 1 << 20, 4096  # arrays of a megabyte and more begin on a page
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_COMPRESSORS = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_STEP = 16 << 20  # bytes reserved at once
_OVERHEAD = 4096  # most bytes of a document's or chunk's header, index entry and alignment
_INDEX_ENTRY = 20  # most bytes of a chunk in HDF5's index: offset, size, mask
_BLOSC, _ZSTD = 32001, 32015  # as registered with the HDF Group


class PackedWriter:
    """A packed cache while it is written. `put` is thread-safe.

    Disk space is reserved before HDF5 writes: HDF5 cannot handle a full disk, not even when it
    closes its file.
    """

    def __init__(self, opened: h5py.File, descriptor: int, manifest: Manifest) -> None:
        self.opened, self.descriptor = opened, descriptor
        self._lock, self._needed, self._reserved = threading.Lock(), 0, 0
        self._reserve(count_fixed_bytes(manifest))
        self.arrays = {
            f"{split}/{spec.name}": _create_array(opened, layout, spec)
            for split, layout in manifest.layouts.items()
            for spec in layout.arrays
        }
        self.offsets = {name: array.get_offset() for name, array in self.arrays.items()}

    def add_document(self, name: str, data: bytes) -> None:
        """Write the document of key `name`. Raises OSError."""
        import h5py

        self._reserve(len(data))
        dataset = _create(self.opened, f"{DOCUMENTS}/{name}", (len(data),), "uint8", _contiguous())
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.frombuffer(data, np.uint8))

    def put(self, name: str, view: int, sample: int, chunk: np.ndarray) -> None:
        """Write the stored bytes of a sample, uint8 [size].

        Args:
            name: of the array, as "train/low".

        Raises: OSError.
        """
        array = self.arrays[name]
        if self.offsets[name] is None:
            self._reserve(chunk.size)
            array.write_direct_chunk((view, sample, *(0 for _ in array.shape[2:])), chunk.tobytes())
            return
        left, offset = (
            memoryview(chunk),
            self.offsets[name] + (view * array.shape[1] + sample) * chunk.size,
        )
        while left:
            count = os.pwrite(self.descriptor, left, offset)
            left, offset = left[count:], offset + count

    def finish(self) -> None:
        """Mark the file as complete. Raises OSError."""
        self.opened.attrs["complete"] = np.uint8(1)
        self.opened.flush()
        self.size_bytes = self.opened.id.get_filesize()

    def _reserve(self, size_bytes: int) -> None:
        with self._lock:
            self._needed += size_bytes + _OVERHEAD
            if self._needed > self._reserved:
                more = self._needed - self._reserved + _STEP
                reserve(self.descriptor, self._reserved, more)
                self._reserved += more


@contextmanager
def create_file(
    path: Path, descriptor: int, manifest: Manifest, documents: Iterable[tuple[str, bytes]]
) -> Iterator[PackedWriter]:
    """Create the file of a cache, with its documents and room for its samples.

    Args:
        descriptor: of `path`, open for writing. documents: (key, contents) of each.

    Raises: OSError.
    """
    import h5py

    # a full disk is refused now, before HDF5 has a file to close
    reserve(descriptor, 0, count_fixed_bytes(manifest) + _STEP)
    with h5py.File(
        path, "w", alignment_threshold=_ALIGN_FROM, alignment_interval=_ALIGN, **_SHARED
    ) as opened:
        opened.attrs["format"] = FORMAT
        opened.attrs["format_version"] = np.uint8(manifest.format_version)
        opened.attrs["complete"] = np.uint8(0)
        packed = PackedWriter(opened, descriptor, manifest)
        for name, data in documents:
            packed.add_document(name, data)
        opened.flush()  # from here on a reader is told that the file is unfinished
        yield packed
    os.ftruncate(descriptor, packed.size_bytes)
    os.fsync(descriptor)


def reserve(descriptor: int, offset: int, size_bytes: int) -> None:
    """Reserve disk space for a range of a file, if the system can. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, size_bytes)


def count_fixed_bytes(manifest: Manifest) -> int:
    """Bytes that do not depend on a codec: raw arrays, and the index of the other arrays.

    HDF5 writes the whole index of an array with its first chunk.
    """
    return sum(
        (_INDEX_ENTRY if spec.codec else spec.item_bytes) * layout.num_views * layout.num_samples
        + _OVERHEAD
        for layout in manifest.layouts.values()
        for spec in layout.arrays
    )


def check_new(out: Path) -> None:
    """Raise CacheError if `out` exists, or its folder does not."""
    if os.path.lexists(out):
        raise _refuse_old(out)
    if not out.parent.is_dir():
        raise CacheError(
            f"{out}: folder {out.parent} is missing, expected one to write into; make it first"
        )


def _refuse_old(out: Path) -> CacheError:
    return CacheError(
        f"{out}: file is there already, expected a new name; choose another, or remove it first"
    )


def check_free(out: Path, manifest: Manifest) -> None:
    """Raise CacheError if the disk cannot hold the raw arrays.

    What a codec makes of the others is not known yet.
    """
    needed = count_fixed_bytes(manifest)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise CacheError(
            f"{out}: free disk space is {free / 1e9:.2f} GB, expected {needed / 1e9:.2f} GB or "
            "more; make room, choose another place, or pack less of it (--levels, --views)"
        )


@contextmanager
def hold(partial: Path) -> Iterator[int]:
    """A descriptor of the unfinished file, which one process at a time may write.

    At the end the file is removed, if it still has its unfinished name. Raises OSError.
    """
    descriptor = open_descriptor(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise BlockingIOError  # its holder has given the file its name meanwhile
        # a process killed between the two steps of `rename_new` leaves a finished file here
        if os.fstat(descriptor).st_nlink > 1:
            raise CacheError(
                f"{partial}: file is another name of a finished file, expected an unfinished one; "
                "remove this name"
            )
        try:
            yield descriptor
        finally:
            if is_same_file(partial, descriptor):
                disk.remove(partial)
    finally:
        os.close(descriptor)


@contextmanager
def explain_disk(out: Path) -> Iterator[None]:
    """Turn an OSError of the disk into a CacheError."""
    try:
        yield
    except BlockingIOError:
        raise CacheError(
            f"{out}: another process is packing into it; wait for that one, or choose another name"
        ) from None
    except FileExistsError:
        raise _refuse_old(out) from None
    except OSError as error:
        # messages of HDF5 are a page long
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise CacheError(
            f"{out}: file cannot be written ({reason}); make room or choose another place"
        ) from None


def find_filter(spec: ArraySpec) -> tuple[int, tuple[int, ...]]:
    """(number, values) of the HDF5 filter that decodes an array's chunks.

    Raises CacheError if there is none for its codec.
    """
    settings = dict(spec.codec.settings or ())
    if spec.codec.name == "blosc" and settings["cname"] in _COMPRESSORS:
        numbers = (
            settings["clevel"],
            _SHUFFLES[settings["shuffle"]],
            _COMPRESSORS.index(settings["cname"]),
        )
        return _BLOSC, (2, 2, settings["typesize"], spec.item_bytes, *numbers)
    if spec.codec.name == "zstd":
        return _ZSTD, (max(settings["level"], 0),)
    raise CacheError(
        f"{spec.name}: codec is {spec.codec.name}, expected none, blosc or zstd, which HDF5 has "
        "filters for; build the cache with cache.codec raw, blosc-lz4 or blosc-zstd to pack it"
    )


def _create_array(opened: h5py.File, layout: SplitLayout, spec: ArraySpec) -> h5py.h5d.DatasetID:
    shape = (layout.num_views, layout.num_samples, *spec.item_shape)
    how = _coded(spec) if spec.codec else _contiguous()
    return _create(opened, f"{layout.split}/{spec.name}", shape, spec.dtype, how)


def _create(
    opened: h5py.File, name: str, shape: tuple[int, ...], dtype: str, how: h5py.h5p.PropDCID
) -> h5py.h5d.DatasetID:
    import h5py

    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    kind = h5py.h5t.py_create(np.dtype(dtype).newbyteorder("<"))
    return h5py.h5d.create(opened.id, name.encode(), kind, h5py.h5s.create_simple(shape), how, link)


def _contiguous() -> h5py.h5p.PropDCID:
    import h5py

    how = _properties()
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    return how


def _coded(spec: ArraySpec) -> h5py.h5p.PropDCID:
    """The filter is optional: writing or reading stored bytes needs no plugin for it."""
    import h5py

    how, (number, values) = _properties(), find_filter(spec)
    how.set_chunk((1, 1, *spec.item_shape))
    how.set_filter(number, h5py.h5z.FLAG_OPTIONAL, values)
    return how


def _properties() -> h5py.h5p.PropDCID:
    import h5py

    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)
    return how
