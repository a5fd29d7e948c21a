"""What is compared: an opened cache, the teacher it was built with, and samples of it."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from kdcache.cache.identity import check_identity
from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.settings import teacher_facts
from kdcache.config import Config, LossConfig
from kdcache.errors import (
    CacheMismatchError,
    Phrase,
    SettingsError,
    TrainingError,
    describe,
    one_line,
)
from kdcache.machine.devices import check_precision, choose_device
from kdcache.models.arch import recall_student
from kdcache.models.teacher import Teacher, build_teacher
from kdcache.models.weights import hash_weights
from kdcache.precompute.repair import stored_config
from kdcache.progress import Progress
from kdcache.training.batches import BatchReader, plan_epoch
from kdcache.training.checkpoint import BEST, read_checkpoint
from kdcache.training.learner import build_learner, find_teacher_channels
from kdcache.training.loop import Learner, train_step
from kdcache.training.run_identity import find_identity
from kdcache.training.settings import check_given
from kdcache.training.targets import Targets, open_targets


@dataclass(frozen=True)
class Setting:
    """An opened cache, its teacher, and settings of students: all levels, default weights of the loss, float32."""

    manifest: Manifest
    config: Config
    reader: CacheReader
    teacher: Teacher
    targets: Targets

    @property
    def names(self) -> list[str]:
        """Logits and the cached levels."""
        return list(self.reader.encodings)

    @property
    def terms(self) -> list[str]:
        """Terms of the loss that the cache has answers for."""
        return ["kd", *(["feature"] if len(self.names) > 1 else [])]


def open_setting(root: Path, manifest: Manifest, given: dict) -> Setting:
    """Open a cache's complete views and build its teacher.

    Args:
        given: settings that differ from those the cache was built with: where the weights are now, the device.

    Raises: CacheMismatchError where the teacher is not the one that was asked, or a setting is not the cache's, SettingsError,
        TeacherError, CacheError.
    """
    others = {
        section: values for section, values in given.items() if section != "teacher"
    }  # compared below
    check_given(root, manifest, others, cure="leave it out: the cache is compared as it is")
    config = stored_config(root, manifest, given)
    device, levels = (
        choose_device(config.teacher.device, field="teacher.device"),
        list(manifest.encodings)[1:],
    )
    check_precision(config.teacher.precision, device, field="teacher.precision")
    config = plan_students(config, levels=levels, device=device)
    teacher, weights = build_teacher(
        config.teacher, num_classes=config.dataset.num_classes, levels=levels, device=device
    )
    asked = manifest.identity["train"]["teacher"]
    facts = {**teacher_facts(config, train=True), "weights_sha256": hash_weights(weights)}
    cure = "give the teacher the cache was built with (teacher.weights says where it is)"
    check_identity(root, found={"teacher": asked}, expected={"teacher": facts}, cure=cure)
    reader = CacheReader(
        root, manifest, "train", num_views=max(manifest.complete_views["train"], 1)
    )
    return Setting(manifest, config, reader, teacher, open_targets(reader, device))


def plan_students(config: Config, *, levels: list[str], device: torch.device) -> Config:
    """Settings of the students that are asked: all levels, default weights of the loss, float32, not compiled, no download."""
    loss = LossConfig(
        gamma=LossConfig().gamma if levels else 0.0, temperature=config.loss.temperature
    )
    train = replace(config.train, device=str(device), precision="float32", compile="off")
    student, cache = replace(config.student, pretrained=False), replace(config.cache, levels=levels)
    return replace(config, train=train, cache=cache, loss=loss, student=student)


def make_batches(setting: Setting, batch_size: int) -> BatchReader:
    """Reads image, label and every answer."""
    names = [
        "image",
        "label",
        *(array for name in setting.names for array in setting.targets.list_arrays(name)),
    ]
    return BatchReader(
        setting.reader, arrays=names, batch_size=batch_size, device=setting.teacher.device
    )


def choose_places(reader: CacheReader, count: int, seed: int) -> list[tuple[int, int]]:
    """Different (view, sample), in order: two or more, since BatchNorm needs two."""
    total = reader.num_views * reader.layout.num_samples
    chosen = random.Random(seed).sample(range(total), min(max(count, 2), total))
    return sorted(divmod(place, reader.layout.num_samples) for place in chosen)


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
        reason = one_line(error)
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
