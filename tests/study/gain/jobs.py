"""The runs of a gain study, the most important first; and where each one lives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import Phrase, SettingsError, describe
from kdcache.training.order import count_mixed_steps, split_batches
from tests.study.gain.plan import Block, Study
from tests.study.gain.points import Lists


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        arm: the first that it stands for. also: others with the same settings there.
        every: k of "the labels of every k-th image", or a list. labels: how many these are.
        teacher: None if nothing is learned from one. cached: the one whose cache it reads.
        steps: of the run. epochs: of kdcache, that have these steps.
        settings: of the arm, by dotted name.
    """

    arm: str
    also: tuple[str, ...]
    every: int | str
    labels: int
    teacher: str | None
    cached: str
    steps: int
    epochs: int
    seed: int
    settings: dict

    @property
    def name(self) -> str:
        """Of its folder."""
        teacher = f"-{self.teacher}" if self.teacher else ""
        return f"{self.arm}-{self.labels}labels{teacher}-{self.steps}steps-seed{self.seed}"


@dataclass(frozen=True)
class Selection:
    """Which runs of a grid are wanted; None is all."""

    arms: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None

    def has(self, job: Job) -> bool:
        """Whether this run is wanted."""
        return (
            (self.arms is None or bool({job.arm, *job.also} & set(self.arms)))
            and (self.labels is None or job.labels in self.labels)
            and (self.seeds is None or job.seed in self.seeds)
            and (self.steps is None or job.steps in self.steps)
        )


def plan_jobs(study: Study, half: str, lists: Lists) -> list[Job]:
    """Every run of the half's grid once, in order of importance.

    Raises: SettingsError if a budget is no whole number of epochs.
    """
    jobs = {}
    for block in study.grids[half]:
        for job in _plan_block(study, block, lists):
            jobs.setdefault(job.name, job)
    return list(jobs.values())


def _plan_block(study: Study, block: Block, lists: Lists) -> Iterator[Job]:
    """Seed by seed, so that a stopped block has all of its arms."""
    for seed in range(block.seeds):
        for steps in block.budgets:
            for every in block.every:
                for teacher in block.teachers:
                    for arm in block.arms:
                        job = _make_job(study, arm, lists, every, teacher, steps, seed)
                        if job:
                            yield job


def _make_job(
    study: Study, arm: str, lists: Lists, every: int | str, teacher: str, steps: int, seed: int
) -> Job | None:
    labelled, unlabelled = lists.divide(every)
    has_unlabelled = bool(unlabelled)
    settings = study.choose_arm(arm, unlabelled=has_unlabelled)
    if settings is None:
        return None
    first, *also = study.find_same(arm, unlabelled=has_unlabelled)
    return Job(
        arm=first,
        also=tuple(also),
        every=every,
        labels=len(labelled),
        teacher=teacher if study.uses_teacher(settings) else None,
        cached=teacher,
        steps=steps,
        epochs=_count_epochs(study, steps, len(labelled), len(unlabelled)),
        seed=seed,
        settings=settings,
    )


def _count_epochs(study: Study, steps: int, num_labelled: int, num_unlabelled: int) -> int:
    """Raises SettingsError if the steps are no whole number of epochs."""
    size = study.settings["train"]["batch_size"]
    if num_unlabelled:
        an_epoch = count_mixed_steps(num_labelled, num_unlabelled, batch_size=size)
    else:
        an_epoch = len(split_batches([(0, 0)] * num_labelled, size, join_single=True))
    if steps % an_epoch:
        expected = Phrase(f"a multiple of {an_epoch}, the steps of an epoch")
        where, cure = f"study {study.name}", "change budgets in the study's file"
        raise SettingsError(
            describe(where, field="budget", found=steps, expected=expected, cure=cure)
        )
    return steps // an_epoch


@dataclass(frozen=True)
class Place:
    """Where a half of a study lives: nothing of the two halves is in one folder.

    Args:
        out: of the study. half: of val. teachers: name -> file, {labels} in it is their number.
    """

    out: Path
    half: str
    teachers: dict[str, str]

    @property
    def folder(self) -> Path:
        """Of this half."""
        return self.out / self.half

    @property
    def results(self) -> Path:
        """A line for each finished run."""
        return self.folder / "results.jsonl"

    def run_folder(self, job: Job) -> Path:
        """Of a run."""
        return self.folder / "runs" / job.name

    def data_root(self, labels: int) -> Path:
        """Of the data set with so many labels."""
        return self.folder / "data" / str(labels)

    def cache_path(self, job: Job) -> Path:
        """Of the cache of a run."""
        return self.folder / "caches" / f"{job.labels}-{job.cached}"

    def teacher_file(self, name: str, labels: int) -> Path:
        """The teacher's weights."""
        return Path(self.teachers[name].replace("{labels}", str(labels)))


def find_key(line: dict) -> str:
    """What tells one run's result from another's."""
    names = ("data", "half", "arm", "labels", "teacher", "budget", "seed")
    return json.dumps([line[name] for name in names])
