"""Phase one on Ray: an actor a GPU, a task a shard group; an actor that is lost is replaced, its groups are given to others.

Nothing here keeps books of what is done. Actors open the cache, take leases and commit as all processes do: a group is there
once its record is, whoever died. With `ray_actor` and `ray_cluster` the only module that needs Ray.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from kdcache.cache.index import read_group_record
from kdcache.cache.layout import Group, manifest_path
from kdcache.cache.lease import read_holder
from kdcache.cache.manifest import read_manifest
from kdcache.cache.records import has_record, look_again
from kdcache.config import Config
from kdcache.errors import CacheError, Phrase, describe
from kdcache.machine.workers import Worker
from kdcache.precompute.build import BuildSummary, finish_cache, warn_of_shrunk
from kdcache.precompute.ray_actor import GroupWriter, Opened, Outcome, Staff, choose_staff
from kdcache.precompute.ray_cluster import connect, list_machines, make_absolute
from kdcache.progress import Bar, Progress, Silent
from kdcache.storage.place import Place

log = logging.getLogger("kdcache")
PATIENCE_S = 60.0  # until the first actor has begun
SEEN_WITHIN_S, LOOK_EVERY_S = 60.0, 1.0
MOST_LOSSES = 3  # of as many actors as there are to be, while no group is committed


def build_with_ray(
    config: Config, *, num_workers: int | None = None, progress: Progress | None = None
) -> BuildSummary:
    """`build_cache` by actors on the Ray cluster that is there (RAY_ADDRESS, or one of this machine), else on a local Ray.

    Every machine must have data set and weights where the settings say, and see the cache's folder; this one only that. On CPUs
    an actor has as many threads as this process: with equal threads the bytes are equal, however many actors there are.

    Args:
        num_workers: actors; None: one a GPU, without GPUs as many as the CPUs have room for.

    Raises: SettingsError, DataError, TeacherError or CacheError, those of actors, too; committed groups are kept.
    """
    progress, began_s, config = progress or Silent(), time.monotonic(), make_absolute(config)
    with connect():
        foreman = _Foreman(config, choose_staff(config, num_workers))
        try:
            _write_missing(foreman, progress)
        finally:
            foreman.dismiss()
    size_bytes, worker = foreman.written_bytes, Worker()
    return finish_cache(
        config,
        foreman.written,
        size_bytes=size_bytes,
        worker=worker,
        progress=progress,
        began_s=began_s,
    )


def _write_missing(foreman: _Foreman, progress: Progress) -> None:
    """Write what is missing; groups that processes outside hold last of all."""
    with progress.start("starting the first worker", total=1, unit="workers") as bar:
        missing = foreman.find_missing()
        bar.advance(1)
    with progress.start(
        "asking the teacher", total=sum(g.stop - g.start for g in missing), unit="samples"
    ) as bar:
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
        self._asked: dict[
            ray.ObjectRef, tuple[ActorHandle, Group | None]
        ] = {}  # None: to open the cache
        self._said: set[str] = set()
        self._losses = 0  # since a group was committed
        self._lost: set[Group] = set()  # what lost actors had; they may have committed it
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
        if not self._opened and not ray.wait(list(self._asked), timeout=PATIENCE_S)[0]:
            self._warn_of_waiting()
        [answer], _ = ray.wait(list(self._asked))
        actor, group = self._asked.pop(answer)
        try:
            found = ray.get(answer)
        except RayTaskError as error:  # raised by kdcache in the actor, which is as good as here
            raise error.cause from error
        except RayError as error:
            self._lose(actor, error)
            self._lost |= {group} - {None}
            return group, None
        if group is None:
            self._begin(actor, found)
            return None, None
        return group, found

    def _warn_of_waiting(self) -> None:
        """Ray says nothing while a cluster has no room for an actor, which may be for ever."""
        [(kind, amount)] = self.staff.demand.items()
        free = ray.available_resources().get(kind, 0)
        log.warning(
            "no worker has begun in %g s: each of %d takes %g %s of one machine; the largest machine of the cluster has %g, "
            "and %g are free in all; waiting for room, or for weights and data set to be read",
            PATIENCE_S, self.staff.count, amount, kind, max(list_machines(kind)), free,
        )  # fmt: skip

    def _begin(self, actor: ActorHandle, opened: Opened) -> None:
        if not _is_seen(manifest_path(self.root).is_file):
            raise _refuse_unshared(self.root, "manifest.json", opened.host)
        for warning in opened.warnings:
            if warning not in self._said:
                log.warning("%s", warning)
        self._said |= set(opened.warnings)
        self._opened[actor] = opened

    def _count(self, group: Group, outcome: Outcome, bar: Bar) -> None:
        if not _is_seen(partial(self._has_record, group)):
            raise _refuse_unshared(
                self.root, f"commit record of {group.name}", "an actor's machine"
            )
        size_bytes = outcome.size_bytes or (self._measure(group) if group in self._lost else 0)
        if size_bytes:
            self.written.append(group)
            self.written_bytes += size_bytes
            self.shrunk += outcome.shrunk
        self._losses = 0
        bar.advance(group.stop - group.start, size_bytes=size_bytes)

    def _has_record(self, group: Group) -> bool:
        look_again(self.root)
        return has_record(self.root, group)

    def _measure(self, group: Group) -> int:
        """Bytes of the shard files of a group whose writer did not live to tell."""
        record = read_group_record(self.root, read_manifest(self.root), group)
        return sum(file.size_bytes for file in record.files.values())

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
            raise CacheError(
                f"{self.root}: {what}; mend that and run again, what is committed is kept"
            )
        log.warning("a worker was lost (%s); another takes its place", reason)
        self._hire()


def _is_seen(look: Callable[[], bool]) -> bool:
    """Within a minute: only then a network file system need show what another machine has written."""
    until_s = time.monotonic() + SEEN_WITHIN_S
    while not (seen := look()) and time.monotonic() < until_s:
        time.sleep(LOOK_EVERY_S)
    return seen


def _refuse_unshared(root: Place, field: str, host: str) -> CacheError:
    found, expected = Phrase("missing here"), Phrase(f"there, as {host} has written it")
    cure = "set cache.path to a folder that all machines of the cluster share"
    return CacheError(describe(root, field=field, found=found, expected=expected, cure=cure))
