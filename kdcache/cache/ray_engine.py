"""Phase one on Ray: an actor a GPU, a task a shard group; an actor that is lost is replaced, its groups are given to others.

Nothing here keeps books of what is done. Actors open the cache, take leases and commit as all processes do: a group is there
once its record is, whoever died. With `ray_actor` the only module that needs Ray.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from kdcache.cache.build import BuildSummary, finish_cache, warn_of_shrunk
from kdcache.cache.layout import Group, manifest_path
from kdcache.cache.lease import read_holder
from kdcache.cache.place import Place
from kdcache.cache.ray_actor import GroupWriter, Opened, Outcome, Staff, choose_staff
from kdcache.cache.records import has_record, look_again
from kdcache.config import Config
from kdcache.errors import CacheError, Phrase, SettingsError, describe
from kdcache.report.progress import Bar, Progress, Silent
from kdcache.workers import Worker

log = logging.getLogger("kdcache")
ANSWER_WITHIN_S = 10.0
MOST_LOSSES = 3  # of as many actors as there are to be, while no group is committed


def build_with_ray(config: Config, *, num_workers: int | None = None, progress: Progress | None = None) -> BuildSummary:
    """`build_cache` by actors on the Ray cluster that is there (RAY_ADDRESS, or one of this machine), else on a local Ray.

    Every machine must have data set and weights where the settings say, and see the cache's folder; this one only that. On CPUs
    an actor has as many threads as this process: with equal threads the bytes are equal, however many actors there are.

    Args:
        num_workers: actors; None: one a GPU, without GPUs as many as the CPUs have room for.

    Raises: SettingsError, DataError, TeacherError or CacheError, those of actors, too; committed groups are kept.
    """
    progress, began_s = progress or Silent(), time.monotonic()
    with _connect():
        foreman = _Foreman(config, choose_staff(config, num_workers))
        try:
            _write_missing(foreman, progress)
        finally:
            foreman.dismiss()
    size_bytes, worker = foreman.written_bytes, Worker()
    return finish_cache(
        config, foreman.written, size_bytes=size_bytes, worker=worker, progress=progress, began_s=began_s
    )


@contextmanager
def _connect() -> Iterator[None]:
    """Use the Ray that the caller has begun, or one for the time of the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody has asked for reports over the network
    try:
        _check_answers(os.environ.get("RAY_ADDRESS", ""))
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        cure = "set RAY_ADDRESS to a cluster that answers, or unset it"
        raise SettingsError(f"environment: Ray cannot be reached or begun ({reason}); {cure}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray would try for many minutes, and fill the screen meanwhile."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()


def _write_missing(foreman: _Foreman, progress: Progress) -> None:
    """Write what is missing; groups that processes outside hold last of all."""
    with progress.start("starting the first worker", total=1, unit="workers") as bar:
        missing = foreman.find_missing()
        bar.advance(1)
    with progress.start("asking the teacher", total=sum(g.stop - g.start for g in missing), unit="samples") as bar:
        held = foreman.write(missing, bar)
        for group in held:
            holder = read_holder(foreman.root, group.name)
            log.warning("waiting for shard group %s, which %s is writing", group.name, holder)
        foreman.write(held, bar, wait=True)
    warn_of_shrunk(foreman.shrunk, foreman.config)


class _Foreman:
    """Gives groups to actors, to each as many as it takes at once, and puts another in the place of one that is lost.

    A new actor, not Ray's restart of the old one: what that one was doing would wait until a machine like the lost one comes.

    written: groups committed by the actors; written_bytes: of their shard files. shrunk: parameters of the validation views
    among them that were scaled down.
    """

    def __init__(self, config: Config, staff: Staff) -> None:
        self.config, self.staff, self.root = config, staff, config.cache.path
        self.written: list[Group] = []
        self.written_bytes = 0
        self.shrunk: list[dict] = []
        self._actors: set[ActorHandle] = set()
        self._opened: dict[ActorHandle, Opened] = {}
        self._asked: dict[ray.ObjectRef, tuple[ActorHandle, Group | None]] = {}  # None: to open the cache
        self._said: set[str] = set()
        self._losses = 0  # since a group was committed
        for _ in range(staff.count):
            self._hire()

    def find_missing(self) -> list[Group]:
        """The groups to be written, as the first actor finds them that can begin."""
        while not self._opened:
            self._take_answer()
        return next(iter(self._opened.values())).missing

    def write(self, groups: list[Group], bar: Bar, *, wait: bool = False) -> list[Group]:
        """Have these groups written; returns those that processes outside hold, unless told to `wait` for them."""
        waiting, held = deque(groups), []
        while waiting or any(group for _, group in self._asked.values()):
            self._hand_out(waiting, wait=wait)
            group, outcome = self._take_answer()
            if group and outcome is None:
                waiting.appendleft(group)
            elif group and outcome.held:
                held.append(group)
            elif group:
                self._count(group, outcome, bar)
        return held

    def dismiss(self) -> None:
        """End all actors at once; what they have not committed is lost."""
        for actor in self._actors:
            ray.kill(actor)

    def _hire(self) -> None:
        actor = ray.remote(GroupWriter).options(**self.staff.options).remote()
        self._actors.add(actor)
        self._asked[actor.open.remote(self.config, self.staff)] = actor, None

    def _hand_out(self, waiting: deque[Group], *, wait: bool) -> None:
        busy = Counter(actor for actor, group in self._asked.values() if group)
        for actor, opened in self._opened.items():
            for _ in range(min(opened.room - busy[actor], len(waiting))):
                group = waiting.popleft()
                self._asked[actor.write.remote(group, wait=wait)] = actor, group

    def _take_answer(self) -> tuple[Group | None, Outcome | None]:
        """Wait for an actor: a group and what became of it, None where the actor is lost; no group where one has begun."""
        [answer], _ = ray.wait(list(self._asked))
        actor, group = self._asked.pop(answer)
        try:
            found = ray.get(answer)
        except RayTaskError as error:  # raised by kdcache in the actor, which is as good as here
            raise error.cause from error
        except RayError as error:
            self._lose(actor, error)
            return group, None
        if group is None:
            self._begin(actor, found)
            return None, None
        return group, found

    def _begin(self, actor: ActorHandle, opened: Opened) -> None:
        if not manifest_path(self.root).is_file():
            raise _refuse_unshared(self.root, "manifest.json", opened.host)
        for warning in opened.warnings:
            if warning not in self._said:
                log.warning("%s", warning)
        self._said |= set(opened.warnings)
        self._opened[actor] = opened

    def _count(self, group: Group, outcome: Outcome, bar: Bar) -> None:
        look_again(self.root)
        if not has_record(self.root, group):
            raise _refuse_unshared(self.root, f"commit record of {group.name}", "an actor's machine")
        if outcome.size_bytes:
            self.written.append(group)
            self.written_bytes += outcome.size_bytes
            self.shrunk += outcome.shrunk
        self._losses = 0
        bar.advance(group.stop - group.start, size_bytes=outcome.size_bytes)

    def _lose(self, actor: ActorHandle, error: RayError) -> None:
        """Replace an actor; each task that it had ends in such an error."""
        if actor not in self._actors:
            return
        ray.kill(actor)  # it may be only out of reach
        self._actors.remove(actor)
        self._opened.pop(actor, None)
        self._losses += 1
        reason = (
            str(error).strip().splitlines()[-1].strip()[:200]
        )  # behind a traceback, or Ray's description of the actor
        if self._losses > MOST_LOSSES * self.staff.count:
            what = f"Ray has lost {self._losses} workers while no shard group was committed, the last one: {reason}"
            raise CacheError(f"{self.root}: {what}; mend that and run again, what is committed is kept")
        log.warning("a worker was lost (%s); another takes its place", reason)
        self._hire()


def _refuse_unshared(root: Place, field: str, host: str) -> CacheError:
    found, expected = Phrase("missing here"), Phrase(f"there, as {host} has written it")
    cure = "set cache.path to a folder that all machines of the cluster share"
    return CacheError(describe(root, field=field, found=found, expected=expected, cure=cure))
