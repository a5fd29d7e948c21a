"""Phase one at work: draw views, ask the teacher and write groups, all at once.

A shard group passes from the drawing threads through the calling thread, which asks the teacher,
to a writing thread, and takes its lease with it. The number of groups in flight is fixed, and with
it the memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from kdcache.cache.encodings import Encoder
from kdcache.cache.layout import Group, SplitLayout
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import has_record
from kdcache.config import Config
from kdcache.data.pictures import Split
from kdcache.machine.devices import use_device
from kdcache.machine.process import count_own_cores, find_free_ram, find_worker
from kdcache.machine.signals import finish_first
from kdcache.models.teacher import Teacher
from kdcache.precompute.group import GroupAnswers, View, start_views
from kdcache.storage import Storage, open_storage
from kdcache.storage.lock import Lease

MOST_DRAWERS, MOST_WRITERS, MOST_AHEAD = 16, 8, 2
PINNED = 2  # torch rounds pinned blocks, into which a GPU copies, up to powers of two


@dataclass(frozen=True)
class Job:
    """A cache to build, and what that takes.

    splits: "train", "val" and, if it is asked for, "unlabelled", every file checked.
    bases: lowrank level -> float32 [C, R].
    parts: part of the cache -> its samples as they are stored, None where a row is not listed
        today; empty if each split is one part.
    """

    config: Config
    manifest: Manifest
    splits: dict[str, Split]
    teacher: Teacher
    bases: dict[str, np.ndarray]
    parts: dict[str, Split] = field(default_factory=dict)

    @property
    def stored(self) -> dict[str, Split]:
        """Part -> its samples in the order of its rows."""
        return self.parts or self.splits

    @property
    def storage(self) -> Storage:
        """The storage of the cache."""
        return open_storage(self.config.cache.path)

    @property
    def targets(self) -> dict[str, tuple[int, int]]:
        """Logits and each cached level -> (channels, stride in pixels)."""
        data = self.config.dataset
        return self.teacher.probe_targets(data.size_hw, data.val_hw)

    @property
    def encoder(self) -> Encoder:
        """Encodes answers as this cache stores them, on the teacher's device."""
        return Encoder(self.manifest.encodings, self.bases, self.teacher.device)


@dataclass(frozen=True)
class Crew:
    """Numbers of drawing threads, of writing threads, and of groups drawn ahead of the teacher.

    Memory holds at most the views of `ahead` groups, the answers about one, and what `writers`
    write. At 512x512 and 16 samples a group, views are 17 MB and all arrays 254 MB:
    2 x 254 + 17 = 525 MB with two cores, 9 x 254 + 2 x 17 = 2.3 GB with 16 cores or more. With a
    codec each writer also has the chunks of one array.
    """

    drawers: int
    writers: int
    ahead: int

    @property
    def most_groups(self) -> int:
        """Groups in flight at once, each under its lease: what an interruption can cost."""
        return self.ahead + 1 + self.writers


