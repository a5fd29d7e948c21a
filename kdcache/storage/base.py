"""What a place of bytes must be able to do to hold a cache.

Files are named by keys relative to the cache, like "train/low/c/0/0/0/0/0" or
"commits/train-v0000-g00000.json"; "" is the cache itself. Every refusal of a disk or a store is an
OSError whose `strerror` says it in words.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kdcache.errors import CacheCorruptError, CacheError, KdcacheError

LEASES = "leases"  # the folder of leases, beside the splits
PROBE = "probe-"  # begins the names of what is put there only to see what a bucket can do
REMOTE_THREADS = 16  # that ask a store at once: each waits for its answer most of the time
MAX_DOCUMENT_BYTES = 256 << 20  # a commit record has about 0.5 kB a sample; more is another file


class FolderInUseError(KdcacheError):
    """Another process writes into the folder."""


class LeaseLostError(CacheError):
    """The lease was removed or taken over while it was held; nothing more may be written."""


class UnfitFileError(OSError):
    """A document is there and cannot be one; `strerror` is the whole of what is wrong with it."""

    def __init__(self, what: str) -> None:
        super().__init__(None, what)


@dataclass(frozen=True)
class ShardFile:
    """What a shard file must be: its size and the sha256 (hex) of all its bytes.

    mark: what the system said of the file that was read back (number, size, time of change), so
    that another writer's file in its place is noticed; None for a file of a commit record or in a
    bucket.
    """

    size_bytes: int
    sha256: str
    mark: tuple[int, int, int] | None = None


class Lease(ABC):
    """The right to write one shard group; `check` it before each change that others could see."""

    @abstractmethod
    def check(self) -> None:
        """Raises LeaseLostError if it is no longer held, OSError if the store does not answer."""


class OpenFile(Protocol):
    """A file that is open for reading."""

    def size(self) -> int:
        """Bytes. Raises OSError."""

    def read_into(self, offset: int, slots: list[np.ndarray]) -> int:
        """Fill contiguous arrays one after the other from a position; returns the bytes read.
        Raises OSError.
        """


class Storage(ABC):
    """A place for one cache; `str` of it is its address, as in `cache.path`. Thread-safe, and can
    be pickled.
    """

    is_remote = False
    """Whether each reading is a request to another machine."""
    is_single_file = False
    """Whether all samples are in one file."""

    @property
    @abstractmethod
    def address(self) -> str:
        """What `cache.path` says."""

    @property
    @abstractmethod
    def short_name(self) -> str:
        """What a person calls the cache: the last part of its address."""

    @abstractmethod
    def name(self, key: str) -> str:
        """A file's name for messages."""

    @property
    def repair_command(self) -> str | None:
        """What to type to repair whatever is damaged below the manifest; None if nothing here can
        be recomputed.
        """
        return f"python -m cache_teacher repair {shlex.quote(self.address)}"

    @property
    def repair_cure(self) -> str:
        """The cure at the end of an error about damage."""
        return f"run `{self.repair_command}`"

    def num_threads(self, local: int) -> int:
        """How many threads should read at once: `local` ones, or many if each waits for another
        machine.
        """
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
        """Whether something stands there, a link included.

        Raises OSError if that cannot be told.
        """

    @abstractmethod
    def is_folder(self, key: str = "") -> bool:
        """Whether there can be files below the key. Raises OSError."""

    @abstractmethod
    def list_names(self, key: str = "") -> set[str]:
        """Names directly below a key, by one look; empty if there is no such folder. Raises
        OSError.
        """

    @abstractmethod
    def find_sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes of those files that are there. Raises OSError."""

    def sum_sizes(self, keys: Iterable[str]) -> int:
        """Bytes of some files; missing ones have none. Raises OSError."""
        return sum(self.find_sizes(keys).values())

    @abstractmethod
    def read_bytes(self, key: str) -> bytes:
        """A whole small file.

        Raises FileNotFoundError, UnfitFileError for a link or what is too large, OSError.
        """

    def read_document(self, key: str, *, cure: str) -> bytes:
        """Like `read_bytes`. Raises CacheCorruptError with the cure instead of OSError."""
        try:
            return self.read_bytes(key)
        except FileNotFoundError:
            what = "file is missing, expected a plain file"
        except UnfitFileError as error:
            what = error.strerror
        except OSError as error:
            what = f"file is unreadable ({error.strerror})"
        raise CacheCorruptError(self.name(key), what, cure=cure)

    @abstractmethod
    def open_file(self, key: str) -> AbstractContextManager[OpenFile]:
        """A file, open for as long as the block runs; no link, folder or pipe. Raises OSError."""

    def read_into(self, key: str, offset: int, slots: list[np.ndarray]) -> int:
        """Fill contiguous arrays one after the other from a position of a file; returns the bytes
        read. Raises OSError.
        """
        with self.open_file(key) as opened:
            return opened.read_into(offset, slots)

    def local_path(self, key: str) -> str | None:
        """The path of a plain local file, to be mapped into memory; None if there is none."""
        return None

    def find_places(self, array: str, *, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
        """(offset, size) of each sample's bytes, uint64 [views, samples, 2], in the file of key "";
        None if samples are in shard files, whose index tells.

        Args:
            array: as "train/low". shape, dtype: what the whole array must be.

        Raises: CacheCorruptError if the array is not so.
        """
        return None

    # --- writing: by whoever holds the lock (documents) or the lease of a group (its shards and record)

    @abstractmethod
    def check_changeable(self) -> None:
        """Raises CacheError if nothing can ever be changed here."""

    @abstractmethod
    def create(self) -> None:
        """Make the place of the cache, if it is not there.

        Raises OSError, CacheError if it cannot hold a cache safely.
        """

    @abstractmethod
    def find_free_bytes(self) -> float:
        """What can still be written. Raises CacheError if a file is in the way."""

    def check_inside(self, key: str, *, cure: str) -> None:  # noqa: B027  nothing to do
        """Raises CacheCorruptError if a link leads out of the cache on the way to `key`."""

    def check_target(self, key: str) -> None:  # noqa: B027  nothing to do
        """Raises CacheError if a folder, or a way out of the cache, stands where a file is to
        be written.
        """

    def make_folders(self, key: str) -> None:  # noqa: B027  nothing to do
        """Make the folder `key` and those above it, flushed. Raises OSError."""

    def flush_folder(self, key: str) -> None:  # noqa: B027  nothing to do
        """Flush the names in a folder to disk. Raises OSError."""

    @abstractmethod
    def replace(self, key: str, data: bytes, *, lease: Lease | None = None) -> None:
        """Publish a document in one step: after a crash the old or the new one is there, whole.

        Args:
            lease: of the group that it commits; without one the storage must be locked.

        Raises: LeaseLostError, OSError.
        """

    @abstractmethod
    def write_shard(self, key: str, parts: list[bytes | memoryview], *, lease: Lease) -> ShardFile:
        """Write a shard file and make sure of its bytes; readers may not find it yet. Raises
        LeaseLostError, OSError.
        """

    @abstractmethod
    def publish_shard(self, key: str, file: ShardFile, *, lease: Lease) -> None:
        """Let readers find what `write_shard` wrote.

        Raises LeaseLostError, OSError if another writer has replaced it.
        """

    def discard_unpublished(self, keys: Iterable[str], *, lease: Lease) -> None:  # noqa: B027  nothing to do
        """Remove what `write_shard` and `replace` left unfinished of these files.

        Raises LeaseLostError.
        """

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove a file, flushed; absent ones too. Raises OSError."""

    def unfinished_key(self, key: str) -> str | None:
        """Where a file is while it is not published; None if it is nowhere to be seen."""
        return None

    # --- holding

    @abstractmethod
    def lock(self, *, wait: bool = False) -> AbstractContextManager[None]:
        """Let no other process change documents until the block ends.

        Raises FolderInUseError, unless told to wait.
        """

    @abstractmethod
    def take_lease(self, name: str, *, wait: bool = False) -> AbstractContextManager[Lease | None]:
        """Hold the lease of that name until the block ends; None if another process holds it.

        Args:
            wait: until the other process is done or dead, instead of None.
        """

    @abstractmethod
    def is_held(self, name: str) -> bool:
        """Whether a process holds the lease of that name, or may. Raises OSError."""

    @abstractmethod
    def read_holder(self, name: str) -> str:
        """Who says to hold a lease, for a message."""

    def find_held_leases(self) -> set[str]:
        """Names of leases whose holders live; to know that, a bucket may have to be watched for a
        while. Raises OSError.
        """
        return {name for name in self.list_names(LEASES) if self.is_held(name)}

    def refresh(self) -> None:  # noqa: B027  nothing to do
        """Let the next look see what other machines have written: network file systems may show
        older names.
        """


@contextmanager
def explain_refusal(storage: Storage) -> Iterator[None]:
    """Raises CacheError if the storage refuses a document of the cache."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{storage}: folder is unwritable ({error.strerror}); make room, mend its permissions "
            "or set cache.path, and run again"
        ) from None


def refuse_lost(where: str, fate: str) -> LeaseLostError:
    """The error of a lease that was removed, or whatever its `fate` was, while it was held."""
    return LeaseLostError(
        f"{where}: lease was {fate} while it was held; what this process had not committed is left to others, "
        "run the same command again"
    )
