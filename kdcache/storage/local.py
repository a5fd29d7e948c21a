"""A cache in a folder, local or on a network file system.

Every change goes through `kdcache.disk`, one call for each step, so that tests can interrupt,
refuse or skip it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import numpy as np

from kdcache import disk
from kdcache.disk import MOST_DOCUMENT_BYTES, PlainFile, find_identity, open_plain, read_plain
from kdcache.errors import CacheCorruptError, CacheError
from kdcache.storage.base import (
    LEASES,
    MOST_HOLDER_BYTES,
    SOMEBODY,
    ShardFile,
    Storage,
    find_holder,
)
from kdcache.storage.lock import (
    FileLease,
    FolderLock,
    Lease,
    hold_folder,
    is_file_held,
    take_file_lease,
)


class LocalFolder(Storage):
    """A cache in `folder`, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._text = str(folder)
        self._held: FolderLock | None = None

    def __reduce__(self) -> tuple:
        return LocalFolder, (self.folder,)

    @property
    def address(self) -> str:
        """The path of the folder."""
        return self._text

    @property
    def short_name(self) -> str:
        """The name of the folder, links resolved."""
        return self.folder.resolve().name

    def name(self, key: str) -> str:
        """The path of a file."""
        return str(self.folder / key)

    # --- looking and reading

    def exists(self, key: str) -> bool:
        """Whether there is a file, folder or link of this key. Raises OSError."""
        try:
            os.lstat(self.local_path(key))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_folder(self, key: str = "") -> bool:
        """Whether there is a folder of this key. Raises OSError."""
        return (self.folder / key).is_dir()

    def list_names(self, key: str = "") -> set[str]:
        """Names in a folder, as a set; empty if there is none. Raises OSError."""
        try:
            return {entry.name for entry in os.scandir(self.local_path(key))}
        except FileNotFoundError:
            return set()

    def find_sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Key -> bytes of those plain files that exist. Raises OSError."""
        sizes = {}
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                facts = os.lstat(self.local_path(key))
                if stat.S_ISREG(facts.st_mode):
                    sizes[key] = facts.st_size
        return sizes

    def read_bytes(self, key: str) -> bytes:
        """Read a plain file. Raises FileNotFoundError, UnfitFileError, OSError."""
        return read_plain(self.local_path(key), most_bytes=MOST_DOCUMENT_BYTES, follow=False)

    def open_file(self, key: str) -> AbstractContextManager[PlainFile]:
        """Open a plain file until the block ends. Raises OSError."""
        return open_plain(self.local_path(key))

    def local_path(self, key: str) -> str:
        """The path of a file."""
        return f"{self._text}/{key}" if key else self._text

    # --- writing

    def check_changeable(self) -> None:
        """Raise nothing: files can be changed."""

    def create(self) -> None:
        """Make the folder and those above it. Raises OSError."""
        existing = _find_existing(self.folder)
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(existing))
        disk.make_folders(self.folder.absolute(), below=existing.absolute())

    def find_free_bytes(self) -> float:
        """Free bytes of the disk. Raises CacheError if a file is in the way."""
        return shutil.disk_usage(find_folder(self.folder)).free

    def check_inside(self, key: str, *, cure: str) -> None:
        """Raise CacheCorruptError if `key` or a folder on the way to it is a link."""
        path = self._text
        for part in filter(None, key.split("/")):
            path = f"{path}/{part}"
            with suppress(FileNotFoundError, NotADirectoryError):
                if stat.S_ISLNK(os.lstat(path).st_mode):
                    what = f"it is behind a link ({path}), expected plain folders of the cache"
                    raise CacheCorruptError(self.name(key), what, cure=cure)

    def _check_folder_of(self, key: str) -> None:
        self.check_inside(key.rpartition("/")[0], cure="remove the link")

    def check_target(self, key: str) -> None:
        """Raise CacheError if a folder, or a link on the way, is in the way."""
        self._check_folder_of(key)
        path = self.folder / key
        if path.is_dir() and not path.is_symlink():
            raise CacheError(
                f"{path}: it is a folder, expected a file of the cache; move it away and run again"
            )

    def make_folders(self, key: str) -> None:
        """Make a folder and those above it, flushed. Raises CacheCorruptError, OSError."""
        self.check_inside(key, cure="remove the link")
        disk.make_folders(self.folder / key, below=self.folder)

    def flush_folder(self, key: str) -> None:
        """Flush the names in a folder to disk. Raises OSError."""
        disk.sync_folder(self.folder / key)

    def replace(self, key: str, data: bytes, *, lease: Lease | None = None) -> None:
        """Replace a file in one step. Raises LeaseLostError, LockLostError, OSError."""
        holding = self._held if lease is None else lease
        if holding is not None:
            holding.check()
        path = self.folder / key
        self._check_folder_of(key)
        disk.replace_file(path, data, partial=disk.partial_path(path))

    def write_shard(self, key: str, parts: list[bytes | memoryview], *, lease: Lease) -> ShardFile:
        """Write and read back an unfinished file. Raises LeaseLostError, OSError."""
        path = self.folder / key
        lease.check()
        self.make_folders(key.rpartition("/")[0])
        partial = disk.partial_path(path)
        disk.write_file(partial, parts)
        return _read_back(partial, parts)

    def publish_shard(self, key: str, file: ShardFile, *, lease: Lease) -> None:
        """Rename the unfinished file, and flush it. Raises LeaseLostError, OSError."""
        path = self.folder / key
        partial = disk.partial_path(path)
        lease.check()
        if find_identity(partial.lstat()) != file.identity:
            raise OSError(errno.ESTALE, "another writer has replaced it")
        disk.rename(partial, path)
        parts = key.split("/")
        for depth in range(len(parts) - 1, 1, -1):  # each may be new, made by a process now dead
            disk.sync_folder(self.folder.joinpath(*parts[:depth]))

    def discard_unpublished(self, keys: Iterable[str], *, lease: Lease) -> None:
        """Remove unfinished files, so that they do not fill a full disk. Raises LeaseLostError."""
        lease.check()  # if it is lost, the files are another writer's
        for key in keys:
            with suppress(OSError):
                disk.remove(disk.partial_path(self.folder / key))

    def remove(self, key: str) -> None:
        """Remove a file if it exists, and flush that to disk. Raises OSError."""
        path = self.folder / key
        self._check_folder_of(key)
        disk.remove(path)
        disk.sync_folder(path.parent)

    def unfinished_key(self, key: str) -> str:
        """The key of the file while it is being written."""
        return f"{key}{disk.PARTIAL}"

    # --- holding

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Lock the folder; see `hold_folder`. Raises FolderInUseError, OSError."""
        with hold_folder(self.folder, wait=wait) as self._held:
            try:
                yield
            finally:
                self._held = None

    def take_lease(self, name: str, *, wait: bool = False) -> AbstractContextManager[FileLease]:
        """Hold a lease; see `take_file_lease`. Raises CacheError."""
        self.check_inside(LEASES, cure="remove the link")
        return take_file_lease(self.folder / LEASES / name, wait=wait)

    def is_held(self, name: str) -> bool:
        """Whether a process holds the lease of that name. Raises OSError."""
        return is_file_held(self.folder / LEASES / name)

    def read_holder(self, name: str) -> str:
        """The holder by the contents of the lease's file, for a message."""
        try:
            data = read_plain(
                self.local_path(f"{LEASES}/{name}"), most_bytes=MOST_HOLDER_BYTES, follow=False
            )
        except OSError:
            return SOMEBODY
        return find_holder(data)

    def refresh(self) -> None:
        """Open the folder of records, which makes a network file system ask its server."""
        os.close(os.open(self.folder / "commits", os.O_RDONLY | os.O_DIRECTORY))


def find_folder(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists.

    Raises CacheError if a file is in the way.
    """
    existing = _find_existing(path)
    if not existing.is_dir():
        raise CacheError(
            f"{existing}: folder is unwritable (it is a file); set cache.path to another place"
        )
    return existing


def _find_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _read_back(path: Path, parts: list[bytes | memoryview]) -> ShardFile:
    """Hash a file as it is on disk: its pages are dropped from memory first, if the system can.

    Raises OSError, also if the bytes are not those that were written.
    """
    total, size = hashlib.sha256(), 0
    with open_plain(path) as opened:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # some file systems cannot do it
                os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for part in parts:
            found = np.empty(len(part), np.uint8)
            count = opened.read_into(size, [found])
            if count != len(part) or not np.array_equal(found, np.frombuffer(part, np.uint8)):
                raise OSError(errno.EIO, "what was read back is not what was written")
            total.update(found)
            size += count
        return ShardFile(size, total.hexdigest(), opened.find_identity())
