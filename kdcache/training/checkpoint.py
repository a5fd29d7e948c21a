"""Checkpoints of a run: plain tensors and numbers, loaded without running code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdcache import seals
from kdcache.config import Config, StudentConfig
from kdcache.errors import TrainingError, describe, find_cure, one_line
from kdcache.models.own_code import Trust
from kdcache.models.stored_state import (
    OPTIMIZER,
    STATE_DICT,
    TENSORS,
    load_tensors,
    restore_optimizer,
    restore_scheduler,
    save_tensors,
    tensor,
)
from kdcache.models.student import build_student
from kdcache.schema import FieldError, all_of, fields, maybe, plain, table_of
from kdcache.training.learner import Learner
from kdcache.training.run_folder import (
    BEFORE,
    BEST,
    FACTS,
    LAST,
    SETTINGS,
    drop_removed,
    write_history,
)

_CURE = "restore it from a copy, or delete the run folder and start again"
_RANDOM = tensor(torch.uint8, sides=1)
CHECKPOINT = all_of(
    fields(
        {
            "model_state_dict": STATE_DICT,
            "alignment_state_dict": TENSORS,
            "optimizer_state_dict": OPTIMIZER,
            "scheduler_state_dict": table_of(plain),
            "random_state": _RANDOM,
            "cuda_random_state": maybe(_RANDOM),
        },
        {"confusion": tensor(torch.int64, sides=2)},
    ),
    FACTS,
)


def save_epoch(
    learner: Learner, *, folder: Path, history: list[dict], facts: dict, confusion: Tensor
) -> None:
    """Write the checkpoints and metrics.jsonl after an epoch, the last entry of `history`.

    Args:
        facts: whose run it is. confusion: of this epoch; kept in the checkpoint if it is the best.
    """
    *before, last = history
    facts = {"epoch": len(history), "miou": last["miou"], **facts, "history": history}
    if all(last["miou"] > entry["miou"] for entry in before):
        save_checkpoint(folder / BEST, learner, facts={**facts, "confusion": confusion})
    save_checkpoint(folder / LAST, learner, facts=facts)
    write_history(folder, history)


def read_state(folder: Path, *, resume: bool) -> dict | None:
    """The last checkpoint; None if there is none to go on from.

    Raises: TrainingError if the checkpoint is damaged.
    """
    return read_checkpoint(folder / LAST) if resume and (folder / LAST).is_file() else None


def save_checkpoint(path: Path, learner: Learner, *, facts: dict) -> None:
    """Write model, projections, optimiser, schedule and random state beside `facts` (JSON-like).

    The random state is that of this process. Several processes draw their dropout anew in each
    epoch; only a single one resumes from it.
    """
    cuda = learner.device.type == "cuda"
    state = {
        "model_state_dict": learner.student.state_dict(),
        "alignment_state_dict": learner.loss.align.state_dict(),
        "optimizer_state_dict": learner.optimizer.state_dict(),
        "scheduler_state_dict": learner.scheduler.state_dict(),
        "random_state": torch.get_rng_state(),
        "cuda_random_state": torch.cuda.get_rng_state(learner.device) if cuda else None,
        **facts,
    }
    save_tensors(path, state)


def read_checkpoint(path: Path) -> dict:
    """A checkpoint as it was saved, compared with its seal; code in it is never run.

    Raises: TrainingError if the file is damaged or something else.
    """
    try:
        state, is_sealed = load_tensors(path, follow=False)
    except Exception as error:  # damaged bytes end in a dozen kinds: struct.error, IndexError, ...
        reason, cure = one_line(error), find_cure(error, _CURE)
        raise TrainingError(f"{path}: checkpoint is unreadable ({reason}); {cure}") from None
    try:
        CHECKPOINT(state)
    except FieldError as error:
        raise TrainingError(f"{path}: checkpoint is unreadable ({error}); {_CURE}") from None
    if not is_sealed:
        seals.tell_unsealed(path)
    return state | {"hyperparameters": drop_removed(state["hyperparameters"], where=path)}


def read_student(
    config: Config, checkpoint: Path, *, trust: Trust | None = None
) -> tuple[nn.Module, dict]:
    """The student of a checkpoint, in eval mode on the CPU, and the checkpoint.

    Args:
        config: of the run, as it is stored. trust: which code of the user's may be imported.

    Raises: TrainingError, SettingsError.
    """
    state, classes = read_checkpoint(checkpoint), config.dataset.num_classes
    check_code(state, checkpoint, config.student, trust=trust)
    student = build_student(config.student, num_classes=classes, pretrained=False)
    load_weights(student, state, where=checkpoint)
    return student.eval(), state


def check_code(
    state: dict, checkpoint: Path, student: StudentConfig, *, trust: Trust | None
) -> None:
    """Check that the student of a checkpoint is that of the run's settings, and may be imported.

    Raises: TrainingError, SettingsError.
    """
    facts = state["hyperparameters"]
    facts = {**BEFORE, **(facts if isinstance(facts, dict) else {})}
    if facts["student.arch"] != student.arch:
        found, expected = student.arch, facts["student.arch"]
        cure = f"make {SETTINGS} beside it what it was"
        raise TrainingError(
            describe(checkpoint, field="student.arch", found=found, expected=expected, cure=cure)
        )
    source = state.get("source_sha256", facts.get("student.source"))
    (trust or Trust()).check(student.arch, source=source, where=checkpoint)


def load_weights(student: nn.Module, state: dict, *, where: object) -> None:
    """Give a student the weights of a checkpoint. Raises TrainingError if they do not fit it."""
    try:
        student.load_state_dict(state["model_state_dict"])
    except (RuntimeError, AttributeError) as error:  # AttributeError: a damaged state dict
        reason = one_line(error)
        cure = "make student.arch what it was, or start a new run"
        raise TrainingError(
            f"{where}: checkpoint is of another student ({reason}); {cure}"
        ) from None


def restore(learner: Learner, state: dict, *, where: object) -> None:
    """Put a learner into the state of a checkpoint. Raises TrainingError if it does not fit."""
    load_weights(learner.student, state, where=where)
    try:
        learner.loss.align.load_state_dict(state["alignment_state_dict"])
        restore_optimizer(learner.optimizer, state["optimizer_state_dict"])
        restore_scheduler(learner.scheduler, state["scheduler_state_dict"])
        torch.set_rng_state(state["random_state"])
        if state["cuda_random_state"] is not None and learner.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random_state"], learner.device)
    except (FieldError, RuntimeError) as error:
        reason = one_line(error)
        raise TrainingError(f"{where}: checkpoint is unreadable ({reason}); {_CURE}") from None
