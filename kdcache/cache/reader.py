"""Reads samples of a cache into preallocated slots, and checks their bytes.

No zarr in between: the shard index is parsed once, and each chunk is read straight into its slot. A
chunk with a codec is read into memory of the thread and decoded into the slot. Bytes are compared
with the crc32c of the commit record: the checksum in the file alone does not notice that two shards
were swapped.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import numpy as np

from kdcache.cache.basis import read_bases
from kdcache.cache.codecs import make_coder
from kdcache.cache.encodings import Encoding, list_arrays, make_target
from kdcache.cache.index import Location, SplitIndex
from kdcache.cache.layout import find_role
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.shards import MappedFiles, copy_into, crc32c
from kdcache.cache.stage import Stage
from kdcache.config import VOID
from kdcache.errors import CacheCorruptError
from kdcache.storage import Storage, open_given, open_storage

Check = Literal["always", "first", "never"]


class _Room(threading.local):
    """Memory of one thread for a coded chunk; it grows to the largest, and is not pickled."""

    def __init__(self) -> None:
        self.bytes = np.empty(0, np.uint8)

    def get(self, size_bytes: int) -> np.ndarray:
        if self.bytes.size < size_bytes:
            self.bytes = np.empty(size_bytes, np.uint8)
        return self.bytes[:size_bytes]

    def __reduce__(self) -> tuple:
        return _Room, ()


class CacheReader(SplitIndex):
    """One split of a cache, complete for the views in use. Thread-safe after construction.

    Args:
        storage: of the cache, or its address.
        manifest: of the cache.
        split: "train", "val", or "unlabelled" if the cache has it.
        num_views: how many of its views must be complete; None: all.
        check: which readings of a chunk are compared with its commit record: "always", "first" (in
            this process, and once more after its file has changed) or "never". In a bucket, where
            a change is not seen, "first" is "always".
        stage: the local folder for copies of shard files; None: no copies.
        stored: see `SplitIndex`; then `split` may also be a part, such as "train_2".

    Raises: CacheIncompleteError if shard groups are not written yet, CacheCorruptError if a
        document is damaged. Commit records of views after the first are read with the first sample
        of their group.
    """

    def __init__(
        self,
        storage: Storage | str | Path,
        manifest: Manifest,
        split: str,
        *,
        num_views: int | None = None,
        check: Check = "first",
        stage: Stage | None = None,
        stored: bool = False,
    ) -> None:
        storage = open_storage(storage)
        super().__init__(storage, manifest, split, num_views=num_views, stage=stage, stored=stored)
        self.check = check
        self.num_classes = manifest.identity[find_role(split)]["dataset"]["num_classes"]
        self._coders = {
            spec.name: make_coder(spec.codec, shape=spec.item_shape, dtype=spec.dtype)
            for spec in self.layout.arrays
            if spec.codec
        }
        self._room = _Room()
        self.encodings = manifest.encodings if self.layout.role != "val" else {"logits": Encoding()}
        """"logits" or level -> how it is stored."""
        self.bases = read_bases(storage, self.encodings)
        """Lowrank level -> its basis, float32 [C, R]."""
        shape = (self.num_views, self.layout.num_samples)
        self._known = {name: np.zeros(shape, np.int64) for name in self._specs}
        """The identity of the file in which each chunk was read, and checked if `check` says so."""

    def read_into(
        self,
        slot: np.ndarray,
        *,
        array: str,
        view: int,
        sample: int,
        maps: MappedFiles | None = None,
    ) -> None:
        """Read one sample of one array into a contiguous slot of its shape and dtype.

        Args:
            maps: if given, second and later readings of a chunk are copied from mapped files. The
                first reading of a file is by position, so that a fault of the disk is an error in
                words and not a signal that ends the process.

        Raises: CacheCorruptError naming array, view, sample and file if the bytes are not those
            that were committed.
        """
        item = array, view, sample
        shard = self._shard_of(*item)
        try:
            self._read_into(slot, item, self._place(shard, sample), maps)
        except CacheCorruptError:
            if not shard.staged:
                raise
            self._drop_copy(shard, *item)
            self._read_into(slot, item, self.locate(*item), maps)

    def _read_into(
        self,
        slot: np.ndarray,
        item: tuple[str, int, int],
        place: Location,
        maps: MappedFiles | None,
    ) -> None:
        array, view, sample = item
        coder = self._coders.get(array)
        chunk = self._room.get(place.size_bytes) if coder else slot.reshape(-1).view(np.uint8)
        is_checked = self._fetch_checked(place, chunk, item, maps)
        if coder is not None:
            try:
                coder.decode_into(chunk, slot)
            except ValueError as error:
                raise self.describe_damage(
                    array, view, sample, f"it cannot be decoded ({error})"
                ) from None
        if is_checked and array == "label":
            self._check_classes(slot, item)

    def _check_classes(self, label_HW: np.ndarray, item: tuple[str, int, int]) -> None:
        """Raise CacheCorruptError for a class there is none of, which no loss or metric can take.

        A builder never writes one, but its checksum would be right.
        """
        wrong = label_HW[(label_HW >= self.num_classes) & (label_HW != VOID)]
        if wrong.size:
            array, view, sample = item
            self._known[array][view, sample] = 0  # the next reading finds it again
            what = f"it has class {wrong[0]}, expected 0 to {self.num_classes - 1} or {VOID}"
            raise self.describe_damage(*item, what)

    def read_stored(self, array: str, view: int, sample: int) -> np.ndarray:
        """Read a chunk as it is stored, coded or not.

        Args:
            array: its name. view, sample: from 0, in stored order.

        Returns: uint8 [size], in memory of this thread, valid until the thread's next reading.

        Raises: CacheCorruptError if the bytes are not those that were committed.
        """
        place = self.locate(array, view, sample)
        chunk = self._room.get(place.size_bytes)
        self._fetch_checked(place, chunk, (array, view, sample), None)
        return chunk

    def _fetch_checked(
        self,
        place: Location,
        chunk: np.ndarray,
        item: tuple[str, int, int],
        maps: MappedFiles | None,
    ) -> bool:
        """Fill `chunk` with stored bytes; whether they were checked now, as `check` says.

        Raises: CacheCorruptError.
        """
        array, view, sample = item
        known = int(self._known[array][view, sample])
        follower = np.array([place.crc32c], "<u4")
        slots = [chunk, follower] if place.followed else [chunk]
        try:
            count, identity = _fetch(place, slots, known=known, maps=maps)
        except OSError as error:
            raise self.describe_damage(
                *item, f"the file is unreadable ({error.strerror})"
            ) from None
        if count != sum(slot.nbytes for slot in slots):
            raise self.describe_damage(*item, "the file is too short")
        is_new = identity is None or identity != known
        is_checked = self.check == "always" or (self.check == "first" and is_new)
        if is_checked and not crc32c(chunk) == int(follower[0]) == place.crc32c:
            raise self.describe_damage(*item, "its checksum differs from the commit record")
        if identity is not None:
            self._known[array][view, sample] = identity
        return is_checked

    def read(self, array: str, view: int, sample: int) -> np.ndarray:
        """Read one sample of one array into new memory.

        Args:
            array: its name, such as "image", "label", "logits" or "low".
            view, sample: from 0, in stored order.

        Returns: [*item_shape] of the array's dtype.

        Raises: CacheCorruptError if the bytes are not those that were committed.
        """
        spec = self._specs[array]
        self.locate(array, view, sample)  # refuses a wrong size before memory is allocated for it
        slot = np.empty(spec.item_shape, spec.dtype)
        self.read_into(slot, array=array, view=view, sample=sample)
        return slot

    def decode(self, name: str, view: int, sample: int) -> np.ndarray:
        """Read and decode logits or a level.

        Args:
            name: "logits" or a level. view, sample: from 0, in stored order.

        Returns: float32 [C, H, W]. A lowrank level gives only the direction of the features at each
            position: a vector of length 1, less what the basis leaves out.

        Raises: CacheCorruptError if the bytes are not those that were committed.
        """
        import torch

        arrays = {
            array: torch.from_numpy(self.read(array, view, sample))[None]
            for array in list_arrays(name, self.encodings[name])
        }
        basis = torch.from_numpy(self.bases[name]) if name in self.bases else None
        step = self.encodings[name].step or 1.0
        return step * make_target(name, arrays, basis).decode()[0].numpy()


def _fetch(
    place: Location, slots: list[np.ndarray], *, known: int, maps: MappedFiles | None
) -> tuple[int, int | None]:
    """Fill slots in turn with stored bytes, by position, or from a mapping of the known file.

    Args:
        known: the identity of the file when the chunk was last read; 0: never.

    Returns: (bytes read, identity of the file that they are from). Raises OSError.
    """
    if maps is not None and known:
        path = place.storage.local_path(place.key)
        mapped = maps.open(path, identity=known) if path else None
        if mapped is not None:
            return copy_into(slots, mapped, place.offset), known
    with place.storage.open_file(place.key) as opened:
        identity = opened.find_identity()
        return opened.read_into(place.offset, slots), identity


def open_split(
    place: Storage | str | Path,
    split: str,
    *,
    num_views: int | None = None,
    check: Check = "first",
    stage: Stage | None = None,
) -> CacheReader:
    """Open a split of the cache in a place.

    Args:
        place: a folder, a packed .h5 file, the address of a bucket, or its Storage.
        split: "train", "val", or "unlabelled" if the cache has it.
        num_views, check, stage: as for `CacheReader`.

    Returns: its reader.

    Raises: CacheError if there is no cache, or it is damaged or incomplete.
    """
    storage = open_given(place)
    manifest = read_manifest(storage)
    return CacheReader(storage, manifest, split, num_views=num_views, check=check, stage=stage)
