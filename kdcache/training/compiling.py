"""torch.compile for a learner: whether to, and what takes the place of forward pass and loss."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil

import torch

from kdcache.cache.layout import ArraySpec
from kdcache.cache.reader import CacheReader
from kdcache.config import Config
from kdcache.progress import Say
from kdcache.training.batches import Batch
from kdcache.training.learner import Learner, list_arrays
from kdcache.training.loop import compute_step

log = logging.getLogger("kdcache")
RECOMPILE_LIMIT = 256  # a grid has students of many shapes; after 8, torch would stop compiling


def compile_where_worth(config: Config, train: CacheReader, learner: Learner, *, say: Say) -> None:
    """Compile a learner as `train.compile` says, in all its processes or in none."""
    compiling, line = choose_compiling(config.train.compile, device=learner.device)
    say(line)
    if not compiling:
        return
    plain = learner.forward, learner.loss.compute_band
    specs = [train.layout.array(name) for name in list_arrays(learner)]
    size = learner.processes.largest_share(config.train.batch_size)
    trial = make_trial_batch(specs, batch_size=size, device=learner.device)
    trial = learner.augmentation.apply(trial, epoch=0) if learner.augmentation else trial
    works = compile_learner(learner, trial)
    if not learner.processes.has_every(works) and works:  # asked first: each process must ask
        learner.forward, learner.loss.compute_band = plain
        say("compile: off, not possible in every process")


def choose_compiling(setting: str, *, device: torch.device) -> tuple[bool, str]:
    """Whether `train.compile` means compiling on this machine, and a line that says so."""
    if setting == "off":
        return False, "compile: off, as set"
    missing = _find_missing_tool(device)
    if missing:
        return False, f"compile: off, {missing}"
    if setting == "auto" and device.type == "cpu":
        # measured: 22 to 100 s of compiling for 2 to 4 % of a step
        return (
            False,
            "compile: off, on a CPU it gains less than it takes (train.compile on tries it)",
        )
    return True, "compile: on, compiling now, which takes one to three minutes"


def compile_learner(learner: Learner, batch: Batch) -> bool:
    """Compile the student's forward pass and the loss of a band of rows.

    Tried on a batch, backward pass included: if that fails, one line says so and the plain
    functions stay. The trial leaves no trace in weights, running statistics, gradients or random
    state. Validation and checkpoints keep the plain student.

    Returns: whether it worked.
    """
    plain, works = (learner.forward, learner.loss.compute_band), True
    buffers = {name: value.clone() for name, value in learner.student.named_buffers()}
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    devices = [learner.device] if learner.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            compiled = [torch.compile(function) for function in plain]
            learner.forward, learner.loss.compute_band = compiled
            learner.student.train()
            compute_step(learner, batch).total.backward()
    except Exception as error:  # whatever a compiler raises: a hundred kinds
        inner = getattr(error, "inner_exception", error)
        reason = (str(inner).strip() or type(inner).__name__).splitlines()[0][:120]
        log.warning("compile: not possible here (%s); going on without", reason)
        learner.forward, learner.loss.compute_band = plain
        works = False
    learner.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in learner.student.named_buffers():
            value.copy_(buffers[name])
    return works


def make_trial_batch(specs: list[ArraySpec], *, batch_size: int, device: torch.device) -> Batch:
    """A batch of zeros, of the shapes and dtypes that training has."""
    arrays = {
        spec.name: torch.zeros(
            (batch_size, *spec.item_shape), dtype=getattr(torch, spec.dtype), device=device
        )
        for spec in specs
    }
    return Batch(arrays, ["trial"] * batch_size)


def _find_missing_tool(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is missing"
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if any(shutil.which(name) for name in compilers):
        return None
    return f"no C++ compiler ({' or '.join(compilers)}) found"
