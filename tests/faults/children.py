"""What child processes do in these tests: build a cache, or train, and meet a fault at a chosen
step on the disk.

The steps are the calls of `kdcache.disk`, the only ways in which a cache on disk changes.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import wraps
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from kdcache import disk
from kdcache.cache.layout import Group
from kdcache.cache.manifest import Manifest
from kdcache.config.parser import make_config
from kdcache.precompute import group as shard_group
from kdcache.precompute import pipeline
from kdcache.precompute.build import build_cache
from kdcache.precompute.pipeline import Crew
from tests.support import quick

STEPS = ("write_file", "rename", "remove", "make_folder", "sync_folder")
Fault = Callable[[str, tuple], None]


def kill(step: str, arguments: tuple) -> None:
    """End this process as `kill -9` does, before the step."""
    os.kill(os.getpid(), signal.SIGKILL)


class Killed(BaseException):
    """Stands for SIGKILL in this process: nothing in kdcache may catch it or tidy up after it."""


def die(step: str, arguments: tuple) -> None:
    """As far as the disk can tell this process is killed."""
    raise Killed


def tear(step: str, arguments: tuple) -> None:
    """The same in the middle of writing a file: half of it is there."""
    if step == "write_file":
        data = b"".join(bytes(part) for part in arguments[1])
        arguments[0].write_bytes(data[: len(data) // 2])
    kill(step, arguments)


def stop(step: str, arguments: tuple) -> None:
    """Stand still until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def refuse(step: str, arguments: tuple) -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def meet(fault: Fault, *, step: int, setattr: Callable = setattr) -> list[str]:
    """Meet `fault` before the given step from now on; returns the list into which the names of all
    steps are put.
    """
    seen: list[str] = []

    def watch(name: str, original: Callable) -> Callable:
        @wraps(original)
        def watched(*args, **kwargs):
            seen.append(name)
            if len(seen) == step + 1:
                fault(name, args)
            return original(*args, **kwargs)

        return watched

    for name in STEPS:
        setattr(disk, name, watch(name, getattr(disk, name)))
    return seen


def hire(writers: int) -> Callable[[], Crew]:
    """In place of `pipeline.choose_crew`; with one writer the steps have one order, on every
    machine.
    """
    return lambda *_: Crew(drawers=2, writers=writers, ahead=1)


def build(given: dict, fault: Fault | None = None, step: int = -1, writers: int = 1) -> None:
    """Build a quick cache; exit code 0, or 3 with the error in a file beside the cache."""
    quick.use_quick_teacher()
    pipeline.choose_crew = hire(writers)
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: (
        None
    )  # as in tests/conftest.py: a killed process loses nothing that it wrote
    if fault:
        meet(fault, step=step)
    try:
        build_cache(make_config(given))
    except Exception as error:
        error_file(Path(given["cache"]["path"])).write_text(f"{type(error).__name__} {error}")
        os._exit(3)


def error_file(root: Path) -> Path:
    """Where the error of the last child that failed is; a child's stderr is the fork server's."""
    return root.with_name(f"{root.name}.error")


def build_and_log(given: dict, log: Path) -> None:
    """The same by two writers; the names of the groups that this process committed go into a file
    in `log`.
    """
    original = shard_group.write_group

    def write_group(root: Path, manifest: Manifest, group: Group, **kwargs: object) -> int:
        size_bytes = original(root, manifest, group, **kwargs)
        with (log / str(os.getpid())).open("a") as file:
            file.write(f"{group.name}\n")
        return size_bytes

    shard_group.write_group = write_group
    build(given, writers=2)


def train(given: dict) -> None:
    """Train a student from a finished cache, resuming what is there."""
    from kdcache.training.distill import distill

    torch.set_num_threads(1)
    distill(given, root=make_config(given).cache.path)


_context = multiprocessing.get_context(
    "forkserver"
)  # no fork of a process with threads, no import of torch for each child
_context.set_forkserver_preload(["pytest", "kdcache.precompute.build", "kdcache.training.distill"])


def start(target: Callable, *args: object) -> BaseProcess:
    """A child that runs `target`."""
    child = _context.Process(target=target, args=args)
    child.start()
    return child


def run(target: Callable, *args: object) -> int:
    """Run a child to its end; its exit code, -9 where it was killed."""
    child = start(target, *args)
    child.join(60)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode
