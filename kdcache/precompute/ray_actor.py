"""What runs in Ray's actors: one teacher each, and several shard groups on their way to and from it at once."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import torch

from kdcache.cache.layout import Group
from kdcache.config import Config
from kdcache.precompute.build import make_plan, open_plan
from kdcache.precompute.pipeline import MOST_GROUPS, Pipeline
from kdcache.precompute.ray_cluster import list_machines
from kdcache.progress import Silent


@dataclass(frozen=True)
class Staff:
    """How many actors there are to be, what each takes of the cluster ("GPU" or "CPU", as Ray counts them), and its threads."""

    count: int
    demand: dict[str, float]
    num_threads: int

    @property
    def options(self) -> dict:
        """Of each actor, for Ray."""
        demand = {"num_gpus": self.demand.get("GPU", 0), "num_cpus": self.demand.get("CPU", 0)}
        threads = {"env_vars": {"OMP_NUM_THREADS": str(self.num_threads)}}
        return {**demand, "runtime_env": threads, "max_concurrency": MOST_GROUPS}


def choose_staff(config: Config, num_workers: int | None) -> Staff:
    """An actor a GPU; without GPUs as many as the cluster's CPUs have room for, and if there are to be more, they share them."""
    device, num_threads = config.teacher.device, torch.get_num_threads()
    gpus, cpus = int(sum(list_machines("GPU"))), list_machines("CPU")
    if device.startswith("cuda") or (device == "auto" and gpus):
        return Staff(num_workers or max(gpus, 1), {"GPU": 1}, num_threads)
    count = num_workers or max(sum(int(there // num_threads) for there in cpus), 1)
    share = sum(cpus) / count
    return Staff(count, {"CPU": min(num_threads, int(share) or share, max(cpus))}, num_threads)


@dataclass(frozen=True)
class Opened:
    """What an actor says when it can begin: its machine, the groups that are missing, how many of them it takes at once, and
    what it warned of."""

    host: str
    missing: list[Group]
    room: int
    warnings: list[str]


@dataclass(frozen=True)
class Outcome:
    """What became of a group: written by this actor, held by another process, or neither: it was there.

    size_bytes: of the shard files that were written. shrunk: parameters of its validation views that were scaled down.
    """

    size_bytes: int
    held: bool
    shrunk: list[dict]


class GroupWriter:
    """The actor. `open` comes first; `write` may then be called from as many threads as `open` said there is room for."""

    def open(self, config: Config, staff: Staff) -> Opened:
        """Read weights and data set, and open the cache: the first to come begins it, others compare theirs with it.

        Raises: SettingsError, DataError, TeacherError, CacheError.
        """
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(_count_neighbours(staff))}
        with _hear_warnings() as warnings:
            self.plan, missing = open_plan(make_plan(config, Silent()))
        self.asking, self.room = threading.Lock(), None
        with self._start() as pipeline:
            self.room = pipeline.room
            return Opened(socket.gethostname(), missing, pipeline.crew.most_groups, warnings)

    def write(self, group: Group, *, wait: bool) -> Outcome:
        """Compute and commit a group, unless it is there; see `Pipeline.write`. Raises DataError, TeacherError, CacheError."""
        with self._start() as pipeline:
            held = pipeline.write([group], wait=wait)
        return Outcome(pipeline.written_bytes, bool(held), pipeline.shrunk)

    def _start(self) -> Pipeline:
        """Of its own for each group: Ray's threads are the stages, one at a time asks the teacher, and all share the memory."""
        return Pipeline(
            self.plan, Silent().start("", total=None, unit=""), asking=self.asking, room=self.room
        )


def _count_neighbours(staff: Staff) -> int:
    """The most actors that can be on this machine: they share its cores and memory."""
    here = ray.get_runtime_context().get_node_id()
    there = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    room = min(int(there.get(name, 0) / share) for name, share in staff.demand.items())
    return max(min(room, staff.count), 1)


@contextmanager
def _hear_warnings() -> Iterator[list[str]]:
    """What is warned of meanwhile; an actor's stderr is a file that nobody reads."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("kdcache")
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
