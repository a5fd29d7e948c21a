"""The Ray cluster: how it is found or started, the workers it has room for, paths they can use."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import torch

from kdcache.config import Config
from kdcache.config.caching import FOLDERS
from kdcache.config.names import TRANSFORMERS
from kdcache.errors import SettingsError, one_line
from kdcache.machine.signals import keep_handlers

ANSWER_WITHIN_S = 10.0


@contextmanager
def connect() -> Iterator[None]:
    """Use the Ray that the caller has started, or one for the time of the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports over the network
    try:
        _check_answers(os.environ.get("RAY_ADDRESS", ""))
        with keep_handlers():  # Ray's would end this process without a line
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        cure = "set RAY_ADDRESS to a cluster that answers, or unset it"
        raise SettingsError(
            f"environment: Ray cannot be reached or begun ({reason}); {cure}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT: Ray would try, and print, for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()


@dataclass(frozen=True)
class Pool:
    """How many workers there are, what each takes of one machine ("GPU" or "CPU"), its threads."""

    count: int
    demand: dict[str, float]
    num_threads: int

    @property
    def options(self) -> dict:
        """Ray's options of a task. Its own retries are off: they would hide a lost worker."""
        demand = {"num_gpus": self.demand.get("GPU", 0), "num_cpus": self.demand.get("CPU", 0)}
        threads = {"env_vars": {"OMP_NUM_THREADS": str(self.num_threads)}}
        return {**demand, "runtime_env": threads, "max_retries": 0, "num_returns": "streaming"}


def choose_pool(config: Config, num_workers: int | None) -> Pool:
    """One worker a GPU; without GPUs as many as the CPUs hold, or `num_workers` that share them."""
    device, num_threads = config.teacher.device, torch.get_num_threads()
    gpus, cpus = int(sum(list_machines("GPU"))), list_machines("CPU")
    if device.startswith("cuda") or (device == "auto" and gpus):
        return Pool(num_workers or max(gpus, 1), {"GPU": 1}, num_threads)
    count = num_workers or max(sum(int(there // num_threads) for there in cpus), 1)
    share = sum(cpus) / count
    return Pool(count, {"CPU": min(num_threads, int(share) or share, max(cpus))}, num_threads)


def make_absolute(config: Config) -> Config:
    """Relative paths made absolute, since workers have working directories of their own."""
    root, weights = config.cache.path, Path(config.teacher.weights)
    root = root.absolute() if isinstance(root, Path) else root
    teacher = config.teacher
    if weights.is_file():  # else a name of torchvision's
        teacher = replace(teacher, weights=str(weights.absolute()))
    folder = Path(teacher.arch.removeprefix(TRANSFORMERS))
    if teacher.arch.startswith(TRANSFORMERS) and folder.is_dir():  # else a name of the hub
        teacher = replace(teacher, arch=f"{TRANSFORMERS}{folder.absolute()}")
    data = config.dataset
    given = {name: getattr(data, name) for name in FOLDERS if getattr(data, name) is not None}
    folders = {name: str(Path(folder).absolute()) for name, folder in given.items()}
    dataset = replace(data, root=data.root.absolute(), **folders)
    return replace(config, cache=replace(config.cache, path=root), dataset=dataset, teacher=teacher)


def list_machines(kind: str) -> list[float]:
    """How many GPUs or CPUs each machine of the cluster has for Ray."""
    return [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]


def count_neighbours(pool: Pool) -> int:
    """The most workers that can be on this machine: they share its cores and memory."""
    here = ray.get_runtime_context().get_node_id()
    there = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    room = min(int(there.get(name, 0) / share) for name, share in pool.demand.items())
    return max(min(room, pool.count), 1)
