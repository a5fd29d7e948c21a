"""The Ray cluster that is used: how it is found or begun, what its machines have, and paths that all of them can take."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray

from kdcache.config import Config
from kdcache.errors import SettingsError, one_line

ANSWER_WITHIN_S = 10.0


@contextmanager
def connect() -> Iterator[None]:
    """Use the Ray that the caller has begun, or one for the time of the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # nobody has asked for reports over the network
    try:
        _check_answers(os.environ.get("RAY_ADDRESS", ""))
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
    """Raises OSError where nobody listens at HOST:PORT: Ray would try for many minutes, and fill the screen meanwhile."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()


def list_machines(kind: str) -> list[float]:
    """How many GPUs or CPUs each machine of the cluster has for Ray."""
    return [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]


def make_absolute(config: Config) -> Config:
    """Actors have working directories of their own; addresses and names of torchvision's weights stay as they are."""
    root, weights = config.cache.path, config.teacher.weights
    return replace(
        config,
        cache=replace(config.cache, path=root.absolute() if isinstance(root, Path) else root),
        dataset=replace(config.dataset, root=config.dataset.root.absolute()),
        teacher=replace(
            config.teacher,
            weights=str(Path(weights).absolute()) if Path(weights).is_file() else weights,
        ),
    )
