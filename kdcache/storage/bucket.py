"""A cache in a bucket of an object store. docs/format.md has the protocol.

There are no folders, links or partial files: an object is put whole and is then durable. A put is
refused if another process has replaced the object since we read its version. So a writer that was
suspended and lost its lease cannot overwrite anything; and if two writers made different bytes
(GPUs round differently), the commit record of the last holder names its own shards.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from kdcache.errors import CacheError
from kdcache.storage import bucket_lease
from kdcache.storage.base import (
    LEASES,
    MOST_HOLDER_BYTES,
    PROBE,
    SOMEBODY,
    ShardFile,
    Storage,
    find_holder,
)
from kdcache.storage.bucket_client import AlreadyThereError, BucketObject, Tag, ask
from kdcache.storage.bucket_lease import ObjectLease, is_alive, put_own, take_object_lease
from kdcache.storage.lock import FolderInUseError, Lease, LeaseLostError

DOCUMENTS = "documents"  # name of the lease that locks documents
FEW = 20  # from so many sizes on, one listing replaces a request for each
log = logging.getLogger("kdcache")


class Bucket(Storage):
    """A cache whose objects have keys below `prefix` in `bucket`, which is "s3://NAME"."""

    is_remote = True
    own_leases = (DOCUMENTS, PROBE)

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix

    @classmethod
    def at(cls, address: str) -> Bucket:
        """The cache at an address like "s3://bucket/key"."""
        scheme, _, rest = address.partition("://")
        bucket, _, key = rest.partition("/")
        return cls(f"{scheme}://{bucket}", key)

    def __reduce__(self) -> tuple:
        return Bucket, (self.bucket, self.prefix)

    @property
    def address(self) -> str:
        """s3://bucket/key."""
        return f"{self.bucket}/{self.prefix}"

    @property
    def short_name(self) -> str:
        """The last part of the key, or the bucket."""
        return (self.prefix or self.bucket).rpartition("/")[2]

    def name(self, key: str) -> str:
        """The full address of an object."""
        return str(self.object(key))

    def object(self, key: str) -> BucketObject:
        """The object of a key, whether it exists or not."""
        return BucketObject(self.bucket, "/".join(part for part in (self.prefix, key) if part))

    # --- looking and reading

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key. Raises OSError."""
        return self.object(key).exists()

    def is_folder(self, key: str = "") -> bool:
        """Whether there is an object below the key. Raises OSError."""
        prefix = self._prefix_of(key)
        return ask(
            self.object(key),
            lambda bucket: any(len(batch) for batch in bucket.list(prefix=prefix, chunk_size=1)),
        )

    def list_names(self, key: str = "") -> set[str]:
        """Names directly below a key. Raises OSError."""
        start = len(key) + 1 if key else 0
        return {found[start:].partition("/")[0] for found in self.walk(key)}

    def walk(self, key: str = "") -> dict[str, int]:
        """Key and bytes of every object below a key. Raises OSError."""
        prefix = self._prefix_of(key)
        found = ask(
            self.object(key),
            lambda bucket: [one for batch in bucket.list(prefix=prefix) for one in batch],
        )
        start = len(self.prefix) + 1 if self.prefix else 0
        return {one["path"][start:]: one["size"] for one in found}

    def find_sizes(self, keys: Iterable[str]) -> dict[str, int]:
        """Key -> bytes of those objects that exist. Raises OSError.

        If many of one array and view are asked for, they are listed at once.
        """
        places, sizes = defaultdict(list), {}
        for key in keys:
            places["/".join(key.split("/")[:4])].append(key)
        for place, wanted in places.items():
            there = self._measure(wanted) if len(wanted) < FEW else self.walk(place)
            sizes |= {key: there[key] for key in wanted if key in there}
        return sizes

    def _measure(self, keys: list[str]) -> dict[str, int]:
        sizes = {}
        for key in keys:
            with suppress(FileNotFoundError):
                sizes[key] = self.object(key).size()
        return sizes

    def read_bytes(self, key: str) -> bytes:
        """Read an object. Raises FileNotFoundError, OSError.

        While documents are locked, the version that is read is remembered: `replace` replaces only
        that one.
        """
        document = self.object(key)
        if _holds.current is not None:
            _holds.current.tags[document] = document.find_tag()
        return document.read_bytes()

    @contextmanager
    def open_file(self, key: str) -> Iterator[BucketObject]:
        """Open nothing: each reading is a request of its own."""
        yield self.object(key)

    def _prefix_of(self, key: str) -> str | None:
        whole = self.object(key).key
        return f"{whole}/" if whole else None

    # --- writing

    def check_changeable(self) -> None:
        """Raise nothing: objects can be changed."""

    def create(self) -> None:
        """Check that the bucket honours conditional puts; without, two workers could both commit.

        Raises CacheError if it does not, OSError.
        """
        probe = self.object(f"{LEASES}/{PROBE}{uuid.uuid4().hex}")
        try:
            if _find_conditions(probe):
                return
        except OSError as error:
            if error.errno != errno.EIO or "NotImplemented" not in str(error.strerror):
                raise
        finally:
            with suppress(OSError):
                probe.remove()
        raise CacheError(
            f"{self.bucket}: bucket has no conditional put (If-None-Match, If-Match), expected "
            "one: it keeps workers from committing a group twice; use a store that has it, "
            "or a folder"
        )

    def find_free_bytes(self) -> float:
        """Infinity: a bucket does not fill up."""
        return float("inf")

    def replace(self, key: str, data: bytes, *, lease: Lease | None = None) -> None:
        """Put an object, if nobody else has replaced it. Raises LeaseLostError, OSError."""
        if lease is not None:
            put_own(self.object(key), data, lease=lease)
        else:
            _replace_document(self.object(key), data)

    def write_shard(self, key: str, parts: list[bytes | memoryview], *, lease: Lease) -> ShardFile:
        """Put a shard, which readers find at once; without a commit record it does not count.

        Raises LeaseLostError, OSError.
        """
        data = b"".join(parts)
        put_own(self.object(key), data, lease=lease)
        return ShardFile(len(data), hashlib.sha256(data).hexdigest())

    def publish_shard(self, key: str, file: ShardFile, *, lease: Lease) -> None:
        """Do nothing: `write_shard` has published it."""

    def remove(self, key: str) -> None:
        """Remove an object if it exists. Raises OSError."""
        self.object(key).remove()

    # --- holding

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the lease of the documents. Raises FolderInUseError, OSError."""
        with self.take_lease(DOCUMENTS, wait=wait) as lease:
            if lease is None:
                raise FolderInUseError(f"{self}: cache is in use by another process; wait for it")
            _holds.current = _Hold(lease)
            try:
                yield
            finally:
                _holds.current = None

    def take_lease(self, name: str, *, wait: bool = False) -> Iterator[ObjectLease | None]:
        """Hold a lease; see `take_object_lease`. Raises OSError."""
        return take_object_lease(self.object(f"{LEASES}/{name}"), wait=wait)

    def is_held(self, name: str) -> bool:
        """Whether a process holds the lease, or did so lately. Raises OSError."""
        return is_alive(self.object(f"{LEASES}/{name}"))

    def read_holder(self, name: str) -> str:
        """The holder by the contents of the lease, for a message."""
        with suppress(OSError):
            data = self.object(f"{LEASES}/{name}").read_bytes(most_bytes=MOST_HOLDER_BYTES)
            return find_holder(data)
        return SOMEBODY

    def find_held_leases(self, names: set[str]) -> set[str]:
        """Those of the leases that are renewed while they are watched. Raises OSError."""
        if not [name for name in names if self.is_held(name)]:
            return set()
        log.warning(
            "%d leases are watched for %g s: those that do not change are of dead processes",
            len(names),
            bucket_lease.LOST_S,
        )
        time.sleep(bucket_lease.LOST_S)
        return super().find_held_leases(names)


