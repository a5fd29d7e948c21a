"""A planned run and its folder: taken under a lock, begun, written after each epoch, finished.

Whatever is refused is refused before the first byte of the folder is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdcache.cache.manifest import Manifest
from kdcache.config import Config
from kdcache.errors import SettingsError
from kdcache.machine.process import describe_machine
from kdcache.models.student import count_parameters
from kdcache.storage.lock import hold_folder
from kdcache.training.checkpoint import save_epoch
from kdcache.training.learner import Learner
from kdcache.training.run_folder import (
    HeldFolder,
    is_finished,
    read_result,
    remove_unfinished,
    seal_files,
    write_history,
    write_result,
    write_settings,
)
from kdcache.training.run_identity import check_folder, check_place, find_origin


@dataclass(frozen=True)
class PlannedRun:
    """A run to be made.

    Args:
        config: all settings.
        folder: of the run.
        resume: go on with an interrupted run; a finished one gives its result.
        wait: if another process trains in this folder, wait for its result; else that is a
            FolderInUseError.
        baseline: folder of the run it is compared with, if there is one.
    """

    config: Config
    folder: Path
    resume: bool
    wait: bool = False
    baseline: Path | None = None

    def find_baseline_miou(self) -> float | None:
        """mIoU of the baseline, 0 to 1; None if it is not finished.

        Raises: TrainingError if its result is damaged.
        """
        there = self.baseline is not None and is_finished(self.baseline)
        return read_result(self.baseline)["miou"] if there else None


def take_folder(run: PlannedRun, manifest: Manifest, *, held: HeldFolder) -> dict | None:
    """Hold a run's folder for as long as `held` is open, then check it; it is made if need be.

    In a folder that is there nothing changes but its lock.

    Returns: the result if the run is finished. Raises: as `check_folder`; FolderInUseError;
    SettingsError if the folder cannot be written.
    """
    folder = run.folder
    check_place(run.config, folder, resume=run.resume)
    if not (run.resume and is_finished(folder)):  # which may be another user's, to be read alone
        with _explain_unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held.take(folder, wait=run.wait)
    check_folder(run.config, manifest, folder, resume=run.resume)
    return read_result(folder) if run.resume and is_finished(folder) else None


def begin_folder(run: PlannedRun, history: list[dict], held: HeldFolder) -> None:
    """Write the settings, and metrics.jsonl of the epochs so far, into a folder that is held.

    Raises: SettingsError if it cannot be written, LockLostError.
    """
    held.check()
    with _explain_unwritable(run.folder):
        remove_unfinished(run.folder)
        write_settings(run.folder, run.config)
        if history:
            write_history(run.folder, history)


@contextmanager
def _explain_unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"run.dir is unwritable ({error.strerror})"
        raise SettingsError(f"{folder}: {reason}; set another folder") from None


def add_baseline(run: PlannedRun, result: dict) -> bool:
    """Complete the result of a run whose baseline was finished later; returns whether it was."""
    late = result["baseline_miou"] is None and run.find_baseline_miou() is not None
    if late:
        result |= _compare(run, result["miou"])
        with hold_folder(run.folder, wait=True):
            write_result(run.folder, result)
    return late


def save_run(
    run: PlannedRun,
    manifest: Manifest,
    learner: Learner,
    history: list[dict],
    confusion: Tensor,
    held: HeldFolder,
) -> None:
    """Write what an epoch has given; the confusion is int64 [K, K].

    Raises: LockLostError, OSError.
    """
    held.check()
    origin = find_origin(run.config, manifest)
    facts = {"baseline_miou": run.find_baseline_miou(), **origin}
    save_epoch(learner, folder=run.folder, history=history, facts=facts, confusion=confusion)


def finish_run(
    run: PlannedRun,
    manifest: Manifest,
    learner: Learner,
    history: list[dict],
    held: HeldFolder,
) -> dict:
    """Write result.json; device and versions in it are those of the process that ends the run."""
    config, best = run.config, max(history, key=lambda entry: entry["miou"])
    result = {
        "miou": best["miou"],
        **_compare(run, best["miou"]),
        "teacher_miou": manifest.information.get("teacher_miou"),
        "per_class_iou": dict(zip(config.dataset.names, best["per_class_iou"], strict=True)),
        "params": count_parameters(learner.student),
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "last_miou": history[-1]["miou"],
        "seconds": sum(entry["time_s"] for entry in history),
        **describe_machine(learner.device),
        "device_type": learner.device.type,
        "compiled": learner.compiled,
        "processes": sorted({entry.get("processes", 1) for entry in history}),
        **find_origin(config, manifest),
        "sealed": seal_files(history),
    }
    held.check()
    write_result(run.folder, result)
    return result


def _compare(run: PlannedRun, miou: float) -> dict:
    """The run beside its baseline; None if there is none, or it is not finished."""
    baseline_miou = run.find_baseline_miou()
    if baseline_miou is None:
        names = ("baseline_miou", "baseline", "improvement_points", "improvement_percent")
        return dict.fromkeys(names)
    gain = miou - baseline_miou
    return {
        "baseline_miou": baseline_miou,
        "baseline": os.path.relpath(run.baseline, run.folder),
        "improvement_points": 100 * gain,
        "improvement_percent": 100 * gain / baseline_miou if baseline_miou else None,
    }
