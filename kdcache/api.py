"""Both phases from Python, as the two programs do them: four functions for a notebook or a script.

Settings are the path of a YAML file, a dict, nested or by dotted name, or a `Config`; `changes` lie
over them. Nothing is printed unless `verbose` asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.analysis.comparison import Comparison, compare_runs
from kdcache.config import Config, config_to_dict
from kdcache.config.names import expand_path
from kdcache.config.parser import check_given, flatten, make_config, merge, unflatten
from kdcache.config.yaml_file import read_settings_file
from kdcache.deploy.predict import find_classes
from kdcache.deploy.student import TrainedStudent
from kdcache.deploy.student import load_student as read_student
from kdcache.errors import refuse
from kdcache.models.own_code import Trust
from kdcache.precompute import build
from kdcache.progress import Console, Progress, Silent, format_table, print_line
from kdcache.storage import open_storage
from kdcache.training import distill as training
from kdcache.training.run import TrainingEvents
from kdcache.training.serving import Cache, open_cache

Settings = str | os.PathLike | Mapping | Config


def build_cache(
    settings: Settings, changes: Mapping | None = None, *, verbose: bool = False
) -> Cache:
    """Build the cache of these settings, or finish one, as `python -m cache_teacher` does.

    Args:
        settings: the path of a YAML file, a dict, nested or by dotted name, or a `Config`.
        changes: more of them, nested or by dotted name, which win over `settings`.
        verbose: show progress on stderr.

    Returns: the opened cache; its `train`, `val` and `unlabelled` give batches.

    Raises: SettingsError, DataError, TeacherError, CacheError.

    >>> build_cache("configs/demo.yaml", {"cache.path": "caches/mine"})  # doctest: +SKIP
    """
    config = make_config(_read(settings, changes))
    build.build_cache(config, progress=_choose_progress(verbose))
    return open_cache(config.cache.path)


@dataclass(frozen=True)
class Distillation:
    """A finished run and its baseline.

    folder: of the run. miou: of its best epoch on val, 0 to 1. baseline_miou: of the same student
    trained with labels only for as many steps; None without a baseline. result, baseline: contents
    of both `result.json`.
    """

    folder: Path
    miou: float
    baseline_miou: float | None
    result: dict
    baseline: dict | None

    @property
    def gain_points(self) -> float | None:
        """How much better than the baseline, in points (hundredths of mIoU); None without one."""
        return None if self.baseline_miou is None else 100 * (self.miou - self.baseline_miou)

    def _repr_html_(self) -> str:
        mious = {
            "teacher": self.result.get("teacher_miou"),
            "student, labels only": self.baseline_miou,
            "student": self.miou,
        }
        rows = [[name, f"{miou:.4f}"] for name, miou in mious.items() if miou is not None]
        gain = self.gain_points
        notes = [] if gain is None else [f"the teacher changed it by {gain:+.2f} points (one seed)"]
        return format_table(f"run {self.folder}", ("", "mIoU on val"), rows, notes=notes)


def distill(
    settings: Settings, changes: Mapping | None = None, *, verbose: bool = False
) -> Distillation:
    """Train a student from the cache of these settings, as `python -m train_student` does.

    A baseline with labels only is trained first, unless `run.baseline` is false.

    Args:
        settings: the path of a YAML file, a dict, nested or by dotted name, or a `Config`; what is
            not given comes from the cache and the defaults.
        changes: more of them, nested or by dotted name, which win over `settings`.
        verbose: show progress and an epoch a line.

    Raises: SettingsError, CacheError, TrainingError.

    >>> distill("configs/demo.yaml", {"train.epochs": 3}).gain_points  # doctest: +SKIP
    """
    given = _read(settings, changes)
    root = open_storage(make_config(given).cache.path)
    events = _Said() if verbose else TrainingEvents()
    with torch.inference_mode(False), torch.enable_grad():  # whatever holds around this call
        done = training.distill(given, root=root, progress=_choose_progress(verbose), events=events)
    baseline = None if done.baseline is None else done.baseline["miou"]
    return Distillation(done.folder, done.student["miou"], baseline, done.student, done.baseline)


def compare(*runs: str | os.PathLike) -> Comparison:
    """Compare finished runs with their baselines over seeds, as `train_student compare` does.

    Args:
        runs: folders of runs, or folders that hold them.

    Returns: a row for each setting; `row.difference(kdcache.analysis.runs.best_miou)` is its gain
        with interval.

    Raises: SettingsError if there is no finished run, or if they have different validation data.
    """
    if not runs:
        raise refuse("runs", [], "one folder or more")
    return compare_runs([_read_path(run) for run in runs])


class Student:
    """A trained student that answers images, on the CPU; see `load_student`."""

    def __init__(self, trained: TrainedStudent) -> None:
        self.trained = trained
        self.module, self.class_names = trained.module, trained.config.dataset.names
        """torch.nn.Module: normalised images [N, 3, H, W] -> logits [N, K, H, W]; K names."""

    def predict(self, image_HW3: np.ndarray) -> np.ndarray:
        """Class numbers uint8 [H, W]. The student sees the image as it saw those of validation, and
        its scores are enlarged.

        Args:
            image_HW3: uint8 RGB of any size.

        Raises: SettingsError for another kind of array; TrainingError if the student fails.
        """
        image = np.asarray(image_HW3)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {list(image.shape)}"
            raise refuse("image", found, "uint8 RGB [H, W, 3]")
        return find_classes(self.trained, image, size=None)


def load_student(
    run: str | os.PathLike, *, arch: str | None = None, trust_code: bool = False
) -> Student:
    """The best student of a run, from its folder.

    Args:
        run: a folder with `config.yaml` and a finished epoch.
        arch: `package.module:function` of a student of yours: what a run names is imported only if
            it is named here, too, and its file has not changed.
        trust_code: import whatever the run names.

    Raises: SettingsError, TrainingError if the run is no run, damaged, or names other code.

    >>> load_student("runs/demo/student").predict(image)  # doctest: +SKIP
    """
    return Student(read_student(_read_path(run), trust=Trust(arch, any_code=trust_code)))


class _Said(TrainingEvents):
    """Prints what the programs print, an epoch a line."""

    def said(self, text: str) -> None:
        print_line(text)

    def epoch_finished(self, config: Config, history: list[dict], *, folder: Path) -> None:
        last = history[-1]
        print_line(f"epoch {last['epoch']}/{config.train.epochs}  mIoU {last['miou']:.4f}")


def _read(settings: Settings, changes: Mapping | None) -> dict:
    """Nested dict of what is given, checked as that of a file. Raises SettingsError."""
    if isinstance(settings, Config):
        given = config_to_dict(settings)
    elif isinstance(settings, Mapping):
        given = _read_table(settings)
    else:
        given = read_settings_file(_read_path(settings))
    return unflatten(check_given(merge(given, _read_table(changes or {}))))


def _read_path(given: str | os.PathLike) -> Path:
    return Path(expand_path("path", os.fspath(given)))


def _read_table(values: Mapping) -> dict:
    return unflatten(flatten(_make_plain(values)))


def _make_plain(value: Any) -> Any:
    """A value as a YAML file has it: no paths, tuples, or numbers of NumPy."""
    if isinstance(value, Mapping):
        return {key: _make_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _choose_progress(verbose: bool) -> Progress:
    return Console() if verbose else Silent()
