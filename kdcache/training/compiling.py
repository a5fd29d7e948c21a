"""torch.compile for a learner: whether it is worth it here, and what takes the place of the forward pass and the loss."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil

import torch

from kdcache.cache.layout import ArraySpec
from kdcache.training.batches import Batch
from kdcache.training.loop import Learner, compute_step

log = logging.getLogger("kdcache")
MANY = 256  # students of different shapes in one process; torch goes on uncompiled, and says little, after 8


def choose_compiling(setting: str, *, device: torch.device) -> tuple[bool, str]:
    """What `train.compile` means on this machine, and a line that says it."""
    if setting == "off":
        return False, "compile: off, as set"
    missing = _find_missing_tool(device)
    if missing:
        return False, f"compile: off, {missing}"
    if (
        setting == "auto" and device.type == "cpu"
    ):  # measured: 22 to 100 s of compiling for 2 to 4 % of a step
        return (
            False,
            "compile: off, on a CPU it gains less than it takes (train.compile on tries it)",
        )
    return True, "compile: on, compiling now, which takes one to three minutes"


def compile_learner(learner: Learner, batch: Batch) -> bool:
    """Compile the student's forward pass and the loss of a band; validation and checkpoints keep the plain student.

    Tried on a batch, backward too: where it fails, one line says so and the plain ones stay. Nothing of the trial is left in
    weights, running statistics, gradients or random state.

    Returns: whether it worked.
    """
    plain, works = (learner.forward, learner.loss.compute_band), True
    buffers = {name: value.clone() for name, value in learner.student.named_buffers()}
    torch._dynamo.config.recompile_limit = MANY
    devices = [learner.device] if learner.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            learner.forward, learner.loss.compute_band = (
                torch.compile(function) for function in plain
            )
            learner.student.train()
            compute_step(learner, batch).total.backward()
    except Exception as error:  # whatever a compiler of another's meets: a hundred kinds
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
    """A batch as training has it, of zeros."""
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
    return (
        None
        if any(shutil.which(name) for name in compilers)
        else f"no C++ compiler ({' or '.join(compilers)}) found"
    )
