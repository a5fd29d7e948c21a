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

MOST_MISSED = 0.02  # of a budget, if an arm has a number of images of its own


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        arm: the first that it stands for. also: others with the same settings there.
        every: k of "the labels of every k-th image", or a list. labels: how many these are.
        pictures: how many images it has without a label; None: all there are.
        teacher: None if nothing is learned from one. cached: the one whose cache it reads.
        budget: steps that the study asks for. steps: those of the run. epochs: of kdcache, that
            have these steps.
        settings: of the arm, by dotted name.
    """

    arm: str
    also: tuple[str, ...]
    every: int | str
    labels: int
    pictures: int | None
    teacher: str | None
    cached: str
    budget: int
    steps: int
    epochs: int
    seed: int
    settings: dict

    @property
    def name(self) -> str:
        """Of its folder."""
        teacher = f"-{self.teacher}" if self.teacher else ""
        return f"{self.arm}-{self.labels}labels{teacher}-{self.budget}steps-seed{self.seed}"

    @property
    def data(self) -> str:
        """Name of what it sees, the same for all runs that see the same."""
        return f"{self.labels}" + ("" if self.pictures is None else f"-{self.pictures}pictures")


@dataclass(frozen=True)
class Selection:
    """Which runs of a grid are wanted; None is all."""

    arms: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    budgets: tuple[int, ...] | None = None

    def has(self, job: Job) -> bool:
        """Whether this run is wanted."""
        return (
            (self.arms is None or bool({job.arm, *job.also} & set(self.arms)))
            and (self.labels is None or job.labels in self.labels)
            and (self.seeds is None or job.seed in self.seeds)
            and (self.budgets is None or job.budget in self.budgets)
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
        for budget in block.budgets:
            for every in block.every:
                for teacher in block.teachers:
                    for arm in block.arms:
                        job = _make_job(study, arm, lists, every, teacher, budget, seed)
                        if job:
                            yield job


def _make_job(
    study: Study, arm: str, lists: Lists, every: int | str, teacher: str, budget: int, seed: int
) -> Job | None:
    pictures = study.pictures.get(arm)
    labelled, unlabelled = lists.divide(every, pictures)
    has_unlabelled = bool(unlabelled)
    settings = study.choose_arm(arm, unlabelled=has_unlabelled)
    if settings is None:
        return None
    first, *also = study.find_same(arm, unlabelled=has_unlabelled)
    an_epoch = _count_steps(study, len(labelled), len(unlabelled))
    epochs = _count_epochs(study, budget, an_epoch)
    return Job(
        arm=first,
        also=tuple(also),
        every=every,
        labels=len(labelled),
        pictures=pictures,
        teacher=teacher if study.uses_teacher(settings) else None,
        cached=teacher,
        budget=budget,
        steps=epochs * an_epoch,
        epochs=epochs,
        seed=seed,
        settings=settings,
    )


def _count_steps(study: Study, num_labelled: int, num_unlabelled: int) -> int:
    """Of an epoch."""
    size = study.settings["train"]["batch_size"]
    if num_unlabelled:
        return count_mixed_steps(num_labelled, num_unlabelled, batch_size=size)
    return len(split_batches([(0, 0)] * num_labelled, size, join_single=True))


def _count_epochs(study: Study, budget: int, an_epoch: int) -> int:
    """Whose steps come nearest to a budget. Raises SettingsError if they miss it by over 2 %."""
    epochs = max(1, round(budget / an_epoch))
    if abs(epochs * an_epoch - budget) > MOST_MISSED * budget:
        expected = Phrase(f"a multiple of {an_epoch}, the steps of an epoch, or 2 % beside it")
        where, cure = f"study {study.name}", "change budgets in the study's file"
        raise SettingsError(
            describe(where, field="budget", found=budget, expected=expected, cure=cure)
        )
    return epochs


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

    def data_root(self, data: str) -> Path:
        """Of a data set, by its name."""
        return self.folder / "data" / data

    def cache_path(self, job: Job) -> Path:
        """Of the cache of a run."""
        return self.folder / "caches" / f"{job.data}-{job.cached}"

    def teacher_file(self, name: str, labels: int) -> Path:
        """The teacher's weights."""
        return Path(self.teachers[name].replace("{labels}", str(labels)))


def find_key(line: dict) -> str:
    """What tells one run's result from another's."""
    names = ("data", "half", "arm", "labels", "teacher", "budget", "seed")
    return json.dumps([line[name] for name in names])
