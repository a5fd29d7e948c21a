"""One training run in its folder, from settings to result.json; resumable after every epoch."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdcache.cache.layout import UNLABELLED
from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader, Check
from kdcache.cache.stage import Stage, open_stage
from kdcache.config import Config
from kdcache.errors import SettingsError
from kdcache.machine.process import describe_machine
from kdcache.models.student import count_parameters
from kdcache.progress import Progress
from kdcache.storage import Storage
from kdcache.storage.lock import hold_folder
from kdcache.training.batches import BatchReader
from kdcache.training.checkpoint import read_state, restore, save_epoch
from kdcache.training.compiling import compile_where_worth
from kdcache.training.learner import Learner, explain_failures, list_arrays, open_learner
from kdcache.training.loop import run_epoch
from kdcache.training.processes import Alone
from kdcache.training.run_folder import is_finished, read_result, write_result, write_settings
from kdcache.training.run_identity import check_folder, find_origin, hyperparameters
from kdcache.training.samples import LABELLED, JoinedReader, choose_residency, find_need
from kdcache.training.tracking import Guarded, choose_tracker, list_numbers


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


@dataclass(frozen=True)
class Data:
    """An opened cache: its manifest and a reader of each split that is used."""

    manifest: Manifest
    train: CacheReader
    val: CacheReader
    unlabelled: CacheReader | None = None
    """Of training samples without a label, if they are used."""

    @property
    def samples(self) -> CacheReader | JoinedReader:
        """A reader of all training samples."""
        return self.train if self.unlabelled is None else JoinedReader(self.train, self.unlabelled)


def open_data(
    root: Storage,
    manifest: Manifest,
    *,
    num_views: int,
    unlabelled: bool = False,
    check: Check = "first",
    stage: Stage | None = None,
) -> Data:
    """Open the splits; `num_views` views of training samples must be complete.

    Args:
        unlabelled: whether samples without a label are used.

    Raises: CacheError.
    """
    read = partial(CacheReader, root, manifest, check=check, stage=stage)
    others = read(UNLABELLED, num_views=num_views) if unlabelled else None
    return Data(manifest, read("train", num_views=num_views), read("val"), others)


def open_configured(config: Config, root: Storage, manifest: Manifest) -> Data:
    """Open the splits as the settings say. Raises CacheError, SettingsError."""
    return open_data(
        root,
        manifest,
        num_views=config.augment.views,
        unlabelled=config.train.unlabelled_share is not None,
        check=config.cache.check,
        stage=open_stage(config.cache),
    )


class TrainingEvents:
    """Does nothing; a subclass overrides the events it wants.

    Only the process that leads calls it. What a method raises ends the run, as an interruption
    would: every epoch before it is saved.
    """

    def said(self, text: str) -> None:
        """A line of text: the device, whether the student is compiled, which folder is next."""

    def epoch_finished(self, config: Config, history: list[dict], *, folder: Path) -> None:
        """An epoch is trained, validated and saved.

        Args:
            config: settings of the run. folder: of the run.
            history: an entry per epoch so far, as in metrics.jsonl; the finished one is the last.
        """

    def run_finished(self, run: PlannedRun, data: Data, *, is_changed: bool) -> None:
        """A run of a grid is finished, now or by an earlier command.

        Args:
            data: the opened cache. is_changed: its result.json was completed with a baseline that
                was trained after it.
        """


def train_run(
    run: PlannedRun,
    data: Data,
    *,
    processes: Alone | None = None,
    progress: Progress,
    events: TrainingEvents | None = None,
) -> dict:
    """Train one student into its folder, or go on with the run that is there.

    Args:
        processes: those that train it together (default: this one alone); the first one reads and
            writes the folder.

    Returns: the contents of result.json. Raises: TrainingError, SettingsError, CacheError,
    FolderInUseError.
    """
    processes, events, config = processes or Alone(), events or TrainingEvents(), run.config
    with ExitStack() as held:
        result = processes.lead(take_folder, run, data.manifest, held=held)
        if result is not None:
            return result
        learner, history = prepare(run, data, processes, events=events)
        tracker = _open_tracker(run, len(history), held=held) if processes.leads else None
        train, val = processes.agree(open_readers, config, data, learner, events)
        for epoch in range(len(history) + 1, config.train.epochs + 1):
            entry, confusion = run_epoch(
                config, learner, train, val, epoch=epoch, progress=progress
            )
            history.append(entry)
            with explain_failures(learner.arch):
                processes.lead(_save, run, data.manifest, learner, history, confusion)
            if tracker is not None:
                tracker.log(epoch, list_numbers(entry, config.dataset.names))
            events.epoch_finished(config, history, folder=run.folder)
        return processes.lead(_finish, run, data.manifest, learner, history)


def take_folder(run: PlannedRun, manifest: Manifest, *, held: ExitStack) -> dict | None:
    """Check a run's folder, make it if need be, and hold it for as long as `held` is open.

    Returns: the result if the run is finished. Raises: as `check_folder`; FolderInUseError;
    SettingsError if the folder cannot be written.
    """
    folder = run.folder
    check_folder(run.config, manifest, folder, resume=run.resume)
    if run.resume and is_finished(folder):
        return read_result(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(hold_folder(folder, wait=run.wait))
        if run.resume and is_finished(folder):  # by the process that was waited for
            return read_result(folder)
        write_settings(folder, run.config)
    except OSError as error:
        reason = f"run.dir is unwritable ({error.strerror})"
        raise SettingsError(f"{folder}: {reason}; set another folder") from None
    return None


def prepare(
    run: PlannedRun, data: Data, processes: Alone, *, events: TrainingEvents
) -> tuple[Learner, list[dict]]:
    """A learner and the entries of its epochs so far: new, or as the last checkpoint has them."""
    learner = processes.agree(open_learner, run.config, data.train, processes)
    compile_where_worth(run.config, data.train, learner, say=events.said)
    processes.adopt(
        learner.student, learner.device
    )  # after the trial, which must not wait for others
    state = processes.lead(read_state, run.folder, resume=run.resume)
    if state is not None:
        restore(learner, state, where=run.folder)
    learner.loss.add_up = processes.add_up
    processes.spread([*learner.student.state_dict().values(), *learner.loss.state_dict().values()])
    return learner, state["history"] if state else []


def open_readers(
    config: Config, data: Data, learner: Learner, events: TrainingEvents
) -> tuple[BatchReader, BatchReader]:
    """Readers of training and validation samples, of the arrays that the learner reads.

    Samples stay in the memory chosen here.
    """
    needed, device, samples = {*list_arrays(learner), LABELLED}, learner.device, data.samples
    names = [spec.name for spec in samples.layout.arrays if spec.name in needed]
    pairs = ((samples, names), (data.val, ["image", "label"]))
    needs = [find_need(*pair) for pair in pairs]
    choice = choose_residency(config.train.residency, needs, device=device)
    events.said(choice.describe())
    size = learner.processes.largest_share(config.train.batch_size)
    train, val = (
        BatchReader(reader, arrays=names, batch_size=size, device=device, residency=choice.kind)
        for reader, names in pairs
    )
    return train, val


def add_baseline(run: PlannedRun, result: dict) -> bool:
    """Complete the result of a run whose baseline was finished later; returns whether it was."""
    late = result["baseline_miou"] is None and run.find_baseline_miou() is not None
    if late:
        result |= _compare(run, result["miou"])
        write_result(run.folder, result)
    return late


def _open_tracker(run: PlannedRun, num_done: int, *, held: ExitStack) -> Guarded | None:
    facts, kind = hyperparameters(run.config), run.config.run.track
    tracker = choose_tracker(kind, run.folder, first=num_done + 1, facts=facts)
    if tracker is not None:
        held.callback(tracker.close)
    return tracker


def _save(
    run: PlannedRun, manifest: Manifest, learner: Learner, history: list[dict], confusion: object
) -> None:
    origin = find_origin(run.config, manifest)
    facts = {"baseline_miou": run.find_baseline_miou(), **origin}
    save_epoch(learner, folder=run.folder, history=history, facts=facts, confusion=confusion)


def _finish(run: PlannedRun, manifest: Manifest, learner: Learner, history: list[dict]) -> dict:
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
        "processes": sorted({entry.get("processes", 1) for entry in history}),
        **find_origin(config, manifest),
    }
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
