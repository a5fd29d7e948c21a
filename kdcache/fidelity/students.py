"""The students that are asked for their gradients: a fresh one, one after some steps, and that of a run."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path

from kdcache.errors import CacheMismatchError, Phrase, SettingsError, TrainingError, describe
from kdcache.fidelity.setting import Setting, make_batches
from kdcache.models.arch import recall_student
from kdcache.progress import Progress
from kdcache.training.batches import plan_epoch
from kdcache.training.checkpoint import BEST, read_checkpoint
from kdcache.training.folder import find_identity
from kdcache.training.learner import build_learner, find_teacher_channels
from kdcache.training.loop import Learner, train_step

STEPS = (
    40  # of training before the gradients that count: a fresh student's are not what it will feel
)
FRESH, TRAINED = "fresh", f"after {STEPS} steps"


def make_students(setting: Setting, *, run: Path | None, progress: Progress) -> dict[str, Learner]:
    """By name. Raises SettingsError where `run` is none, CacheMismatchError for one from another cache, TrainingError for a
    damaged one."""
    trained = (
        None if run is None else read_student(setting, run)
    )  # before the steps: they take time
    learner = build_learner(setting.config, teacher_channels=find_teacher_channels(setting.reader))
    learner.targets = setting.targets
    students = {FRESH: copy.deepcopy(learner), TRAINED: learner}
    _train_some(learner, setting, progress)
    return students if trained is None else {**students, f"of {run}": trained}


def read_student(setting: Setting, run: Path) -> Learner:
    """A run's best student, with the projections that it has."""
    if not (run / BEST).is_file():
        cure = "give the folder of a run whose first epoch is done"
        raise SettingsError(
            describe(run, field="--run", found=Phrase("no run"), expected=Phrase(BEST), cure=cure)
        )
    state = read_checkpoint(run / BEST)
    facts = state["hyperparameters"] if isinstance(state["hyperparameters"], dict) else {}
    expected = find_identity(setting.manifest, {"loss.beta": 0.0, "loss.gamma": 0.0, **facts})
    if state["cache_identity"] != expected:
        cure = "give a run that was trained from this cache"
        found = str(state["cache_identity"])[:12]
        raise CacheMismatchError(
            describe(run, field="cache identity", found=found, expected=expected[:12], cure=cure)
        )
    try:
        levels = sorted({name.split(".")[0] for name in state["alignment_state_dict"]})
        config = setting.config
        config = replace(
            config,
            student=recall_student(facts),
            cache=replace(config.cache, levels=levels),
            loss=replace(config.loss, gamma=config.loss.gamma if levels else 0.0),
        )
        learner = build_learner(config, teacher_channels=find_teacher_channels(setting.reader))
        learner.student.load_state_dict(state["model_state_dict"])
        learner.loss.align.load_state_dict(state["alignment_state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise TrainingError(
            f"{run / BEST}: student is unreadable ({reason}); give another run"
        ) from None
    return learner


def _train_some(learner: Learner, setting: Setting, progress: Progress) -> None:
    train, layout = setting.config.train, setting.reader.layout
    plan = (
        batch
        for epoch in range(STEPS)
        for batch in plan_epoch(
            num_samples=layout.num_samples,
            num_views=setting.reader.num_views,
            batch_size=train.batch_size,
            seed=train.seed,
            epoch=epoch,
        )
    )
    learner.student.train()
    with progress.start("training a student", total=STEPS, unit="steps") as bar:
        for step, batch in enumerate(
            make_batches(setting, train.batch_size).read(list(islice(plan, STEPS)))
        ):
            train_step(learner, batch, where=f"step {step}")
            bar.advance(1)
