"""What fidelity compares: a cache, the teacher it was built with, and students of both."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdcache.cache.encodings import Targets
from kdcache.cache.facts import check_identity
from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.settings import check_teacher_code, stored_config, teacher_facts
from kdcache.config import Config, LossConfig, StudentConfig
from kdcache.config.names import BUILT_IN_STUDENT
from kdcache.errors import (
    CacheMismatchError,
    Phrase,
    SettingsError,
    TrainingError,
    describe,
    one_line,
)
from kdcache.models.networks import hash_network
from kdcache.models.own_code import Trust
from kdcache.models.student import recall_student
from kdcache.models.teacher import Teacher, build_teacher, choose_teacher_device
from kdcache.models.weights import hash_weights
from kdcache.progress import Progress
from kdcache.storage import Storage
from kdcache.training.batches import BatchReader
from kdcache.training.checkpoint import BEST, read_checkpoint
from kdcache.training.learner import build_learner, find_teacher_channels, open_targets
from kdcache.training.loop import Learner, train_step
from kdcache.training.order import plan_epoch
from kdcache.training.run_identity import find_identity
from kdcache.training.settings import check_given

STEPS = 40  # of training before the gradients that count: a fresh student's are not typical
FRESH, TRAINED = "fresh", f"after {STEPS} steps"


@dataclass(frozen=True)
class CacheWithTeacher:
    """An opened cache, its teacher, and settings of students.

    The students use all levels, the default weights of the loss, and float32.
    """

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

    def make_batches(self, batch_size: int) -> BatchReader:
        """A reader of image, label and every answer."""
        answers = [array for name in self.names for array in self.targets.list_arrays(name)]
        names, device = ["image", "label", *answers], self.teacher.device
        return BatchReader(self.reader, arrays=names, batch_size=batch_size, device=device)

    def choose_places(self, count: int, seed: int) -> list[tuple[int, int]]:
        """Up to `count` random, different (view, sample), sorted; two or more for BatchNorm."""
        num_samples = self.reader.layout.num_samples
        total = self.reader.num_views * num_samples
        chosen = random.Random(seed).sample(range(total), min(max(count, 2), total))
        return sorted(divmod(place, num_samples) for place in chosen)


def open_with_teacher(
    root: Storage, manifest: Manifest, given: dict, *, trust: Trust | None = None
) -> CacheWithTeacher:
    """Open a cache's complete views and build its teacher.

    Args:
        trust: whether a teacher of the user's that the cache names may be imported (default: no).
        given: settings that differ from those the cache was built with: where the weights are now,
            the device.

    Raises: CacheMismatchError if the teacher or a setting is not the cache's, SettingsError,
        TeacherError, CacheError.
    """
    config, levels = stored_config(root, manifest, given), list(manifest.encodings)[1:]
    check_teacher_code(root, manifest, config, trust=trust)
    others = {section: values for section, values in given.items() if section != "teacher"}
    check_given(root, manifest, others, cure="leave it out: the cache is compared as it is")
    device = choose_teacher_device(config.teacher)
    config = plan_students(config, levels=levels, device=device)
    teacher, weights = build_teacher(
        config.teacher, num_classes=config.dataset.num_classes, levels=levels, device=device
    )
    asked = manifest.identity["train"]["teacher"]
    hashes = {"weights_sha256": hash_weights(weights), "source": hash_network(config.teacher)}
    facts = teacher_facts(config, train=True, **hashes)
    cure = "give the teacher the cache was built with (teacher.weights says where it is)"
    check_identity(root, found={"teacher": asked}, expected={"teacher": facts}, cure=cure)
    num_views = max(manifest.count_complete("train"), 1)
    reader = CacheReader(root, manifest, "train", num_views=num_views)
    return CacheWithTeacher(manifest, config, reader, teacher, open_targets(reader, device))


def plan_students(config: Config, *, levels: list[str], device: torch.device) -> Config:
    """Settings of the students: all levels, default weights of the loss, float32, no download."""
    gamma = LossConfig().gamma if levels else 0.0
    loss = LossConfig(gamma=gamma, temperature=config.loss.temperature)
    train = replace(config.train, device=str(device), precision="float32", compile="off")
    student = replace(config.student, pretrained=False, backbone_weights=None)
    cache = replace(config.cache, levels=levels)
    return replace(config, train=train, cache=cache, loss=loss, student=student)


def use_built_in(config: Config) -> Config:
    """The settings with kdcache's own student: phase one runs no code of the user's."""
    own = config.student.arch != BUILT_IN_STUDENT
    return replace(config, student=StudentConfig()) if own else config


def make_students(
    opened: CacheWithTeacher, *, run: Path | None, trust: Trust | None = None, progress: Progress
) -> dict[str, Learner]:
    """Students by name: a fresh one, one after some steps, and that of a run, if given.

    Args:
        trust: whether a student of the user's that the run names may be imported (default: no).

    Raises: SettingsError if `run` is no run or its student may not be imported, CacheMismatchError
        if it is from another cache, TrainingError if it is damaged.
    """
    of_run = {} if run is None else {f"of {run}": read_student(opened, run, trust=trust)}
    learner = build_learner(opened.config, teacher_channels=find_teacher_channels(opened.reader))
    learner.targets = opened.targets
    students = {FRESH: copy.deepcopy(learner), TRAINED: learner}
    _train_some(learner, opened, progress)
    return {**students, **of_run}


def read_student(opened: CacheWithTeacher, run: Path, *, trust: Trust | None = None) -> Learner:
    """A run's best student, with its projections. Raises as `make_students` does."""
    if not (run / BEST).is_file():
        cure = "give the folder of a run whose first epoch is done"
        raise SettingsError(
            describe(run, field="--run", found=Phrase("no run"), expected=Phrase(BEST), cure=cure)
        )
    state = read_checkpoint(run / BEST)
    facts = state["hyperparameters"] if isinstance(state["hyperparameters"], dict) else {}
    expected = find_identity(opened.manifest, {"loss.beta": 0.0, "loss.gamma": 0.0, **facts})
    if state["cache_identity"] != expected:
        cure = "give a run that was trained from this cache"
        found = str(state["cache_identity"])[:12]
        raise CacheMismatchError(
            describe(run, field="cache identity", found=found, expected=expected[:12], cure=cure)
        )
    with _explain_damage(run / BEST):
        student = recall_student(facts)
    source = state.get("source_sha256", facts.get("student.source"))
    (trust or Trust()).check(student.arch, source=source, where=run / BEST)
    with _explain_damage(run / BEST):
        return _rebuild_student(opened, student, facts, state)


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"{path}: student is unreadable ({one_line(error)}); give another run"
        ) from None