@dataclass
class _Hold:
    """The lease of the documents, and the version of each that was read or put under it."""

    lease: ObjectLease
    tags: dict[BucketObject, Tag | None] = field(default_factory=dict)


class _Holds(threading.local):
    current: _Hold | None = None


_holds = _Holds()


def _replace_document(document: BucketObject, data: bytes) -> None:
    """Replace the version of a document that was read under the lock, else the current one.

    Raises LeaseLostError if another process has replaced it meanwhile: this process must have been
    suspended for long.
    """
    hold = _holds.current
    tag = hold.tags[document] if document in hold.tags else document.find_tag()
    hold.lease.check()
    try:
        new = document.create(data) if tag is None else document.replace(data, tag=tag)
        hold.tags[document] = new
    except (AlreadyThereError, FileNotFoundError):
        hold.tags[document] = document.find_tag()
        if document.read_bytes() != data:  # else only the answer was lost
            raise LeaseLostError(
                f"{document}: document was changed by another process meanwhile; run this again"
            ) from None


def _find_conditions(probe: BucketObject) -> bool:
    """Whether puts are done exactly if their conditions hold.

    The object itself is read to find out, since an answer may be lost.
    """

    def is_done(data: bytes, put: Callable[[], object]) -> bool:
        with suppress(AlreadyThereError):
            put()
        return probe.read_bytes() == data

    if not is_done(b"1", lambda: probe.create(b"1")) or is_done(b"2", lambda: probe.create(b"2")):
        return False
    first = probe.find_tag()
    return is_done(b"3", lambda: probe.replace(b"3", tag=first)) and not is_done(
        b"4", lambda: probe.replace(b"4", tag=first)
    )
