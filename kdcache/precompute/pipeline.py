"""Phase one at work: views of the next groups are drawn, the teacher is asked, finished groups are written, all at once.

A shard group passes from the drawing threads through the thread that calls, where the teacher is, to a writing thread, and
takes its lease with it. How many are on the way is fixed, and with it the memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import numpy as np

from kdcache.cache.layout import Group, SplitLayout
from kdcache.cache.lease import Lease, take_lease
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import has_record, look_again
from kdcache.cache.writer import GroupContents, write_group
from kdcache.config import Config
from kdcache.data.voc import Split
from kdcache.machine.memory import count_own_cores, find_free_ram
from kdcache.machine.workers import find_worker
from kdcache.models.teacher import Teacher
from kdcache.precompute.answers import GroupAnswers, View, collect_views, start_views
from kdcache.precompute.encoder import Encoder
from kdcache.progress import Bar

MOST_DRAWERS, MOST_WRITERS, MOST_AHEAD = 16, 8, 2
MOST_GROUPS = MOST_AHEAD + 1 + MOST_WRITERS  # on the way at once in one process


@dataclass(frozen=True)
class Plan:
    """What is to be built, and what it takes: settings, manifest, checked data set, teacher, bases of lowrank levels."""

    config: Config
    manifest: Manifest
    splits: dict[str, Split]
    teacher: Teacher
    bases: dict[str, np.ndarray]

    @property
    def encoder(self) -> Encoder:
        """Of this cache's encodings, on the teacher's device."""
        return Encoder(self.manifest.encodings, self.bases, self.teacher.device)


@dataclass(frozen=True)
class Crew:
    """Threads that draw, threads that write, and how many groups are drawn ahead of the one the teacher is asked about.

    In memory are at most the views of `ahead` groups, the answers to one and what `writers` write. At 512x512 and 16 samples a
    group that is 17 MB for views and 254 MB for all that a group stores: 2 x 254 + 17 = 525 MB with two cores,
    9 x 254 + 2 x 17 = 2.3 GB from 16 cores on; with a codec each writer has the chunks of one array besides.
    """

    drawers: int
    writers: int
    ahead: int

    @property
    def most_groups(self) -> int:
        """Groups on the way at once, each under its lease: what an interruption can cost."""
        return self.ahead + 1 + self.writers


def choose_crew(group_bytes: int) -> Crew:
    """For the cores of this process: 1 writer on two, 8 on 16, as one hashes and copies less than 1 GB/s; fewer where groups
    of that size would take more than half of the free memory; both are shared with the other workers of the machine."""
    cores = count_own_cores()
    most_held = find_free_ram() // 2 // find_worker().local_count // group_bytes
    writers = max(min(cores // 2, MOST_WRITERS, most_held - 1), 1)
    return Crew(
        drawers=min(max(cores, 2), MOST_DRAWERS), writers=writers, ahead=min(writers, MOST_AHEAD)
    )


@dataclass
class _Job:
    """One group on its way; `held` gives its lease back."""

    group: Group
    lease: Lease
    held: ExitStack
    views: list[Future[View]]
    answers: GroupAnswers | None = None


class Pipeline:
    """Writes shard groups; a context, at whose end no thread runs and no lease is held.

    An error ends it: the first one is raised, in the thread that calls. Groups that the teacher has been asked about are still
    committed, unless it was writing that failed; then only those whose writing has begun.

    asking: held while the teacher is asked about a group and until there is room to write it. room: for groups that are being
    written, as many as the crew has writers. Where several pipelines share both, they hold the answers of one.
    written: groups committed by this process; written_bytes: of their shard files. shrunk: parameters of the
    validation views among them that were scaled down.
    """

    def __init__(
        self,
        plan: Plan,
        bar: Bar,
        *,
        asking: AbstractContextManager | None = None,
        room: threading.Semaphore | None = None,
    ) -> None:
        self.plan, self.bar, self.crew = plan, bar, choose_crew(_largest_group(plan.manifest))
        self.asking = asking or nullcontext()
        self.encoder = plan.encoder
        self.written: list[Group] = []
        self.written_bytes = 0
        self.shrunk: list[dict] = []
        self._drawers = ThreadPoolExecutor(self.crew.drawers, thread_name_prefix="draw")
        self._writers = ThreadPoolExecutor(self.crew.writers, thread_name_prefix="write")
        self.room = room or threading.Semaphore(
            self.crew.writers
        )  # no group waits in a queue, with all its memory
        self._drawn: deque[_Job] = deque()
        self._writing: list[Future[None]] = []
        self._error: BaseException | None = None  # the first that a writer met
        self._lock = threading.Lock()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        first = self._error or error
        try:
            self._writers.shutdown()
        finally:  # Ctrl-C once more
            for job in self._drawn:
                job.held.close()
            self._drawers.shutdown(cancel_futures=True)
        if first is not None and first is not error:
            raise first from None

    def write(self, groups: Iterable[Group], *, wait: bool = False) -> list[Group]:
        """Compute and commit those that are not there; returns those that other processes hold.

        Args:
            groups: each is taken once there is room for it.
            wait: for those. Nothing may be on the way then, or two processes could wait for each other: one group a call.
        """
        held = []
        for group in groups:
            if not self._begin(group, wait=wait):
                held.append(group)
            if len(self._drawn) > self.crew.ahead:
                self._ask_next()
        while self._drawn:
            self._ask_next()
        self._wait_for_writers()
        return held

    def advance(self, groups: Iterable[Group]) -> None:
        """Count groups that other processes have committed."""
        for group in groups:
            self._advance(group, size_bytes=0)

    def _begin(self, group: Group, *, wait: bool) -> bool:
        """Take the lease and begin to draw, unless the group is there meanwhile; False where another process holds it."""
        root = self.plan.config.cache.path
        self._check()
        if has_record(
            root, group
        ):  # looked at first: of many workers each meets what the others have done
            self._advance(group, size_bytes=0)
            return True
        with ExitStack() as held:
            lease = held.enter_context(take_lease(root, group.name, wait=wait))
            if lease is None:
                return False
            look_again(root)
            if has_record(root, group):
                self._advance(group, size_bytes=0)
                return True
            views = start_views(
                self.plan.config, group, splits=self.plan.splits, pool=self._drawers
            )
            self._drawn.append(_Job(group, lease, held.pop_all(), views))
        return True

    def _ask_next(self) -> None:
        """Ask the teacher about the group drawn first, and hand it over to a writer once one is free."""
        job = self._drawn[0]
        job.answers = GroupAnswers(
            collect_views(job.group, job.views, splits=self.plan.splits), self.encoder
        )
        with self.asking:
            for rows in job.answers.batches(self.plan.config.teacher.batch_size):
                self._check()
                job.answers.ask(self.plan.teacher, rows)
            self.room.acquire()
        self._writing = [writing for writing in self._writing if not writing.done()]
        self._writing.append(self._writers.submit(self._write, job))
        self._drawn.popleft()  # after that, so that Ctrl-C finds it here or there

    def _write(self, job: _Job) -> None:
        """In a writing thread: the group's way to its end."""
        try:
            with job.held.pop_all():
                if self._error is None:  # what one was refused, the next would be, too
                    self._commit(job)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
        finally:
            job.answers = None  # before there is room for others
            self.room.release()

    def _commit(self, job: _Job) -> None:
        contents = job.answers.wait()
        root, manifest = self.plan.config.cache.path, self.plan.manifest
        size_bytes = write_group(root, manifest, job.group, contents=contents, lease=job.lease)
        with self._lock:
            self.written.append(job.group)
            self.written_bytes += size_bytes
            self.shrunk += _find_shrunk(job.group, contents)
        self._advance(job.group, size_bytes=size_bytes)

    def _advance(self, group: Group, *, size_bytes: int) -> None:
        with self._lock:
            self.bar.advance(group.stop - group.start, size_bytes=size_bytes)

    def _check(self) -> None:
        """Raises the first error that a writer met."""
        if self._error is not None:
            raise self._error

    def _wait_for_writers(self) -> None:
        for writing in self._writing:
            writing.result()
        self._check()


def _largest_group(manifest: Manifest) -> int:
    """Bytes of a full shard group, and of the chunks of its largest array where they are coded."""

    def measure(layout: SplitLayout) -> int:
        group = layout.group(0, 0)
        coded = [layout.shard_bytes(array, group) for array in layout.arrays if array.codec]
        return layout.group_bytes(group) + max(coded, default=0)

    return max(measure(layout) for layout in manifest.layouts.values())


def _find_shrunk(group: Group, contents: GroupContents) -> list[dict]:
    return [
        view
        for view in contents.views
        if group.split == "val" and view["image_box"][2:] != view["image_hw"]
    ]
