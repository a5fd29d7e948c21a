"""Leases in a bucket: an object that its holder created and keeps renewing.

A bucket has no locks, and the clocks of machines differ, so no times are compared. A process that
wants a lease watches its tag. If the tag has not changed for LOST_S seconds of the watcher's own
clock, the holder is taken for dead, and the lease is taken over by a put on condition that the tag
is still the same. A holder that was only suspended then finds that its tag is gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kdcache.storage.bucket_client import AlreadyThereError, BucketObject, Tag
from kdcache.storage.lock import Lease, refuse_lost

RENEW_S = 15.0  # between two renewals by the holder
LOST_S = 90.0  # without a renewal, as a watcher sees it: the holder is dead
POLL_S = 2.0  # between two attempts of a process that waits for a lease

# (lease, thread) -> contents of a put whose answer may have been lost
_claims: dict[tuple[BucketObject, int], bytes] = {}
# another process's lease -> its tag, and when that tag was seen first
_seen: dict[BucketObject, tuple[Tag, float]] = {}


class ObjectLease(Lease):
    """A held lease, renewed by a thread of its own, and by `check` if that thread is late."""

    def __init__(self, path: BucketObject, tag: Tag, holder: str) -> None:
        self.path, self.tag, self.holder = path, tag, holder
        self.lost, self._renewed_s = False, _now()
        self._next = _contents(holder)
        self._lock = threading.Lock()
        self.released = threading.Event()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def check(self) -> None:
        """Raise LeaseLostError if another process has it, OSError if the store does not answer."""
        self.renew(older_s=RENEW_S)
        if self.lost:
            raise refuse_lost(str(self.path), "taken over or removed")

    def renew(self, *, older_s: float) -> None:
        """Renew the lease if the last renewal is more than `older_s` seconds ago.

        Sets `lost` if another process has taken it over. Raises OSError.
        """
        with self._lock:
            began_s = _now()
            if self.lost or began_s - self._renewed_s < older_s:
                return
            try:
                self.tag = self.path.replace(self._next, tag=self.tag)
            except (AlreadyThereError, FileNotFoundError):
                if not self._find_own():
                    self.lost = True
                    return
            self._renewed_s, self._next = began_s, _contents(self.holder)

    def _keep(self) -> None:
        while not self.released.wait(RENEW_S / 3):
            with suppress(OSError):  # `check` raises it, or the next round succeeds
                self.renew(older_s=RENEW_S * 2 / 3)

    def release(self) -> None:
        """Remove the lease if it is still ours; if that fails, others will take it for dead."""
        self.released.set()
        with self._lock, suppress(OSError):
            if not self.lost and self.path.find_tag() == self.tag:
                self.path.remove()
            self.lost = True

    def _find_own(self) -> bool:
        """Whether the renewal was done, and only its answer was lost."""
        with suppress(FileNotFoundError):
            tag = self.path.find_tag()  # before the contents, which then are at least as new
            if tag is not None and self.path.read_bytes() == self._next:
                self.tag = tag
                return True
        return False


@contextmanager
def take_object_lease(path: BucketObject, *, wait: bool = False) -> Iterator[ObjectLease | None]:
    """Hold the lease `path` until the block ends; None if another process holds it.

    Args:
        wait: wait until it is released or its holder is dead, instead of returning None.

    Raises: OSError.
    """
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    lease = _claim(path, holder)
    while lease is None and wait:
        time.sleep(POLL_S)
        lease = _claim(path, holder)
    if lease is None:
        yield None
        return
    try:
        yield lease
    finally:
        lease.release()


def put_own(path: BucketObject, data: bytes, *, lease: Lease) -> None:
    """Put an object, in place of one that an earlier writer left, as long as `lease` is held.

    Raises LeaseLostError, OSError.
    """
    while True:
        try:
            lease.check()
            path.create(data)
            return
        except AlreadyThereError:
            tag = path.find_tag()
        try:
            lease.check()  # after reading the tag: a later holder of the lease changes the tag
            if tag is not None:
                path.replace(data, tag=tag)
                return
        except (AlreadyThereError, FileNotFoundError):
            continue  # an earlier writer's late put, or our own whose answer was lost


def is_alive(path: BucketObject) -> bool:
    """Whether a lease exists and is not known to be dead. Raises OSError.

    To know that a lease is dead takes two calls, LOST_S seconds apart.
    """
    tag = path.find_tag()
    if tag is None:
        return False
    seen, since_s = _seen.get(path, (None, 0.0))
    if seen != tag:
        _seen[path] = tag, _now()
        return True
    return _now() - since_s < LOST_S


def _claim(path: BucketObject, holder: str) -> ObjectLease | None:
    claim = path, threading.get_ident()
    contents = _claims.setdefault(claim, _contents(holder))
    try:
        tag = path.create(contents)
    except AlreadyThereError:
        tag = _take_over(path, contents)
    if tag is None:
        return None
    del _claims[claim]
    return ObjectLease(path, tag, holder)


def _take_over(path: BucketObject, contents: bytes) -> Tag | None:
    """Take over a dead holder's lease, or our own if the answer to an earlier put was lost.

    Returns: the new tag; None if the lease is another process's.
    """
    with suppress(FileNotFoundError, AlreadyThereError):  # given back, or taken over by another
        tag = path.find_tag()
        if tag is not None and path.read_bytes() == contents:
            return tag
        if tag is not None and not is_alive(path):
            seen, _ = _seen.pop(path, (tag, 0.0))
            return path.replace(contents, tag=seen)
    return None


def _contents(holder: str) -> bytes:
    """Contents of a lease, different each time, because a tag may be a hash of them."""
    return f"{holder}, {uuid.uuid4().hex}\n".encode()


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
