"""Checkpoints of a run: plain tensors and numbers, loaded without running code, replaced in one step."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import nn

from kdcache.config import Config
from kdcache.errors import TrainingError, one_line
from kdcache.models.arch import build_student
from kdcache.training.loop import Learner

BEST, LAST = "student_kd_best.pth", "student_kd_last.pth"
_CURE = "delete the run folder and start again"
_PARTS = ("model_state_dict", "alignment_state_dict", "optimizer_state_dict", "scheduler_state_dict", "random_state",
          "cuda_random_state", "hyperparameters", "cache_identity", "history")  # fmt: skip


def save_checkpoint(path: Path, learner: Learner, *, facts: dict) -> None:
    """Write model, projections, optimiser, schedule and random state beside `facts` (JSON-like values).

    The random state is that of this process; several draw their dropout anew in each epoch, and only one that goes on alone
    takes it up.
    """
    state = {
        "model_state_dict": learner.student.state_dict(),
        "alignment_state_dict": learner.loss.align.state_dict(),
        "optimizer_state_dict": learner.optimizer.state_dict(),
        "scheduler_state_dict": learner.scheduler.state_dict(),
        "random_state": torch.get_rng_state(),
        "cuda_random_state": torch.cuda.get_rng_state(learner.device)
        if learner.device.type == "cuda"
        else None,
        **facts,
    }
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_checkpoint(path: Path) -> dict:
    """A checkpoint as it was saved; code in it is never run. Raises TrainingError where the file is damaged or another one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old pickles before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # damaged bytes end in a dozen kinds: struct.error, IndexError, AssertionError, ...
        reason = one_line(error)
        raise TrainingError(f"{path}: checkpoint is unreadable ({reason}); {_CURE}") from None
    missing = [name for name in _PARTS if not isinstance(state, dict) or name not in state]
    if missing:
        raise TrainingError(f"{path}: checkpoint is unreadable (it has no {missing[0]}); {_CURE}")
    return state


def read_student(config: Config, checkpoint: Path) -> tuple[nn.Module, dict]:
    """The student of a checkpoint, in eval mode on the CPU, and the checkpoint. Raises TrainingError, SettingsError."""
    state = read_checkpoint(checkpoint)
    student = build_student(
        config.student, num_classes=config.dataset.num_classes, pretrained=False
    )
    load_weights(student, state, where=checkpoint)
    return student.eval(), state


def load_weights(student: nn.Module, state: dict, *, where: object) -> None:
    """Give a student the weights of a checkpoint. Raises TrainingError where they are another student's."""
    try:
        student.load_state_dict(state["model_state_dict"])
    except (
        RuntimeError,
        AttributeError,
    ) as error:  # a student that has been changed; AttributeError: damage
        reason = one_line(error)
        cure = "make student.arch what it was, or start a new run"
        raise TrainingError(
            f"{where}: checkpoint is of another student ({reason}); {cure}"
        ) from None


def restore(learner: Learner, state: dict, *, where: object) -> None:
    """Put a learner into the state of a checkpoint. Raises TrainingError where that is another student's."""
    load_weights(learner.student, state, where=where)
    learner.loss.align.load_state_dict(state["alignment_state_dict"])
    learner.optimizer.load_state_dict(state["optimizer_state_dict"])
    learner.scheduler.load_state_dict(state["scheduler_state_dict"])
    torch.set_rng_state(state["random_state"])
    if state["cuda_random_state"] is not None and learner.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_random_state"], learner.device)
