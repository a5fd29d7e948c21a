"""A cache packed into one HDF5 file, read by offsets and without HDF5 in between.

A packed cache is read-only: its offsets are read once, and its export can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import numpy as np

from kdcache.disk import MOST_DOCUMENT_BYTES, PlainFile, UnfitFileError, check_document, open_plain
from kdcache.errors import CacheCorruptError, CacheError
from kdcache.storage.base import Storage
from kdcache.storage.packed_table import CURE, Table, read_table


class PackedFile(Storage):
    """The cache in the HDF5 file `file`.

    Documents have keys as in a folder; samples are in the file itself, whose key is "". Methods
    raise CacheError if the file is no packed cache.
    """

    is_single_file = True
    repair_command = None
    repair_cure = CURE

    def __init__(self, file: Path) -> None:
        self.file = file
        self._resolved: str | None = None

    def __reduce__(self) -> tuple:
        return PackedFile, (self.file,)

    @property
    def address(self) -> str:
        """The path of the file."""
        return str(self.file)

    @property
    def short_name(self) -> str:
        """The name of the file without suffix, links resolved."""
        return self.file.resolve().stem

    def name(self, key: str) -> str:
        """FILE!/KEY for a document, the path for the file itself."""
        return f"{self.file}!/{key}" if key else str(self.file)

    @property
    def table(self) -> Table:
        """The offsets of documents and samples. Raises CacheError."""
        return read_table(self.file)

    # --- looking and reading

    def exists(self, key: str) -> bool:
        """Whether the file has a document of this key. Raises CacheError."""
        return self.file.is_file() and (not key or key in self.table.documents)

    def is_folder(self, key: str = "") -> bool:
        """Whether the file has a document below the key. Raises CacheError."""
        prefix = f"{key}/" if key else ""
        return self.file.is_file() and any(name.startswith(prefix) for name in self.table.documents)

    def list_names(self, key: str = "") -> set[str]:
        """Names of documents directly below a key. Raises CacheError."""
        prefix = f"{key}/" if key else ""
        inside = [name for name in self.table.documents if name.startswith(prefix)]
        return {name.removeprefix(prefix).partition("/")[0] for name in inside}

    def find_sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Key -> bytes of documents; there are no shard files. Raises CacheError."""
        documents = self.table.documents
        return {key: documents[key][1] for key in keys if key in documents}

    def sum_sizes(self, keys: Iterable[str]) -> int:
        """The sum of the bytes of documents, and of whole arrays. Raises CacheError.

        A shard's key stands for its whole array: a packed cache is complete.
        """
        keys, arrays = list(keys), self.table.arrays
        named = {"/".join(key.split("/")[:2]) for key in keys} & set(arrays)
        return super().sum_sizes(keys) + sum(
            int(arrays[name].places[:, :, 1].sum()) for name in named
        )

    def read_bytes(self, key: str) -> bytes:
        """Read a document. Raises FileNotFoundError, UnfitFileError, CacheError, OSError."""
        if key not in self.table.documents:
            raise FileNotFoundError(None, "it is not there", self.name(key))
        offset, size = self.table.documents[key]
        check_document(size, most_bytes=MOST_DOCUMENT_BYTES)
        room = np.empty(size, np.uint8)
        with self.open_file("") as opened:
            got = opened.read_into(offset, [room])
        if got != size:
            raise UnfitFileError(f"size is {got} bytes, expected {size}")
        return room.tobytes()

    def open_file(self, key: str) -> AbstractContextManager[PlainFile]:
        """Open the file itself, whatever the key; `find_places` has the offsets. Raises OSError."""
        return open_plain(self.local_path(key))

    def local_path(self, key: str) -> str:
        """The path of the file, links resolved, whatever the key. Raises CacheError."""
        if self._resolved is None:
            self._resolved = str(self.table.file)
        return self._resolved

    def find_places(self, array: str, *, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """See `Storage.find_places`. Raises CacheCorruptError for another shape or dtype."""
        found = self.table.arrays.get(array)
        if found is None or (found.shape, found.dtype) != (shape, dtype):
            words = "missing" if found is None else f"{found.dtype} {found.shape}"
            what = f"dataset {array} is {words}, expected {dtype} {shape}"
            raise CacheCorruptError(self, what, cure=CURE)
        return found.places

    # --- every change is refused

    def check_changeable(self, *_: object, **__: object) -> NoReturn:
        """Raise CacheError; if the file is no packed cache, the one that says so."""
        if not self.file.is_file():
            raise CacheError(
                f"{self}: cache.path is the name of a packed cache, expected a folder to build in; "
                "build there, and `python -m cache_teacher export` packs it"
            )
        read_table(self.file)
        raise CacheError(
            f"{self}: cache is one file, expected a folder, since a packed cache is never changed; "
            "change the folder it was exported from (`python -m cache_teacher import` makes one "
            "again) and export that anew"
        )

    create = replace = write_shard = publish_shard = remove = check_changeable
    find_free_bytes = lock = take_lease = check_changeable

    def is_held(self, name: str) -> bool:
        """False: nobody can write here."""
        return False

    def read_holder(self, name: str) -> str:
        """Nobody."""
        return "nobody"
