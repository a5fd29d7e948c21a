"""One training run in its folder, from settings to result.json: resumable after every epoch, and
compiled where that is worth it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from kdcache.cache.layout import ArraySpec
from kdcache.cache.reader import CacheReader
from kdcache.config import Config
from kdcache.errors import is_out_of_memory
from kdcache.machine.devices import choose_compiling
from kdcache.progress import Progress, Say
from kdcache.training.batches import Batch, BatchReader
from kdcache.training.checkpoint import read_state, restore
from kdcache.training.learner import (
    Learner,
    describe_arithmetic,
    explain_failures,
    list_arrays,
    open_learner,
)
from kdcache.training.loop import compute_step, find_batch_sizes, run_epoch
from kdcache.training.planned_run import (
    PlannedRun,
    begin_folder,
    finish_run,
    save_run,
    take_folder,
)
from kdcache.training.processes import Alone
from kdcache.training.run_folder import HeldFolder
from kdcache.training.run_identity import hyperparameters
from kdcache.training.samples import (
    LABELLED,
    Data,
    JoinedReader,
    choose_residency,
    find_need,
    is_crowded,
)
from kdcache.training.tracking import Guarded, choose_tracker, list_numbers

log = logging.getLogger("kdcache")
RECOMPILE_LIMIT = 256  # a grid has students of many shapes; after 8, torch would stop compiling


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
    with HeldFolder() as held:
        result = processes.lead(take_folder, run, data.manifest, held=held)
        if result is not None:
            return result
        learner, history = prepare(run, data, processes, events=events)
        train, val = processes.agree(open_readers, config, data, learner, events)
        processes.lead(begin_folder, run, history, held)  # what is refused has changed nothing
        tracker = _open_tracker(run, len(history), held=held) if processes.leads else None
        for epoch in range(len(history) + 1, config.train.epochs + 1):
            entry, confusion = run_epoch(
                config, learner, train, val, epoch=epoch, progress=progress
            )
            history.append(entry)
            with explain_failures(learner.arch):
                processes.lead(save_run, run, data.manifest, learner, history, confusion, held)
            if tracker is not None:
                tracker.log(epoch, list_numbers(entry, config.dataset.names))
            events.epoch_finished(config, history, folder=run.folder)
        return processes.lead(finish_run, run, data.manifest, learner, history, held)


def prepare(
    run: PlannedRun, data: Data, processes: Alone, *, events: TrainingEvents
) -> tuple[Learner, list[dict]]:
    """A learner and the entries of its epochs so far: new, or as the last checkpoint has them."""
    learner = processes.agree(open_learner, run.config, data.train, processes)
    sizes = find_batch_sizes(run.config, data.samples, processes)
    compile_where_worth(run.config, data.train, learner, batch_sizes=sizes, say=events.said)
    events.said(describe_arithmetic(learner))
    processes.adopt(
        learner.student, learner.device
    )  # after the trial, which must not wait for others
    state = processes.lead(read_state, run.folder, resume=run.resume)
    if state is not None:
        restore(learner, state, where=run.folder)
    elif learner.start:
        events.said(learner.start)
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
    size = learner.processes.largest_share(config.train.batch_size)
    make = partial(_make_readers, pairs, batch_size=size, device=device)
    ours = choice.kind == "gpu" and config.train.residency == "auto"
    try:
        readers = make(residency=choice.kind)
    except Exception as error:
        if not (ours and is_out_of_memory(error)):
            raise
        readers = None
    if readers is None or (ours and is_crowded(needs, device)):
        readers = None  # first, since its memory is needed
        torch.cuda.empty_cache()
        choice = choose_residency("auto", needs, device=torch.device("cpu"))
        choice = replace(choice, reason=f"others have taken the GPU's memory; {choice.reason}")
        readers = make(residency=choice.kind)
    events.said(choice.describe())
    return readers


def _make_readers(
    pairs: Sequence[tuple[CacheReader | JoinedReader, list[str]]], **options: object
) -> tuple[BatchReader, BatchReader]:
    train, val = (BatchReader(reader, arrays=names, **options) for reader, names in pairs)
    return train, val


def _open_tracker(run: PlannedRun, num_done: int, *, held: HeldFolder) -> Guarded | None:
    facts, kind = hyperparameters(run.config), run.config.run.track
    tracker = choose_tracker(kind, run.folder, first=num_done + 1, facts=facts)
    if tracker is not None:
        held.callback(tracker.close)
    return tracker


def compile_where_worth(
    config: Config,
    train: CacheReader,
    learner: Learner,
    *,
    batch_sizes: Sequence[int],
    say: Say,
) -> None:
    """Compile a learner as `train.compile` says, in all its processes or in none.

    Every size of a batch is tried here, so that nothing is compiled while training is timed.

    Args:
        batch_sizes: of this process, in a whole epoch.
    """
    processes = learner.processes
    compiling, line = choose_compiling(config.train.compiling, device=learner.device)
    if compiling and processes.count > 1 and learner.device.type == "cuda":
        compiling, line = False, "compile: off, BatchNorm has the statistics of several GPUs"
    say(line)
    if not compiling:
        return
    plain = learner.forward, learner.loss.compute_band
    specs = [train.layout.array(name) for name in list_arrays(learner)]
    trials = [make_trial_batch(specs, batch_size=n, device=learner.device) for n in batch_sizes]
    if learner.augmentation:
        trials = [learner.augmentation.apply(trial, epoch=0) for trial in trials]
    learner.compiled = compile_learner(learner, trials)
    if not processes.has_every(learner.compiled) and learner.compiled:  # asked first: all must ask
        learner.forward, learner.loss.compute_band = plain
        learner.compiled = False
        say("compile: off, not possible in every process")


def compile_learner(learner: Learner, batches: Sequence[Batch]) -> bool:
    """Compile the student's forward pass and the loss of a band of rows.

    Tried on each batch, backward pass included: if that fails, one line says so and the plain
    functions stay. The trial leaves no trace in weights, running statistics, gradients or random
    state. Validation and checkpoints keep the plain student.

    Returns: whether it worked.
    """
    plain, works = (learner.forward, learner.loss.compute_band), True
    buffers = {name: value.clone() for name, value in learner.student.named_buffers()}
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    devices = [learner.device] if learner.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers: who turns them into errors has none
            compiled = [torch.compile(function) for function in plain]
            learner.forward, learner.loss.compute_band = compiled
            learner.student.train()
            for batch in batches:
                compute_step(learner, batch).total.backward()
    except Exception as error:  # whatever a compiler raises: a hundred kinds
        inner = getattr(error, "inner_exception", error)
        reason = (str(inner).strip() or type(inner).__name__).splitlines()[0][:120]
        log.warning("compile: not possible here (%s); going on without", reason)
        learner.forward, learner.loss.compute_band = plain
        works = False
    learner.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in learner.student.named_buffers():
            value.copy_(buffers[name])
    return works


def make_trial_batch(specs: list[ArraySpec], *, batch_size: int, device: torch.device) -> Batch:
    """A batch of zeros, of the shapes and dtypes that training has."""
    arrays = {
        spec.name: torch.zeros(
            (batch_size, *spec.item_shape), dtype=getattr(torch, spec.dtype), device=device
        )
        for spec in specs
    }
    return Batch(arrays, ["trial"] * batch_size)
