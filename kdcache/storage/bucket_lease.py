"""The right to write a shard group of a bucket: an object that was created by one process, which
goes on replacing it.

A bucket has no locks, and clocks of different machines differ: so nobody compares times. Whoever
finds a lease looks at its tag; if that is still the same after LOST_S seconds by the watcher's own
clock, its holder is dead, and the lease is taken over by a put under the condition that the tag is
still that one. A holder that was only stopped finds its tag gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kdcache.storage.base import Lease, refuse_lost
from kdcache.storage.bucket_client import AlreadyThereError, BucketObject, Tag

RENEW_S = 15.0  # between two puts of a holder
LOST_S = 90.0  # without one, as a watcher sees it
POLL_S = 2.0

_claims: dict[
    tuple[BucketObject, int], bytes
] = {}  # of a thread, what it may have put without hearing of it
_seen: dict[
    BucketObject, tuple[Tag, float]
] = {}  # tag of another's lease, and when it was seen first


class ObjectLease(Lease):
    """A held lease; it is renewed by a thread of its own, and by `check` where that is late."""

    def __init__(self, path: BucketObject, tag: Tag, holder: str) -> None:
        self.path, self.tag, self.holder = path, tag, holder
        self.lost, self._renewed_s = False, _now()
        self._next = _contents(holder)
        self._lock = threading.Lock()
        self.released = threading.Event()
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def check(self) -> None:
        """Raises LeaseLostError if it is another's now, OSError if the store does not answer."""
        self.renew(older_s=RENEW_S)
        if self.lost:
            raise refuse_lost(str(self.path), "taken over or removed")

    def renew(self, *, older_s: float) -> None:
        """Replace it, if that was done longer ago than `older_s` seconds. Raises OSError."""
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
            with suppress(OSError):  # `check` says it, or the next round mends it
                self.renew(older_s=RENEW_S * 2 / 3)

    def release(self) -> None:
        """Remove it, if it is still ours; where that fails, others find it dead in time."""
        self.released.set()
        with self._lock, suppress(OSError):
            if not self.lost and self.path.find_tag() == self.tag:
                self.path.remove()
            self.lost = True

    def _find_own(self) -> bool:
        """Whether it is what this process was writing, and only the answer was lost."""
        with suppress(FileNotFoundError):
            tag = (
                self.path.find_tag()
            )  # before the look at what it holds, which then is at least as new
            if tag is not None and self.path.read_bytes() == self._next:
                self.tag = tag
                return True
        return False


@contextmanager
def take_object_lease(path: BucketObject, *, wait: bool = False) -> Iterator[ObjectLease | None]:
    """Hold the lease that is the object `path` until the block ends; None if another process holds
    it.
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


def is_alive(path: BucketObject) -> bool:
    """Whether a lease is there and not known to be dead; to know that takes two looks LOST_S
    seconds apart.
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
    """Of the lease of a dead holder; or of ours, where the answer to an earlier claim of this
    thread was lost.
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
    """Never the same twice: a tag may be a hash of what is stored."""
    return f"{holder}, {uuid.uuid4().hex}\n".encode()


def _now() -> float:
    """Seconds that go on while a machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
