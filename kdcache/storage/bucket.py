"""A cache in a bucket of an object store. FORMAT.md has the protocol.

There are no folders, links or partial files: an object is put whole, and what is put is kept.
Nothing is put over what another process has put since we looked. So a writer that was stopped, and
lost its lease, finds its puts refused; and if two wrote different bytes (GPUs round differently),
the last holder's record names its own shards.
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
    PROBE,
    FolderInUseError,
    Lease,
    LeaseLostError,
    ShardFile,
    Storage,
)
from kdcache.storage.bucket_client import AlreadyThereError, BucketObject, Tag, ask
from kdcache.storage.bucket_lease import ObjectLease, is_alive, take_object_lease

DOCUMENTS = "documents"  # the lease under which they change
FEW = 20  # sizes that are asked for one by one
log = logging.getLogger("kdcache")


class Bucket(Storage):
    """A cache whose objects have keys below `prefix` in `bucket` (with its scheme, s3://bucket)."""

    is_remote = True

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix

    @classmethod
    def at(cls, address: str) -> Bucket:
        """Of "s3://bucket/key"."""
        scheme, _, rest = address.partition("://")
        bucket, _, key = rest.partition("/")
        return cls(f"{scheme}://{bucket}", key)

    def __reduce__(self) -> tuple:
        return Bucket, (self.bucket, self.prefix)

    @property
    def address(self) -> str:
        return f"{self.bucket}/{self.prefix}"

    @property
    def short_name(self) -> str:
        return (self.prefix or self.bucket).rpartition("/")[2]

    def name(self, key: str) -> str:
        return str(self.object(key))

    def object(self, key: str) -> BucketObject:
        """The object of a key."""
        return BucketObject(self.bucket, "/".join(part for part in (self.prefix, key) if part))

    # --- looking and reading

    def exists(self, key: str) -> bool:
        return self.object(key).exists()

    def is_folder(self, key: str = "") -> bool:
        prefix = self._prefix_of(key)
        return ask(
            self.object(key),
            lambda bucket: any(len(batch) for batch in bucket.list(prefix=prefix, chunk_size=1)),
        )

    def list_names(self, key: str = "") -> set[str]:
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
        """By one listing for each array and view of which many are asked for."""
        places, sizes = defaultdict(list), {}
        for key in keys:
            places["/".join(key.split("/")[:4])].append(key)
        for place, wanted in places.items():
            if len(wanted) < FEW:
                there = {key: self.object(key).size() for key in wanted if self.exists(key)}
            else:
                there = self.walk(place)
            sizes |= {key: there[key] for key in wanted if key in there}
        return sizes

    def read_bytes(self, key: str) -> bytes:
        """While documents are locked the version that is read is noted: it must still be there when
        it is replaced.
        """
        document = self.object(key)
        if _holds.current is not None:
            _holds.current.tags[document] = document.find_tag()
        return document.read_bytes()

    @contextmanager
    def open_file(self, key: str) -> Iterator[BucketObject]:
        """Nothing is opened: each reading is a request of its own."""
        yield self.object(key)

    def _prefix_of(self, key: str) -> str | None:
        whole = self.object(key).key
        return f"{whole}/" if whole else None

    # --- writing

    def check_changeable(self) -> None:
        pass

    def create(self) -> None:
        """Raises CacheError if a put under a condition is not one: two workers could both commit."""
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
            f"{self.bucket}: bucket has no conditional put (If-None-Match, If-Match), expected one: it keeps workers from "
            "committing a group twice; use a store that has it, or a folder"
        )

    def find_free_bytes(self) -> float:
        return float("inf")

    def replace(self, key: str, data: bytes, *, lease: Lease | None = None) -> None:
        if lease is not None:
            put_own(self.object(key), data, lease=lease)
        else:
            _replace_document(self.object(key), data)

    def write_shard(self, key: str, parts: list[bytes | memoryview], *, lease: Lease) -> ShardFile:
        """Readers find it at once; without a commit record it counts for nothing."""
        data = b"".join(parts)
        put_own(self.object(key), data, lease=lease)
        return ShardFile(len(data), hashlib.sha256(data).hexdigest())

    def publish_shard(self, key: str, file: ShardFile, *, lease: Lease) -> None:
        pass

    def remove(self, key: str) -> None:
        self.object(key).remove()

    # --- holding

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Documents change under a lease of their own."""
        with self.take_lease(DOCUMENTS, wait=wait) as lease:
            if lease is None:
                raise FolderInUseError(f"{self}: cache is in use by another process; wait for it")
            _holds.current = _Hold(lease)
            try:
                yield
            finally:
                _holds.current = None

    def take_lease(self, name: str, *, wait: bool = False) -> Iterator[ObjectLease | None]:
        return take_object_lease(self.object(f"{LEASES}/{name}"), wait=wait)

    def is_held(self, name: str) -> bool:
        """Whether somebody holds it, or did lately."""
        return is_alive(self.object(f"{LEASES}/{name}"))

    def read_holder(self, name: str) -> str:
        with suppress(OSError):
            text = self.object(f"{LEASES}/{name}").read_bytes().decode(errors="replace")
            return text.partition(",")[0]
        return "another process"

    def find_held_leases(self) -> set[str]:
        """The leases whose tags change while they are watched."""
        names = self.list_names(LEASES)
        if not [name for name in names if self.is_held(name)]:
            return set()
        log.warning(
            "%d leases are watched for %g s: those that do not change are of dead processes",
            len(names),
            bucket_lease.LOST_S,
        )
        time.sleep(bucket_lease.LOST_S)
        return super().find_held_leases()


@dataclass
class _Hold:
    """The documents' lease, and the version of each that was read or put under it."""

    lease: ObjectLease
    tags: dict[BucketObject, Tag | None] = field(default_factory=dict)


class _Holds(threading.local):
    current: _Hold | None = None


_holds = _Holds()


def _replace_document(document: BucketObject, data: bytes) -> None:
    """Put a document in the place of the version that was read under the documents' lease, or is
    there now.

    Raises: LeaseLostError if another process has replaced it meanwhile: this one must have been
    stopped for long.
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


def put_own(path: BucketObject, data: bytes, *, lease: Lease) -> None:
    """Put an object, in place of what a writer before us left, as long as the lease is ours.

    Raises: LeaseLostError, OSError.
    """
    while True:
        try:
            lease.check()
            path.create(data)
            return
        except AlreadyThereError:
            tag = path.find_tag()
        try:
            lease.check()  # after the look at the tag: whoever has the lease by then changes it
            if tag is not None:
                path.replace(data, tag=tag)
                return
        except (AlreadyThereError, FileNotFoundError):
            continue  # the late put of a writer before us, or ours, of which the answer was lost


def _find_conditions(probe: BucketObject) -> bool:
    """Whether puts are done exactly if their conditions hold; what is there tells, since an answer
    may be lost.
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
