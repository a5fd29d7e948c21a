"""Training runs, each in a folder of its own: from settings to result.json, resumable after every epoch.

Runs whose batches are the same may be trained together, so that each batch is read once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader, Check
from kdcache.cache.stage import Stage, open_stage
from kdcache.config import Config
from kdcache.progress import Progress, Say
from kdcache.storage.lock import FolderInUseError
from kdcache.storage.place import Place
from kdcache.training.batches import BatchReader
from kdcache.training.checkpoint import restore
from kdcache.training.epoch import run_epoch
from kdcache.training.events import TrainingEvents
from kdcache.training.folder import RESULT, find_origin, hyperparameters, read_result, take_folder
from kdcache.training.learner import compile_where_worth, list_arrays, open_learner
from kdcache.training.loop import Learner
from kdcache.training.plan import Plan
from kdcache.training.processes import Alone
from kdcache.training.residency import choose_residency, find_need, format_residency
from kdcache.training.results import finish, read_state, save_epoch
from kdcache.training.tracking import Guarded, choose_tracker, list_numbers
from kdcache.training.turn import SharedTurn, as_failure


@dataclass(frozen=True)
class Data:
    """An opened cache: its manifest and both splits."""

    manifest: Manifest
    train: CacheReader
    val: CacheReader


@dataclass
class Run:
    """A run under way: what learns, and the lines of its epochs so far."""

    plan: Plan
    learner: Learner
    history: list[dict]
    tracker: Guarded | None

    def lacks(self, epoch: int) -> bool:
        """Whether it takes part in this epoch, which counts from 1."""
        return (
            self.learner.turn.error is None
            and len(self.history) < epoch <= self.plan.config.train.epochs
        )


def open_data(
    root: Place,
    manifest: Manifest,
    *,
    num_views: int,
    check: Check = "first",
    stage: Stage | None = None,
) -> Data:
    """Open both splits; `num_views` training views must be complete. Raises CacheError."""
    train = CacheReader(root, manifest, "train", num_views=num_views, check=check, stage=stage)
    return Data(manifest, train, CacheReader(root, manifest, "val", check=check, stage=stage))


def open_configured(config: Config, root: Place, manifest: Manifest) -> Data:
    """Both splits as settings say. Raises CacheError, SettingsError."""
    stage = open_stage(config.cache)
    return open_data(
        root, manifest, num_views=config.augment.views, check=config.cache.check, stage=stage
    )


def train_run(
    plan: Plan,
    data: Data,
    *,
    processes: Alone | None = None,
    progress: Progress,
    events: TrainingEvents | None = None,
) -> dict:
    """Train one student into its folder, or go on with the run that is there.

    Args:
        processes: that train it together (default: this one alone); the first alone reads and writes the folder.

    Returns: the contents of result.json. Raises: TrainingError, SettingsError, CacheError.
    """
    processes, events = processes or Alone(), events or TrainingEvents()
    with ExitStack() as held:
        run = _start(plan, data, processes, held=held, say=events.said)
        if isinstance(run, dict):
            return run
        _train_epochs([run], data, progress=progress, events=events)
        return _finish(run, data.manifest)


def train_together(
    plans: Sequence[Plan],
    data: Data,
    *,
    progress: Progress,
    events: TrainingEvents | None = None,
) -> list[dict | Exception]:
    """Train several students from the same batches, each read once; each learns what it would have learned alone.

    Args:
        plans: with equal `sharing_key`; a baseline stands before those that are compared with it.

    Returns: of each the contents of result.json, or what ended it. Raises: CacheError, which ends all.
    """
    events = events or TrainingEvents()
    with ExitStack() as held:
        say_once = _say_once(events.said)
        started: list[Run | dict | Exception] = []
        for plan in plans:
            elsewhere = bool(started) and isinstance(
                started[0], FolderInUseError
            )  # whoever has it takes the others
            started.append(
                _look(plan, started[0])
                if elsewhere
                else _start_shared(plan, data, held=held, say=say_once)
            )
        runs = [run for run in started if isinstance(run, Run)]
        if runs:
            _train_epochs(runs, data, progress=progress, events=events)
        return [
            _finish_shared(run, data.manifest) if isinstance(run, Run) else run for run in started
        ]


def _start(plan: Plan, data: Data, processes: Alone, *, held: ExitStack, say: Say) -> Run | dict:
    """The run, in a folder that is ours while `held` is open; or its result where it is finished."""
    result = processes.lead(take_folder, plan, data.manifest, held=held)
    if result is not None:
        return result
    learner, history = _prepare(plan, data, processes, say=say)
    tracker = _open_tracker(plan, first=len(history) + 1) if processes.leads else None
    if tracker is not None:
        held.callback(tracker.close)
    return Run(plan, learner, history, tracker)


def _open_tracker(plan: Plan, *, first: int) -> Guarded | None:
    return choose_tracker(
        plan.config.run.track, plan.folder, first=first, facts=hyperparameters(plan.config)
    )


def _start_shared(plan: Plan, data: Data, *, held: ExitStack, say: Say) -> Run | dict | Exception:
    try:
        run = _start(plan, data, Alone(), held=held, say=say)
    except (Exception, SystemExit) as error:  # a student of the user's may raise anything
        return as_failure(error, plan.config.student.arch)
    if isinstance(run, Run):
        run.learner.turn = SharedTurn(run.learner.device, plan.config.student.arch)
    return run


def _look(plan: Plan, error: Exception) -> dict | Exception:
    """The result of a run that is left to another process, where there is one already."""
    return read_result(plan.folder) if (plan.folder / RESULT).is_file() else error


def _say_once(say: Say) -> Say:
    """What all learners have in common, such as whether they are compiled, is said for the first."""
    said: set[str] = set()
    return lambda text: None if text in said or said.add(text) else say(text)


def _prepare(plan: Plan, data: Data, processes: Alone, *, say: Say) -> tuple[Learner, list[dict]]:
    """A learner and its history, new or restored."""
    learner = processes.agree(open_learner, plan.config, data.train, processes)
    compile_where_worth(plan.config, data.train, learner, say=say)
    processes.adopt(
        learner.student, learner.device
    )  # behind the trial, which must not wait for other processes
    state = processes.lead(read_state, plan.folder, resume=plan.resume)
    if state is not None:
        restore(learner, state, where=plan.folder)
    learner.loss.add_up = processes.add_up
    processes.spread([*learner.student.state_dict().values(), *learner.loss.state_dict().values()])
    return learner, state["history"] if state else []


def _train_epochs(
    runs: Sequence[Run], data: Data, *, progress: Progress, events: TrainingEvents
) -> None:
    """Train the epochs that a history lacks; after each the checkpoints and metrics.jsonl are as long as it."""
    first = runs[0]
    learners = [run.learner for run in runs]
    train, val = first.learner.processes.agree(
        _make_readers, first.plan.config, data, learners, events.said
    )
    for epoch in range(1, max(run.plan.config.train.epochs for run in runs) + 1):
        current = [run for run in runs if run.lacks(epoch)]
        if current:
            learners = [run.learner for run in current]
            lines = run_epoch(
                current[0].plan.config, learners, train, val, epoch=epoch, progress=progress
            )
            for run, line in zip(current, lines, strict=True):
                if line is not None:
                    run.learner.turn.take(_keep_epoch, run, data.manifest, *line)
                if run.learner.turn.error is None:
                    plan = run.plan
                    events.epoch_finished(plan.config, run.history, folder=plan.folder)


def _keep_epoch(run: Run, manifest: Manifest, entry: dict, confusion: object) -> None:
    run.history.append(entry)
    run.learner.processes.lead(_save, run, manifest, confusion)
    if run.tracker is not None:
        run.tracker.log(entry["epoch"], list_numbers(entry, run.plan.config.dataset.names))


def _save(run: Run, manifest: Manifest, confusion: object) -> None:
    facts = {
        "baseline_miou": run.plan.find_baseline_miou(),
        **find_origin(run.plan.config, manifest),
    }
    save_epoch(
        run.learner, folder=run.plan.folder, history=run.history, facts=facts, confusion=confusion
    )


def _finish(run: Run, manifest: Manifest) -> dict:
    return run.learner.processes.lead(finish, run.plan, manifest, run.learner, run.history)


def _finish_shared(run: Run, manifest: Manifest) -> dict | Exception:
    return run.learner.turn.take(_finish, run, manifest) or run.learner.turn.error


def _make_readers(
    config: Config, data: Data, learners: Sequence[Learner], say: Say
) -> tuple[BatchReader, BatchReader]:
    """Both splits, with what any of the learners reads, staying where there is room for both."""
    device, needed = (
        learners[0].device,
        {name for learner in learners for name in list_arrays(learner)},
    )
    names = [spec.name for spec in data.train.layout.arrays if spec.name in needed]
    pairs = ((data.train, names), (data.val, ["image", "label"]))
    choice = choose_residency(
        config.train.residency, [find_need(*pair) for pair in pairs], device=device
    )
    say(format_residency(choice))
    size, kind = learners[0].processes.largest_share(config.train.batch_size), choice.kind
    train, val = (
        BatchReader(reader, arrays=names, batch_size=size, device=device, residency=kind)
        for reader, names in pairs
    )
    return train, val
