"""Learners that share batches take turns: each has its own random state, its own seconds, and its own errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from kdcache.errors import KdcacheError

FAILURES = (KdcacheError, OSError, torch.OutOfMemoryError, MemoryError)
Value = TypeVar("Value")


class Turn:
    """When a learner computes. One that is alone is always on, and what it raises is raised."""

    def __init__(self) -> None:
        self.time_s = 0.0
        """Seconds of all turns so far."""
        self.error: Exception | None = None
        """Why the learner takes no part any more."""

    def take(self, work: Callable[..., Value], *args: object, **options: object) -> Value | None:
        """What `work` gives."""
        began_s = time.monotonic()
        try:
            return work(*args, **options)
        finally:
            self.time_s += time.monotonic() - began_s


class SharedTurn(Turn):
    """One of several learners' on a device: dropout is drawn as if it were alone; what it raises is kept, and the others go on.

    The random state it begins with is the present one.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.cuda = device if device.type == "cuda" else None
        self.state = self._read_random()

    def take(self, work: Callable[..., Value], *args: object, **options: object) -> Value | None:
        """What `work` gives; None where it fails, and ever after."""
        if self.error is not None:
            return None
        self._set_random()
        try:
            return super().take(work, *args, **options)
        except FAILURES as error:
            self.error = error.with_traceback(None)  # which holds tensors
            return None
        finally:
            self.state = self._read_random()

    def _read_random(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.cuda) if self.cuda else None

    def _set_random(self) -> None:
        torch.set_rng_state(self.state[0])
        if self.cuda:
            torch.cuda.set_rng_state(self.state[1], self.cuda)
