"""The interface of whatever holds a cache: a folder, a bucket or a packed file.

Files are named by keys relative to the cache, like "commits/train-v0000-g00000.json"; "" is the
cache itself. If a disk or an object store refuses, the OSError's `strerror` says why.
"""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kdcache.disk import UnfitFileError
from kdcache.errors import FORBIDDEN, CacheCorruptError, CacheError, find_cure
from kdcache.storage.lock import Lease

LEASES = "leases"  # the folder of leases, beside the splits
PROBE = "probe-"  # prefix of objects that are put there only to find out what a bucket can do
REMOTE_THREADS = 16  # at once: each waits for the object store most of the time
MOST_HOLDER_BYTES = 1000  # of a lease: a process and the name of its machine
SOMEBODY = "another process"  # who holds a lease that says no more
_HOLDER = re.compile(rb"(process \d{1,10} on [\w.-]{1,255})(, [0-9a-f]{32})?\n?")


def find_holder(lease: bytes) -> str:
    """Who holds a lease by its contents, for a message; SOMEBODY if they are not ours."""
    found = _HOLDER.fullmatch(lease)
    return found[1].decode() if found else SOMEBODY


@dataclass(frozen=True)
class ShardFile:
    """What a shard file must be: its size and the sha256 (hex) of all its bytes.

    identity: of a local file when it was read back, so that another writer's file in its place is
        noticed; else None.
    """

    size_bytes: int
    sha256: str
    identity: int | None = None


class OpenFile(Protocol):
    """A file that is open for reading."""

    def size(self) -> int:
        """Size in bytes. Raises OSError."""

    def find_identity(self) -> int | None:
        """What changes as soon as the file does, see `disk.find_identity`; None if unknown."""

    def read_into(self, offset: int, slots: list[np.ndarray]) -> int:
        """Fill contiguous arrays in turn, from an offset in bytes; returns the bytes read.

        Fewer bytes than the arrays have are read only at the end of the file. Raises OSError.
        """


class Storage(ABC):
    """A place for one cache; its `str` is its address, as in `cache.path`.

    Thread-safe, and can be pickled.
    """

    is_remote = False  # whether each reading is a request to another machine
    is_single_file = False  # whether all samples are in one file
    own_leases: tuple[str, ...] = ()  # how names of leases begin that only this storage takes

    @property
    @abstractmethod
    def address(self) -> str:
        """The address, as in `cache.path`."""

    @property
    @abstractmethod
    def short_name(self) -> str:
        """A short name for people: the last part of the address."""

    @abstractmethod
    def name(self, key: str) -> str:
        """The name of a file for messages."""

    @property
    def repair_command(self) -> str | None:
        """The command that repairs damage below the manifest; None if nothing can be recomputed."""
        return f"python -m cache_teacher repair {shlex.quote(self.address)}"

    @property
    def repair_cure(self) -> str:
        """The cure at the end of an error about damage."""
        return f"run `{self.repair_command}`"

    def num_threads(self, local: int) -> int:
        """How many threads should read at once: `local`, or many if the storage is remote."""
        return REMOTE_THREADS if self.is_remote else local

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.address == other.address

    def __hash__(self) -> int:
        return hash((type(self), self.address))

    # --- looking and reading

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is a file, folder or link of this key.

        Raises OSError if the storage does not answer.
        """

    @abstractmethod
    def is_folder(self, key: str = "") -> bool:
        """Whether there can be files below the key. Raises OSError."""

    @abstractmethod
    def list_names(self, key: str = "") -> set[str]:
        """Names directly below a key, by one listing; empty if there is no such folder.

        Raises OSError.
        """

    @abstractmethod
    def find_sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Key -> bytes of those files that exist. Raises OSError."""

    def sum_sizes(self, keys: Iterable[str]) -> int:
        """The sum of the bytes of those files that exist. Raises OSError."""
        return sum(self.find_sizes(keys).values())

    @abstractmethod
    def read_bytes(self, key: str) -> bytes:
        """Read a whole document.

        Raises FileNotFoundError, UnfitFileError if it is a link, a folder or larger than
        MOST_DOCUMENT_BYTES, else OSError.
        """

    def read_document(self, key: str, *, cure: str) -> bytes:
        """Read a whole document. Raises CacheCorruptError with the cure instead of OSError."""
        try:
            return self.read_bytes(key)
        except FileNotFoundError:
            what = "file is missing, expected a plain file"
        except UnfitFileError as error:
            what = error.strerror
        except OSError as error:
            what = f"file is unreadable ({error.strerror})"
            cure = find_cure(error, cure, codes=FORBIDDEN)
        raise CacheCorruptError(self.name(key), what, cure=cure)

    @abstractmethod
    def open_file(self, key: str) -> AbstractContextManager[OpenFile]:
        """Open a file until the block ends. Raises OSError, also for a link, folder or pipe."""

    def local_path(self, key: str) -> str | None:
        """The path of a plain local file, for mapping it into memory; None if it is remote."""
        return None

    def find_places(self, array: str, *, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
        """(offset, size) of each sample's bytes in the file of key "", uint64 [views, samples, 2].

        None if samples are in shard files, which have an index.

        Args:
            array: as "train/low". shape, dtype: of the whole array.

        Raises: CacheCorruptError if the array has another shape or dtype.
        """
        return None

    # --- writing: documents under the lock, shards and record of a group under its lease

    @abstractmethod
    def check_changeable(self) -> None:
        """Raise CacheError if this storage is read-only."""

    @abstractmethod
    def create(self) -> None:
        """Create the place of the cache, if it does not exist.

        Raises OSError, CacheError if it cannot hold a cache safely.
        """

    @abstractmethod
    def find_free_bytes(self) -> float:
        """Bytes that can still be written, or infinity. Raises CacheError for a file in the way."""

    def check_inside(self, key: str, *, cure: str) -> None:  # noqa: B027  nothing to do
        """Raise CacheCorruptError if `key` or a folder on the way to it is a link."""

    def check_target(self, key: str) -> None:  # noqa: B027  nothing to do
        """Raise CacheError if a folder, or a link on the way, is in the way of a file."""

    def make_folders(self, key: str) -> None:  # noqa: B027  nothing to do
        """Make the folder `key` and those above it, flushed. Raises OSError."""

    def flush_folder(self, key: str) -> None:  # noqa: B027  nothing to do
        """Flush the names in a folder to disk. Raises OSError."""

    @abstractmethod
    def replace(self, key: str, data: bytes, *, lease: Lease | None = None) -> None:
        """Publish a document in one step: after a crash the old or the new one is there, whole.

        Args:
            lease: of the group that it commits; None if the caller holds the lock.

        Raises: LeaseLostError, OSError.
        """

    @abstractmethod
    def write_shard(self, key: str, parts: list[bytes | memoryview], *, lease: Lease) -> ShardFile:
        """Write a shard file and check its bytes; readers may not find it yet.

        Raises LeaseLostError, OSError.
        """

    @abstractmethod
    def publish_shard(self, key: str, file: ShardFile, *, lease: Lease) -> None:
        """Let readers find the file that `write_shard` wrote.

        Raises LeaseLostError, OSError if another writer has replaced it.
        """

    def discard_unpublished(self, keys: Iterable[str], *, lease: Lease) -> None:  # noqa: B027
        """Remove unfinished versions of these files, left by `write_shard` or `replace`.

        Raises LeaseLostError.
        """

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove a file if it exists, and flush that to disk. Raises OSError."""

    def unfinished_key(self, key: str) -> str | None:
        """Key of the file's unfinished version; None if this storage has no such thing."""
        return None

    # --- holding

    @abstractmethod
    def lock(self, *, wait: bool = False) -> AbstractContextManager[None]:
        """Lock documents until the block ends. Raises FolderInUseError, unless it waits."""

    @abstractmethod
    def take_lease(self, name: str, *, wait: bool = False) -> AbstractContextManager[Lease | None]:
        """Hold the lease of that name until the block ends; None if another process holds it.

        Args:
            wait: wait until the other process is done or dead, instead of returning None.

        Raises: CacheError, OSError.
        """

    @abstractmethod
    def is_held(self, name: str) -> bool:
        """Whether a process holds the lease of that name, or may hold it. Raises OSError."""

    @abstractmethod
    def read_holder(self, name: str) -> str:
        """Who holds a lease by its own words, for a message."""

    def find_held_leases(self, names: set[str]) -> set[str]:
        """Those of the leases whose holders are alive. Raises OSError.

        A bucket has to be watched for some time to find that out.
        """
        return {name for name in names if self.is_held(name)}

    def refresh(self) -> None:  # noqa: B027  nothing to do
        """Make visible what other machines have written: network file systems may cache names."""


@contextmanager
def explain_refusal(storage: Storage) -> Iterator[None]:
    """Turn an OSError, raised while documents are written, into a CacheError."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{storage}: folder is unwritable ({error.strerror}); make room, mend its permissions "
            "or set cache.path, and run again"
        ) from None
