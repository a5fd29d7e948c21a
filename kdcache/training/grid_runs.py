"""The runs of a grid: which there are, and training one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcache.cache.manifest import Manifest
from kdcache.config import Config
from kdcache.errors import CacheError, OtherRunError, Phrase, SettingsError, TrainingError, describe
from kdcache.progress import Progress
from kdcache.storage import Storage
from kdcache.storage.lock import FolderInUseError
from kdcache.training.distill import find_baseline
from kdcache.training.grid import Grid
from kdcache.training.learner import KNOWN_FAILURES, check_student, describe_failure
from kdcache.training.planned_run import PlannedRun, add_baseline
from kdcache.training.run import TrainingEvents, train_run
from kdcache.training.run_folder import SETTINGS, is_finished
from kdcache.training.run_identity import check_folder, check_source, hyperparameters
from kdcache.training.samples import Data, open_configured
from kdcache.training.settings import resolve_config

Ask = Callable[[Mapping[str, str]], dict]
"""Words of settings by dotted name -> all settings that were given."""


@dataclass(frozen=True)
class UnfinishedRun:
    """A run of a grid without a result, and why."""

    folder: Path
    error: Exception

    @property
    def elsewhere(self) -> bool:
        """Whether another process trains it."""
        return isinstance(self.error, FolderInUseError)


def plan_grid(grid: Grid, ask: Ask, *, root: Storage, manifest: Manifest) -> list[PlannedRun]:
    """Every run of the grid, baselines first; all settings are checked before anything is trained.

    Args:
        ask: gives the settings of a point of the grid; its `run.dir` is the folder of all runs.

    Raises: SettingsError, CacheError.
    """
    runs: dict[Path, PlannedRun] = {}
    for seed in grid.seeds:
        for point in grid.points():
            config = resolve_config(root, manifest, ask({**point, "train.seed": str(seed)}))
            name = name_run(point, seed)
            _check_source(config, config.run.dir / name)
            for run in _plan_point(config, name, manifest):
                _check_new(run, runs)
                runs[run.folder] = run
    _check_different(list(runs.values()))
    for run in runs.values():
        check_student(run.config)
        _check_folder(run, manifest)
    return sorted(runs.values(), key=lambda run: run.config.loss.uses_teacher)


def name_run(point: Mapping[str, str], seed: int) -> str:
    """The name of a run's folder: `loss.beta=0.5,loss.gamma=0,seed=1`."""
    named = ",".join(f"{name}={value}" for name, value in {**point, "seed": seed}.items())
    return re.sub(r"[^\w.=,+-]", "_", re.sub(r"[\s\"'\[\]{}]", "", named))[:200]


def train_grid(
    runs: Sequence[PlannedRun],
    *,
    root: Storage,
    manifest: Manifest,
    progress: Progress,
    events: TrainingEvents,
) -> list[UnfinishedRun]:
    """Train what is not finished, one run after the other.

    A run that fails does not stop the others, and one that another process trains is left to it.

    Returns: the runs that are not finished. Raises: CacheError, which would end each of them.
    """
    opened: dict[tuple, Data] = {}
    finished, unfinished = [], []
    for number, run in enumerate(runs, 1):
        key = _find_reading(run.config)
        if key not in opened:
            opened[key] = open_configured(run.config, root, manifest)
        before = ", finished before" if is_finished(run.folder) else ""
        events.said(f"run {number} of {len(runs)}: {run.folder.name}{before}")
        result = _train(run, opened[key], progress=progress, events=events)
        if isinstance(result, Exception):
            unfinished.append(UnfinishedRun(run.folder, result))
            events.said(f"{run.folder.name}: {result}")
        else:
            finished.append((run, opened[key], result))
            events.run_finished(run, opened[key], is_changed=add_baseline(run, result))
    for run, data, result in finished:  # other processes may have finished a baseline since then
        if add_baseline(run, result):
            events.run_finished(run, data, is_changed=True)
    return unfinished


def _find_reading(config: Config) -> tuple[int, bool]:
    """What decides which samples a run reads, of all that a grid can vary: views, unlabelled."""
    return config.augment.views, config.train.unlabelled_share is not None


def _train(
    run: PlannedRun, data: Data, *, progress: Progress, events: TrainingEvents
) -> dict | Exception:
    """The result of a run, or why there is none, without a traceback, which would hold tensors."""
    try:
        return train_run(run, data, progress=progress, events=events)
    except CacheError:
        raise
    except KNOWN_FAILURES as error:
        return error.with_traceback(None)
    except (Exception, SystemExit) as error:  # a student of the user's may raise anything
        return describe_failure(error, run.config.student.arch)


def _plan_point(config: Config, name: str, manifest: Manifest) -> list[PlannedRun]:
    """The run behind its baseline; the baseline alone if nothing is learned from the teacher."""
    plain, folder = find_baseline(config, manifest, beside=config.run.dir / name)
    baseline = PlannedRun(plain, folder, resume=True)
    if not config.loss.uses_teacher:
        return [baseline]
    beside = folder if config.run.baseline else None
    run = PlannedRun(config, config.run.dir / name, resume=True, baseline=beside)
    return [baseline, run] if config.run.baseline else [run]


def _check_new(run: PlannedRun, runs: Mapping[Path, PlannedRun]) -> None:
    parent = run.folder.parent
    if (parent / SETTINGS).is_file():
        found, expected = Phrase("the folder of a run"), Phrase("a folder of runs")
        cure = "set run.dir to a folder for all runs of the grid"
        raise SettingsError(
            describe(parent, field="run.dir", found=found, expected=expected, cure=cure)
        )
    other = runs.get(run.folder)
    if other is not None and other.config != run.config and run.config.loss.uses_teacher:
        cure = "write the values in shorter or plainer words"
        raise _refuse(run, "the folder of two runs", "one run a folder", cure)


def _check_folder(run: PlannedRun, manifest: Manifest) -> None:
    """Raises SettingsError or OtherRunError if it is in use for something else.

    Damage ends that run alone, later.
    """
    try:
        check_folder(run.config, manifest, run.folder, resume=True)
    except OtherRunError:
        raise
    except TrainingError:
        return


def _check_source(config: Config, folder: Path) -> None:
    """Raises OtherRunError if the student's code is not that of the run; damage ends it later."""
    try:
        check_source(config, folder, resume=True)
    except OtherRunError:
        raise
    except TrainingError:
        return


def _check_different(runs: Sequence[PlannedRun]) -> None:
    """Raises SettingsError if one setting is written in two ways, as 0.5 and 0.50 are."""
    names: dict[str, str] = {}
    for run in runs:
        facts = json.dumps(hyperparameters(run.config), sort_keys=True)
        if facts in names:
            found, cure = f"the same as {names[facts]}", "give each value once"
            raise _refuse(run, found, "different settings", cure)
        names[facts] = run.folder.name


def _refuse(run: PlannedRun, found: str, expected: str, cure: str) -> SettingsError:
    found, expected = Phrase(found), Phrase(expected)
    return SettingsError(
        describe("--grid", field=run.folder.name, found=found, expected=expected, cure=cure)
    )
