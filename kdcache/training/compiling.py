"""torch.compile for a learner: whether it is worth it here, and what takes the place of the forward pass and the loss."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable

import torch

from kdcache.training.loop import Learner

log = logging.getLogger("kdcache")


def choose_compiling(setting: str, *, device: torch.device) -> tuple[bool, str]:
    """What `train.compile` means on this machine, and a line that says it."""
    if setting == "off":
        return False, "compile: off, as set"
    missing = _find_missing_tool(device)
    if missing:
        return False, f"compile: off, {missing}"
    if setting == "auto" and device.type == "cpu":  # measured: 22 to 100 s of compiling for 2 to 4 % of a step
        return False, "compile: off, on a CPU it gains less than it takes (train.compile on tries it)"
    return True, "compile: on, the first steps take a minute or more"


def compile_learner(learner: Learner) -> None:
    """Compile the student's forward pass and the loss of a band; validation and checkpoints keep the plain student."""
    learner.forward = _Compiled(learner.student, "student")
    learner.loss.compute_band = _Compiled(learner.loss.compute_band, "loss")


class _Compiled:
    """A compiled function; the plain one from the first failure of the compiler on, with one line that says so."""

    def __init__(self, function: Callable, name: str) -> None:
        self.plain, self.name = function, name
        self.chosen = torch.compile(function)

    def __call__(self, *args, **kwargs):  # whatever the function takes and returns
        if self.chosen is self.plain:
            return self.plain(*args, **kwargs)
        try:
            return self.chosen(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            log.warning("compile: the %s cannot be compiled here (%s); going on without", self.name, reason)
            self.chosen = self.plain
            return self.plain(*args, **kwargs)


def _find_missing_tool(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is missing"
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return (
        None if any(shutil.which(name) for name in compilers) else f"no C++ compiler ({' or '.join(compilers)}) found"
    )
