"""Simulated workers of one process: a thread each, phase one's protocol as it is, deaths before
random steps on the disk.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from unittest.mock import patch

import numpy as np

from kdcache import disk
from kdcache.cache import writer
from kdcache.cache.layout import COMMITS, Group, SplitLayout
from kdcache.cache.lifecycle import complete_views
from kdcache.cache.manifest import Manifest
from kdcache.cache.writer import GroupContents, write_group
from kdcache.config import Config
from kdcache.machine.process import Worker
from kdcache.precompute import build, pipeline
from kdcache.precompute.pipeline import Crew, Job, Pipeline
from kdcache.storage import LocalFolder, open_storage
from kdcache.storage.lock import Lease
from tests.bench.data import make_ids

STEPS = ("write_file", "rename", "make_folder", "sync_folder")  # of kdcache.disk
MOST_STEPS = 40  # of a group of three arrays; who is due to die later dies right after the commit


class Killed(BaseException):
    """Stands for SIGKILL of a worker, while it writes the group of that name."""


@dataclass
class Record:
    """What happened to the workers of a process.

    counts: how often one was `begun` and `killed`, and how often it came to a group that was held
        or there (`met`).
    committed: the file name of each commit record that took its place. spent_s: CPU time, by what
        it was spent on.
    """

    counts: Counter = field(default_factory=Counter)
    committed: list[str] = field(default_factory=list)
    spent_s: Counter = field(default_factory=Counter)


class Clock:
    """Adds up CPU time of threads, that of the system for them included, and counts what happens in
    them.
    """

    def __init__(self, record: Record) -> None:
        self.spent_s, self.counts, self.lock = record.spent_s, record.counts, threading.Lock()

    def count(self, what: str) -> None:
        """One more."""
        with self.lock:
            self.counts[what] += 1

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Of the block."""
        began_s = time.thread_time()
        try:
            yield
        finally:
            with self.lock:
                self.spent_s[what] += time.thread_time() - began_s

    def watch(self, what: str, original: Callable) -> Callable:
        """The function, each of its calls timed."""

        def timed(*args: object, **options: object) -> object:
            with self.time(what):
                return original(*args, **options)

        return timed

    def watch_lease(self, original: Callable) -> Callable:
        """The context, its beginning and end timed."""

        @contextmanager
        def timed(*args: object, **options: object) -> Iterator[Lease | None]:
            held = ExitStack()
            with self.time("leases"):
                lease = held.enter_context(original(*args, **options))
            try:
                yield lease
            finally:
                with self.time("leases"):
                    held.close()

        return timed


class Fate(threading.local):
    """Of the worker in this thread: it dies before that step of the group it writes. None: not of
    this one.
    """

    due: int | None = None
    group: str = ""


VIEW = {
    "image_box": [0, 0, 16, 16],
    **dict.fromkeys(("image_hw", "resized_hw", "size_hw"), [16, 16]),
    "crop_tl": [0, 0],
    "flip": False,
    **dict.fromkeys(("brightness", "contrast", "saturation"), 1.0),
}
"""What records say of each view, of either kind of split."""


@dataclass(frozen=True)
class Life:
    """One life of a worker, in the teacher's place: its answers are a few bytes that no other life
    would give.
    """

    seed: str
    share: float
    fate: Fate
    clock: Clock

    def answer(self, layout: SplitLayout, group: Group) -> GroupContents:
        """What this worker stores, as if its GPU rounded otherwise."""
        value = random.Random(f"{self.seed} {group.name}").randrange(256)
        blocks = {
            spec.name: np.full((1, *spec.item_shape), value, spec.dtype) for spec in layout.arrays
        }
        return GroupContents(blocks, make_ids(group), [VIEW])

    def draw_fate(self, group: Group) -> None:
        """Choose whether and when this group kills it."""
        chance = random.Random(f"{self.seed} {group.name} dies")
        self.fate.group = group.name
        self.fate.due = chance.randrange(MOST_STEPS) if chance.random() < self.share else None


class BarePipeline(Pipeline):
    """The way of groups through the pipeline without its threads: what is begun is written at once,
    by its caller.
    """

    def __init__(self, job: Job, done: Callable[[Group, int], None]) -> None:
        self.job, self.done, self.crew = job, done, Crew(drawers=1, writers=1, ahead=0)
        self.written, self.shrunk, self._writing, self._drawn = [], [], [], deque()
        self._error, self._drawers, self._lock = None, None, threading.Lock()

    def __exit__(self, *exc: object) -> None:
        pass

    def _begin(self, group: Group, *, wait: bool) -> bool:
        ours = super()._begin(group, wait=wait)
        if not self._drawn:
            self.job.teacher.clock.count("met")
        return ours

    def _ask_next(self) -> None:
        flight, life, manifest = self._drawn.popleft(), self.job.teacher, self.job.manifest
        contents = life.answer(manifest.layouts[flight.group.split], flight.group)
        life.draw_fate(flight.group)
        with flight.held, life.clock.time("writing"):
            write_group(
                open_storage(self.job.config.cache.path),
                manifest,
                flight.group,
                contents=contents,
                lease=flight.lease,
            )
            if life.fate.due is not None:
                raise Killed(flight.group.name)
        self.written.append(flight.group)


def run_workers(
    config: Config, manifest: Manifest, ranks: list[int], num_workers: int, share: float
) -> Record:
    """Let these of `num_workers` workers do their work, a thread each; one that is killed is begun
    again.

    Args:
        share: of the groups, 0 to 1, that kill who writes them.
    """
    logging.getLogger("kdcache").setLevel(
        logging.ERROR
    )  # who waits for whom would be said hundreds of times
    record, fate = Record(), Fate()
    clock, splits = Clock(record), dict.fromkeys(manifest.layouts)

    def work(rank: int) -> None:
        for number in itertools.count():
            life = Life(f"{rank} {number}", share, fate, clock)
            clock.count("begun")
            if _survives(Job(config, manifest, splits, life, {}), Worker(rank, num_workers)):
                return
            clock.count("killed")

    with _simulated(record, fate, clock), ThreadPoolExecutor(len(ranks)) as threads:
        list(threads.map(work, ranks))
    return record


def _survives(plan: Job, worker: Worker) -> bool:
    """One life, as `build_cache` has it behind the reading of the data set. What was killed leaves
    its files and its lease's.
    """
    root, clock, fate = plan.config.cache.path, plan.teacher.clock, plan.teacher.fate
    try:
        with clock.time("opening"):
            plan, missing = build.open_job(plan)
        build.write_missing(plan, missing, worker, lambda group, size_bytes: None)
    except Killed as death:
        fate.due = None
        (
            root / f"leases/{str(death)}"
        ).touch()  # its block has ended and removed it, as no killed process would
        return False
    with clock.time("completing"):
        complete_views(root)
    return True


@contextmanager
def _simulated(record: Record, fate: Fate, clock: Clock) -> Iterator[None]:
    """Let workers die, and time what the protocol does."""
    list_groups = cache(lambda layout, original=SplitLayout.groups: list(original(layout)))
    changes = [
        (os, "fsync", lambda descriptor: None),
        (
            SplitLayout,
            "groups",
            lambda layout: iter(list_groups(layout)),
        ),  # 512 lists of them would be 15 GB
        (build, "Pipeline", BarePipeline),
        (build, "find_committed", clock.watch("listing", build.find_committed)),
        (pipeline, "start_views", lambda *args, **options: []),
        (LocalFolder, "take_lease", clock.watch_lease(LocalFolder.take_lease)),
        (pipeline, "has_record", clock.watch("looking", pipeline.has_record)),
        (LocalFolder, "refresh", clock.watch("looking", LocalFolder.refresh)),
        (writer, "write_record", clock.watch("record", writer.write_record)),
        *((disk, name, partial(_step, name, getattr(disk, name), record, fate)) for name in STEPS),
    ]
    with ExitStack() as undone:
        for owner, name, new in changes:
            undone.enter_context(patch.object(owner, name, new))
        yield


def _step(name: str, original: Callable, record: Record, fate: Fate, *args: object) -> None:
    """A step on the disk, or death before it; of a file to be written, half is there."""
    if fate.due == 0:
        if name == "write_file":
            data = b"".join(bytes(part) for part in args[1])
            args[0].write_bytes(data[: len(data) // 2])
        raise Killed(fate.group)
    fate.due = None if fate.due is None else fate.due - 1
    original(*args)
    if name == "rename" and args[1].parent.name == COMMITS:
        record.committed.append(args[1].name)
