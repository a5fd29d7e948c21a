"""Phase one on Ray: one task a worker, which does what a worker of torchrun or SLURM does.

Ray only places workers and reports those it loses. Nothing here records what is done: workers open
the cache, take leases and commit groups like all processes; a group is there once its record is.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import ray
from ray.exceptions import RayError, RayTaskError

from kdcache.cache.index import read_group_record
from kdcache.cache.layout import MANIFEST, Group, record_name
from kdcache.cache.manifest import read_manifest
from kdcache.cache.records import has_record, list_records
from kdcache.config import Config
from kdcache.errors import CacheError, Phrase, describe
from kdcache.machine.process import Worker
from kdcache.precompute.build import (
    BuildSummary,
    finish_cache,
    open_job,
    prepare_job,
    warn_of_shrunk,
    write_missing,
)
from kdcache.precompute.ray_cluster import (
    Pool,
    choose_pool,
    connect,
    count_neighbours,
    list_machines,
    make_absolute,
)
from kdcache.progress import Bar, Progress, Silent
from kdcache.storage import Storage, open_storage

log = logging.getLogger("kdcache")
PATIENCE_S = 60.0  # until the first worker has started
SEEN_WITHIN_S, LOOK_EVERY_S = 60.0, 1.0  # network file systems show new files late
MOST_LOSSES = 3  # times the number of workers, while no group is committed


def build_with_ray(
    config: Config, *, num_workers: int | None = None, progress: Progress | None = None
) -> BuildSummary:
    """Like `build_cache`, by workers on Ray: RAY_ADDRESS, this machine's cluster, or a new one.

    Every machine must have data set and weights at the paths of the settings, and share the cache's
    folder; this machine needs only the folder. On CPUs a worker has as many threads as this
    process: with equal threads the bytes are equal, however many workers there are.

    Args:
        num_workers: None: one a GPU; without GPUs as many as the CPUs have room for.

    Raises: SettingsError, DataError, TeacherError or CacheError, also of workers; committed groups
        are kept.
    """
    progress, began_s, config = progress or Silent(), time.monotonic(), make_absolute(config)
    with connect():
        driver = _Driver(config, choose_pool(config, num_workers))
        try:
            driver.run(progress)
        finally:
            driver.stop()
    score = finish_cache(config, Worker(), progress)
    num_samples = sum(group.stop - group.start for group in driver.written)
    return BuildSummary(num_samples, driver.written_bytes, time.monotonic() - began_s, score)


@dataclass(frozen=True)
class _Started:
    """A worker has opened the cache. missing: groups that it found missing."""

    host: str
    missing: list[Group]


@dataclass(frozen=True)
class _Written:
    group: Group
    size_bytes: int


Event = _Started | _Written | str  # str: a warning


def _work(config: Config, worker: Worker, pool: Pool) -> Iterator[Event]:
    """The task: one worker, from weights and data set to its last group. Yields its events."""
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(count_neighbours(pool))}
    events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            with _hear_warnings(events.put):
                job, missing = open_job(prepare_job(config, Silent()))
                events.put(_Started(socket.gethostname(), missing))
                done = write_missing(job, missing, worker, tell)
                warn_of_shrunk(done.shrunk, config)
        except BaseException as error:
            events.put(error)
        events.put(None)

    def tell(group: Group, size_bytes: int) -> None:
        if size_bytes:  # others tell what they have written
            events.put(_Written(group, size_bytes))

    threading.Thread(target=run).start()
    while (event := events.get()) is not None:
        if isinstance(event, BaseException):
            raise event
        yield event


class _Driver:
    """Starts the workers, shows their progress, and starts another in place of a lost one.

    Attributes:
        written: groups that the workers committed. written_bytes: size of their shard files.
    """

    def __init__(self, config: Config, pool: Pool) -> None:
        self.config, self.pool, self.root = config, pool, open_storage(config.cache.path)
        self.written: list[Group] = []
        self.written_bytes = 0
        self._task = ray.remote(_work).options(**pool.options)
        self._tasks: dict[ray.ObjectRefGenerator, int] = {}  # -> rank
        self._started: set[int] = set()  # ranks
        self._left: dict[Group, None] | None = None  # not known to be there; None: nobody started
        self._bar: Bar = Silent().start("", total=None, unit="")
        self._said: set[str] = set()
        self._losses, self._lost = 0, False  # _losses: since a group was committed

    def run(self, progress: Progress) -> None:
        """Until every group is there."""
        for rank in range(self.pool.count):
            self._start(rank)
        with progress.start("starting the first worker", total=1, unit="workers") as bar:
            if not ray.wait(list(self._tasks), timeout=PATIENCE_S)[0]:
                self._warn_of_waiting()
            while self._left is None:
                self._step()
            bar.advance(1)
        total = sum(group.stop - group.start for group in self._left)
        with progress.start("asking the teacher", total=total, unit="samples") as self._bar:
            while self._tasks:
                self._step()
            for group in list(self._left):  # written by others, or by workers that were lost
                self._count(group, self._measure(group) if self._lost else 0)

    def stop(self) -> None:
        """End all workers at once; what they have not committed is lost."""
        for task in self._tasks:
            ray.cancel(task, force=True)

    def _start(self, rank: int) -> None:
        worker = Worker(rank, self.pool.count)
        self._tasks[self._task.remote(self.config, worker, self.pool)] = rank

    def _step(self) -> None:
        """Take one event."""
        [task], _ = ray.wait(list(self._tasks))
        rank = self._tasks.pop(task)
        try:
            event = ray.get(next(task))
        except StopIteration:
            self._drop_waiting()
        except RayTaskError as error:  # kdcache's own error, which is as good as here
            raise error.cause from error
        except RayError as error:
            self._restart(rank, error)
        else:
            self._tasks[task] = rank  # behind the others
            self._take(event, rank)

    def _take(self, event: Event, rank: int) -> None:
        if isinstance(event, str) and event not in self._said:
            self._said.add(event)
            log.warning("%s", event)
        elif isinstance(event, _Started):
            self._check_seen(partial(self.root.exists, MANIFEST), MANIFEST, event.host)
            self._started.add(rank)
            self._left = dict.fromkeys(event.missing) if self._left is None else self._left
        elif isinstance(event, _Written):
            self._count(event.group, event.size_bytes)

    def _count(self, group: Group, size_bytes: int) -> None:
        field = f"commit record of {group.name}"
        self._check_seen(partial(self._has_record, group), field, "a worker's machine")
        if size_bytes:
            self.written.append(group)
            self.written_bytes += size_bytes
        self._left.pop(group, None)
        self._losses = 0
        self._bar.advance(group.stop - group.start, size_bytes=size_bytes)

    def _has_record(self, group: Group) -> bool:
        self.root.refresh()
        return has_record(self.root, group)

    def _measure(self, group: Group) -> int:
        """Bytes of the shard files of a group, from its commit record."""
        record = read_group_record(self.root, read_manifest(self.root), group)
        return sum(file.size_bytes for file in record.files.values())

    def _drop_waiting(self) -> None:
        """If nothing is missing, workers that have found no room yet need not start."""
        there = list_records(self.root)
        if all(record_name(group) in there for group in self._left or ()):
            for task, rank in list(self._tasks.items()):
                if rank not in self._started:
                    ray.cancel(task, force=True)
                    del self._tasks[task]

    def _restart(self, rank: int, error: RayError) -> None:
        """Start a lost worker again, anywhere. Raises CacheError if that is no use."""
        self._started.discard(rank)
        self._losses, self._lost = self._losses + 1, True
        reason = str(error).strip().splitlines()[-1].strip()[:200]  # behind Ray's description
        if self._losses > MOST_LOSSES * self.pool.count:
            raise CacheError(
                f"{self.root}: Ray has lost {self._losses} workers while no shard group was "
                f"committed, the last one: {reason}; mend that and run again, "
                "what is committed is kept"
            )
        log.warning("a worker was lost (%s); another takes its place", reason)
        self._start(rank)

    def _warn_of_waiting(self) -> None:
        """Ray says nothing while a cluster has no room for a task, which may be forever."""
        [(kind, amount)] = self.pool.demand.items()
        free = ray.available_resources().get(kind, 0)
        log.warning(
            "no worker has begun in %g s: each of %d takes %g %s of one machine; the largest "
            "machine of the cluster has %g, and %g are free in all; waiting for room, or for "
            "weights and data set to be read",
            PATIENCE_S, self.pool.count, amount, kind, max(list_machines(kind)), free,
        )  # fmt: skip

    def _check_seen(self, look: Callable[[], bool], field: str, host: str) -> None:
        """Raise CacheError unless `look` becomes true soon: the folder is not shared."""
        until_s = time.monotonic() + SEEN_WITHIN_S
        while not (seen := look()) and time.monotonic() < until_s:
            time.sleep(LOOK_EVERY_S)
        if not seen:
            raise _refuse_unshared(self.root, field, host)


def _refuse_unshared(root: Storage, field: str, host: str) -> CacheError:
    found, expected = Phrase("missing here"), Phrase(f"there, as {host} has written it")
    cure = "set cache.path to a folder that all machines of the cluster share"
    return CacheError(describe(root, field=field, found=found, expected=expected, cure=cure))


@contextmanager
def _hear_warnings(hear: Callable[[str], None]) -> Iterator[None]:
    """Pass on kdcache's warnings: nobody reads a worker's stderr."""
    handler = logging.Handler()
    handler.emit = lambda record: hear(record.getMessage())
    logger = logging.getLogger("kdcache")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