def _rebuild_student(
    opened: CacheWithTeacher, student: StudentConfig, facts: dict, state: dict
) -> Learner:
    levels = sorted({name.split(".")[0] for name in state["alignment_state_dict"]})
    config = opened.config
    gamma = config.loss.gamma if levels else 0.0
    config = replace(
        config,
        student=student,
        cache=replace(config.cache, levels=levels),
        loss=replace(config.loss, gamma=gamma),
    )
    learner = build_learner(config, teacher_channels=find_teacher_channels(opened.reader))
    learner.student.load_state_dict(state["model_state_dict"])
    learner.loss.align.load_state_dict(state["alignment_state_dict"])
    return learner


def _train_some(learner: Learner, opened: CacheWithTeacher, progress: Progress) -> None:
    """Train for STEPS steps, over as many epochs as that takes."""
    train, batches = opened.config.train, []
    for epoch in range(STEPS):
        batches += plan_epoch(
            num_samples=opened.reader.layout.num_samples,
            num_views=opened.reader.num_views,
            batch_size=train.batch_size,
            seed=train.seed,
            epoch=epoch,
        )
        if len(batches) >= STEPS:
            break
    learner.student.train()
    with progress.start("training a student", total=STEPS, unit="steps") as bar:
        reader = opened.make_batches(train.batch_size)
        for step, batch in enumerate(reader.read(batches[:STEPS])):
            train_step(learner, batch, where=f"step {step}")
            bar.advance(1)
