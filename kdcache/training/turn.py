"""Learners that share batches take turns: each has its own random state, its own seconds, and its own errors."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from kdcache.config.names import BUILT_IN_STUDENT
from kdcache.errors import KdcacheError, TrainingError, one_line
from kdcache.models.arch import find_source

FAILURES = (KdcacheError, OSError, torch.OutOfMemoryError, MemoryError)
Value = TypeVar("Value")


class Turn:
    """When a learner computes. One that is alone is always on, and what it raises is raised.

    Args:
        arch: of the student: what code of the user's raises becomes one line.
    """

    def __init__(self, arch: str = BUILT_IN_STUDENT) -> None:
        self.arch = arch
        self.time_s = 0.0
        """Seconds of all turns so far."""
        self.error: Exception | None = None
        """Why the learner takes no part any more."""

    def take(self, work: Callable[..., Value], *args: object, **options: object) -> Value | None:
        """What `work` gives."""
        began_s = time.monotonic()
        try:
            return work(*args, **options)
        except (Exception, SystemExit) as error:
            if (
                self.arch == BUILT_IN_STUDENT
                or isinstance(error, FAILURES)
                or is_lost_process(error)
            ):
                raise
            raise describe_failure(error, self.arch) from None
        finally:
            self.time_s += time.monotonic() - began_s


class SharedTurn(Turn):
    """One of several learners' on a device: dropout is drawn as if it were alone; what it raises is kept, and the others go on.

    The random state it begins with is the present one.
    """

    def __init__(self, device: torch.device, arch: str = BUILT_IN_STUDENT) -> None:
        super().__init__(arch)
        self.cuda = device if device.type == "cuda" else None
        self.state = self._read_random()

    def take(self, work: Callable[..., Value], *args: object, **options: object) -> Value | None:
        """What `work` gives; None where it fails, and ever after."""
        if self.error is not None:
            return None
        self._set_random()
        try:
            return super().take(work, *args, **options)
        except Exception as error:
            self.error = as_failure(error, self.arch)
            return None
        finally:
            self.state = self._read_random()

    def _read_random(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.cuda) if self.cuda else None

    def _set_random(self) -> None:
        torch.set_rng_state(self.state[0])
        if self.cuda:
            torch.cuda.set_rng_state(self.state[1], self.cuda)


def as_failure(error: BaseException, arch: str) -> Exception:
    """Why a run has ended, without its traceback, which holds tensors."""
    kept = error if isinstance(error, FAILURES) else describe_failure(error, arch)
    return kept.with_traceback(None)


def describe_failure(error: BaseException, arch: str) -> TrainingError:
    """What a student raised, in one line, with the last place in the file of the user's."""
    place = ""
    if arch != BUILT_IN_STUDENT:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == find_source(arch)] or frames
        place = f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
    cure = "mend it, then start again (--run.resume goes on after the last whole epoch)"
    return TrainingError(
        f"student.arch {arch} is failing in training ({one_line(error, named=True)}{place}); {cure}"
    )


def is_lost_process(error: BaseException) -> bool:
    """Another process of the run has ended. gloo has no error of its own."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error)
    )