def choose_crew(group_bytes: int) -> Crew:
    """A crew for the cores and the free memory of this process.

    One writer for two cores, 8 for 16, since one hashes and copies less than 1 GB/s; fewer if
    groups of `group_bytes` would take more than half of the free memory. The workers of a machine
    share both.
    """
    cores = count_own_cores()
    most_held = find_free_ram() // 2 // find_worker().local_count // group_bytes
    writers = max(min(cores // 2, MOST_WRITERS, most_held - 1), 1)
    drawers, ahead = min(max(cores, 2), MOST_DRAWERS), min(writers, MOST_AHEAD)
    return Crew(drawers=drawers, writers=writers, ahead=ahead)


@dataclass
class _Flight:
    """One group in flight; closing `held` returns its lease."""

    group: Group
    lease: Lease
    held: ExitStack
    views: list[Future[View]]
    answers: GroupAnswers | None = None


class Pipeline:
    """Writes shard groups. A context: after it no thread runs and no lease is held.

    The first error ends it and is raised in the calling thread. Groups that the teacher has been
    asked about are still committed, unless the error came from writing; then only those whose
    writing has begun are.

    Args:
        done: called with each group that is in the cache now and the bytes that this process
            wrote, 0 if another process wrote it; from several threads, one call at a time.

    Attributes:
        written: groups that this process committed. written_bytes: size of their shard files.
        shrunk: view parameters of the validation images among them that were scaled down.
    """

    def __init__(self, job: Job, done: Callable[[Group, int], None]) -> None:
        self.job, self.done = job, done
        group_bytes = _measure_largest_group(job.manifest)
        if job.teacher.device.type == "cuda":
            group_bytes *= PINNED
        self.crew, self.encoder = choose_crew(group_bytes), job.encoder
        self.written: list[Group] = []
        self.written_bytes = 0
        self.shrunk: list[dict] = []
        own = {"initializer": use_device, "initargs": (job.teacher.device,)}
        self._drawers = ThreadPoolExecutor(self.crew.drawers, thread_name_prefix="draw", **own)
        self._writers = ThreadPoolExecutor(self.crew.writers, thread_name_prefix="write", **own)
        self._room = threading.Semaphore(self.crew.writers)  # no group waits in a queue, in memory
        self._drawn: deque[_Flight] = deque()
        self._writing: list[Future[None]] = []
        self._error: BaseException | None = None  # the first that a writer met
        self._lock = threading.Lock()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        first = self._error or error
        try:
            self._writers.shutdown()
        finally:  # even if Ctrl-C comes again
            for flight in self._drawn:
                flight.held.close()
            self._drawers.shutdown(cancel_futures=True)
        if first is not None and first is not error:
            raise first from None

    def write(self, groups: Iterable[Group], *, wait: bool = False) -> list[Group]:
        """Compute and commit the groups that are missing; return those that other processes hold.

        Args:
            groups: the next is taken as soon as there is room for it.
            wait: wait for the groups that others hold. Give one group a call and have none in
                flight, or two processes could wait for each other.
        """
        held = []
        for group in groups:
            if not self._begin(group, wait=wait):
                held.append(group)
            if len(self._drawn) > self.crew.ahead:
                self._ask_next()
        while self._drawn:
            self._ask_next()
        for writing in self._writing:
            writing.result()
        self._check()
        return held

    def skip(self, groups: Iterable[Group]) -> None:
        """Count groups that other processes have committed."""
        for group in groups:
            self._tell(group, 0)

    def _begin(self, group: Group, *, wait: bool) -> bool:
        """Take the lease and start drawing, unless the group is there; False if others hold it."""
        self._check()
        if self._is_there(group):  # before the lease: most groups here are done by other workers
            return True
        with ExitStack() as held:
            root, config = self.job.storage, self.job.config
            lease = held.enter_context(root.take_lease(group.name, wait=wait))
            if lease is None:
                return False
            root.refresh()
            if not self._is_there(group):
                views = start_views(config, group, splits=self.job.stored, pool=self._drawers)
                self._drawn.append(_Flight(group, lease, held.pop_all(), views))
        return True

    def _is_there(self, group: Group) -> bool:
        there = has_record(self.job.storage, group)
        if there:
            self._tell(group, 0)
        return there

    def _ask_next(self) -> None:
        """Ask the teacher about the group drawn first; pass it to a writer once one is free."""
        flight, job = self._drawn[0], self.job
        flight.answers = GroupAnswers(
            flight.group, flight.views, splits=job.stored, encoder=self.encoder
        )
        with finish_first() as may_go_on:
            for rows in flight.answers.batches(job.config.teacher.batch_size):
                self._check()
                may_go_on()
                flight.answers.ask(job.teacher, rows)
            self._room.acquire()
            self._writing = [writing for writing in self._writing if not writing.done()]
            self._writing.append(self._writers.submit(self._write, flight))
            self._drawn.popleft()  # only now: Ctrl-C finds the group in one of the two lists

    def _write(self, flight: _Flight) -> None:
        """Commit the group and return its lease; runs in a writing thread."""
        try:
            with flight.held.pop_all():
                if self._error is None:  # what failed for one group would fail for the next
                    self._commit(flight)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
        finally:
            flight.answers = None  # free the memory before another group takes the room
            self._room.release()

    def _commit(self, flight: _Flight) -> None:
        root, manifest = self.job.storage, self.job.manifest
        size_bytes, shrunk = flight.answers.commit(root, manifest, lease=flight.lease)
        with self._lock:
            self.written.append(flight.group)
            self.written_bytes += size_bytes
            self.shrunk += shrunk
        self._tell(flight.group, size_bytes)

    def _tell(self, group: Group, size_bytes: int) -> None:
        with self._lock:
            self.done(group, size_bytes)

    def _check(self) -> None:
        """Raise the first error that a writer met."""
        if self._error is not None:
            raise self._error


def _measure_largest_group(manifest: Manifest) -> int:
    """Bytes of a full shard group, and of the chunks of its largest array if they are coded."""

    def measure(layout: SplitLayout) -> int:
        group = layout.group(0, 0)
        coded = [layout.shard_bytes(array, group) for array in layout.arrays if array.codec]
        return layout.group_bytes(group) + max(coded, default=0)

    return max(measure(layout) for layout in manifest.layouts.values())
