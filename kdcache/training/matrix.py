"""The runs of a grid: which there are, and training them, those with the same batches together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from kdcache.cache.manifest import Manifest
from kdcache.config import Config
from kdcache.errors import CacheError, OtherRunError, Phrase, SettingsError, TrainingError, describe
from kdcache.progress import Progress
from kdcache.storage.lock import FolderInUseError
from kdcache.storage.place import Place
from kdcache.training.distill import find_baseline
from kdcache.training.events import TrainingEvents
from kdcache.training.folder import RESULT, SETTINGS, check_folder, hyperparameters
from kdcache.training.grid import Grid
from kdcache.training.learner import check_student
from kdcache.training.plan import Plan, sharing_key
from kdcache.training.results import add_baseline
from kdcache.training.run import Data, open_configured, train_together
from kdcache.training.settings import resolve_config
from kdcache.training.turn import FAILURES

Ask = Callable[
    [Mapping[str, str]], dict
]  # words of settings by dotted name -> all settings that were given


@dataclass(frozen=True)
class Failure:
    """A run that is not finished, and why. `elsewhere`: another process trains it."""

    folder: Path
    error: Exception

    @property
    def elsewhere(self) -> bool:
        return isinstance(self.error, FolderInUseError)


def plan_matrix(grid: Grid, ask: Ask, *, root: Place, manifest: Manifest) -> list[Plan]:
    """Every run of the grid, baselines first; all settings are checked here, before anything is trained.

    Args:
        ask: gives the settings of a point of the grid; its `run.dir` is the folder of all runs.

    Raises: SettingsError, CacheError.
    """
    plans: dict[Path, Plan] = {}
    for seed in grid.seeds:
        for point in grid.points():
            config = resolve_config(root, manifest, ask({**point, "train.seed": str(seed)}))
            for plan in _plan_point(config, name_run(point, seed), manifest):
                _check_new(plan, plans)
                plans[plan.folder] = plan
    _check_different(list(plans.values()))
    for plan in plans.values():
        check_student(plan.config)
        _check_folder(plan, manifest)
    return sorted(plans.values(), key=lambda plan: plan.config.loss.uses_teacher)


def name_run(point: Mapping[str, str], seed: int) -> str:
    """Of its folder: `loss.beta=0.5,loss.gamma=0,seed=1`."""
    named = ",".join(f"{name}={value}" for name, value in {**point, "seed": seed}.items())
    return re.sub(r"[^\w.=,+-]", "_", re.sub(r"[\s\"'\[\]{}]", "", named))[:200]


def run_matrix(
    plans: Sequence[Plan],
    *,
    root: Place,
    manifest: Manifest,
    progress: Progress,
    events: TrainingEvents,
) -> list[Failure]:
    """Train what is not finished; a run that fails does not stop the others, and one that another process trains is left to it.

    Returns: the runs that are not finished. Raises: CacheError, which would end each of them.
    """
    failures, groups = [], _group(plans)
    for number, group in enumerate(groups, 1):
        waiting = [plan for plan in group if not (plan.folder / RESULT).is_file()]
        events.said(
            f"group {number} of {len(groups)}: {len(group)} runs of the same batches, {len(group) - len(waiting)} finished"
        )
        data = open_configured(group[0].config, root, manifest)
        for plan, outcome in zip(
            group, _train(group, data, progress=progress, events=events), strict=True
        ):
            if isinstance(outcome, Exception):
                failures.append(Failure(plan.folder, outcome))
                events.said(f"{plan.folder.name}: {outcome}")
            else:
                events.run_finished(plan, data, is_changed=add_baseline(plan, outcome))
    return failures


def _train(
    group: list[Plan], data: Data, *, progress: Progress, events: TrainingEvents
) -> list[dict | Exception]:
    """What becomes of each; what ends all of them, but for a damaged cache, leaves the other groups."""
    try:
        return train_together(group, data, progress=progress, events=events)
    except CacheError:
        raise
    except FAILURES as error:
        return [error] * len(group)


def _plan_point(config: Config, name: str, manifest: Manifest) -> list[Plan]:
    """The run, behind its baseline; the baseline alone where nothing is learned from the teacher."""
    plain, folder = find_baseline(config, manifest, beside=config.run.dir / name)
    baseline = Plan(plain, folder, resume=True)
    if not config.loss.uses_teacher:
        return [baseline]
    run = Plan(
        config, config.run.dir / name, resume=True, baseline=folder if config.run.baseline else None
    )
    return [baseline, run] if config.run.baseline else [run]


def _check_new(plan: Plan, plans: Mapping[Path, Plan]) -> None:
    if (plan.folder.parent / SETTINGS).is_file():
        found, cure = (
            Phrase("the folder of a run"),
            "set run.dir to a folder for all runs of the grid",
        )
        raise SettingsError(
            describe(
                plan.folder.parent,
                field="run.dir",
                found=found,
                expected=Phrase("a folder of runs"),
                cure=cure,
            )
        )
    other = plans.get(plan.folder)
    if other is not None and other.config != plan.config and plan.config.loss.uses_teacher:
        found = Phrase("the folder of two runs")
        cure = "write the values in shorter or plainer words"
        raise SettingsError(
            describe(
                "--grid",
                field=plan.folder.name,
                found=found,
                expected=Phrase("one run a folder"),
                cure=cure,
            )
        )


def _check_folder(plan: Plan, manifest: Manifest) -> None:
    """Raises SettingsError or OtherRunError where it is in use for something else; damage ends that run alone, later."""
    try:
        check_folder(plan.config, manifest, plan.folder, resume=True)
    except OtherRunError:
        raise
    except TrainingError:
        return


def _check_different(plans: Sequence[Plan]) -> None:
    """Raises SettingsError where one setting is written in two ways, as 0.5 and 0.50 are."""
    names: dict[str, str] = {}
    for plan in plans:
        facts = json.dumps(hyperparameters(plan.config), sort_keys=True)
        if facts in names:
            found, expected = Phrase(f"the same as {names[facts]}"), Phrase("different settings")
            raise SettingsError(
                describe(
                    "--grid",
                    field=plan.folder.name,
                    found=found,
                    expected=expected,
                    cure="give each value once",
                )
            )
        names[facts] = plan.folder.name


def _group(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Those with the same batches, in the order of their first ones."""
    keys = list(dict.fromkeys(sharing_key(plan.config) for plan in plans))
    ordered = sorted(plans, key=lambda plan: keys.index(sharing_key(plan.config)))
    return [list(group) for _, group in groupby(ordered, key=lambda plan: sharing_key(plan.config))]
