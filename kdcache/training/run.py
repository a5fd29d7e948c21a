"""One training run in one folder: from settings to result.json, resumable after every epoch."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcache.cache.manifest import Manifest
from kdcache.cache.place import Place
from kdcache.cache.reader import CacheReader, Check
from kdcache.cache.stage import Stage
from kdcache.config import LEVELS, Config
from kdcache.errors import TrainingError
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.metrics import compute_iou_per_class, compute_miou
from kdcache.models.arch import build_student, find_channels
from kdcache.report.progress import Progress
from kdcache.report.text import Say, format_epoch
from kdcache.training.arithmetic import choose_arithmetic
from kdcache.training.augment import make_augmentation
from kdcache.training.batches import BatchReader, plan_epoch
from kdcache.training.checkpoint import restore
from kdcache.training.compiling import choose_compiling, compile_learner, make_trial_batch
from kdcache.training.folder import find_origin, take_folder
from kdcache.training.loop import Learner, evaluate, train_epoch
from kdcache.training.processes import Alone
from kdcache.training.residency import choose_residency, find_need, format_residency
from kdcache.training.results import finish, read_state, save_epoch
from kdcache.training.targets import open_targets


@dataclass(frozen=True)
class Data:
    """An opened cache: its manifest and both splits."""

    manifest: Manifest
    train: CacheReader
    val: CacheReader


def open_data(
    root: Place, manifest: Manifest, *, num_views: int, check: Check = "first", stage: Stage | None = None
) -> Data:
    """Open both splits; `num_views` training views must be complete. Raises CacheError."""
    train = CacheReader(root, manifest, "train", num_views=num_views, check=check, stage=stage)
    return Data(manifest, train, CacheReader(root, manifest, "val", check=check, stage=stage))


def train_run(
    config: Config,
    data: Data,
    *,
    folder: Path,
    resume: bool,
    wait: bool = False,
    baseline_miou: float | None,
    processes: Alone | None = None,
    progress: Progress,
    say: Say,
) -> dict:
    """Train one student into `folder`, or go on with the run that is there.

    Args:
        config: resolved settings.
        folder: the run's folder.
        resume: continue an interrupted run; a finished one gives its result.
        wait: for another process that trains in this folder, and take its result; else FolderInUseError.
        baseline_miou: kept in checkpoints and result.
        processes: that train it together (default: this one alone); the first alone reads and writes the folder.

    Returns: the contents of result.json. Raises: TrainingError, SettingsError, CacheError.
    """
    processes = processes or Alone()
    with ExitStack() as held:
        result = processes.lead(take_folder, config, data.manifest, folder, resume=resume, wait=wait, held=held)
        if result is not None:
            return result
        learner, history = _prepare(config, data, processes, folder=folder, resume=resume, say=say)
        kept = {"folder": folder, "history": history, "baseline_miou": baseline_miou}
        _train_epochs(config, data, learner, **kept, progress=progress, say=say)
        return processes.lead(finish, config, data.manifest, learner, **kept)


def _train_epochs(
    config: Config,
    data: Data,
    learner: Learner,
    *,
    folder: Path,
    history: list[dict],
    baseline_miou: float | None,
    progress: Progress,
    say: Say,
) -> None:
    """Train the epochs that `history` lacks; after each the checkpoints and metrics.jsonl are as long as it."""
    processes, facts = learner.processes, {"baseline_miou": baseline_miou, **find_origin(config, data.manifest)}
    train, val = processes.agree(_make_readers, config, data, learner, say)
    for epoch in range(len(history) + 1, config.train.epochs + 1):
        entry, confusion = run_epoch(config, learner, train, val, epoch=epoch, progress=progress)
        history.append(entry)
        processes.lead(save_epoch, learner, folder=folder, history=history, facts=facts, confusion=confusion)
        say(format_epoch(entry, config, best_miou=max(e["miou"] for e in history)))


def build_learner(config: Config, *, teacher_channels: dict[str, int]) -> Learner:
    """Student, loss, optimiser and schedule, initialised from train.seed; dropout's sequence starts from it, too."""
    device, autocast = choose_arithmetic(config)
    torch.manual_seed(config.train.seed)
    num_classes, levels = config.dataset.num_classes, config.cache.levels
    student = build_student(config.student, num_classes=num_classes)
    shape = {
        "arch": config.student.arch,
        "num_classes": num_classes,
        "hw": config.train.crop_hw or config.dataset.size_hw,
    }
    own_channels = find_channels(student, levels, **shape)
    channels = {level: (teacher_channels[level], own_channels[level]) for level in levels}
    weights = config.loss
    loss = KnowledgeDistillationLoss(weights.alpha, weights.beta, weights.gamma, weights.temperature, channels)
    torch.manual_seed(config.train.seed)  # again: a run without projections sees the same dropout
    student = student.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([*student.parameters(), *loss.to(device).parameters()], lr=config.train.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.train.epochs)
    return Learner(student, loss, optimizer, scheduler, device, autocast, forward=student)


def _prepare(
    config: Config, data: Data, processes: Alone, *, folder: Path, resume: bool, say: Say
) -> tuple[Learner, list[dict]]:
    """A learner and its history, new or restored, in a folder that is ours."""
    learner = processes.agree(_make_learner, config, data, processes)
    _compile(config, data, learner, say=say)
    processes.adopt(learner.student, learner.device)  # behind the trial, which must not wait for other processes
    state = processes.lead(read_state, folder, resume=resume)
    if state is not None:
        restore(learner, state, where=folder)
    learner.loss.add_up = processes.add_up
    processes.spread([*learner.student.state_dict().values(), *learner.loss.state_dict().values()])
    return learner, state["history"] if state else []


def _make_learner(config: Config, data: Data, processes: Alone) -> Learner:
    learner = build_learner(config, teacher_channels=find_teacher_channels(data.train))
    learner.targets = open_targets(data.train, learner.device)
    learner.augmentation, learner.processes = make_augmentation(config), processes
    return learner


def _compile(config: Config, data: Data, learner: Learner, *, say: Say) -> None:
    compiling, line = choose_compiling(config.train.compile, device=learner.device)
    say(line)
    if compiling:
        plain = learner.forward, learner.loss.compute_band
        specs = [data.train.layout.array(name) for name in list_arrays(config, learner)]
        size = learner.processes.largest_share(config.train.batch_size)
        trial = make_trial_batch(specs, batch_size=size, device=learner.device)
        trial = learner.augmentation.apply(trial, epoch=0) if learner.augmentation else trial
        works = compile_learner(learner, trial)
        if not learner.processes.has_every(works) and works:  # asked first: each process must
            learner.forward, learner.loss.compute_band = plain
            say("compile: off, not possible in every process")


def _make_readers(config: Config, data: Data, learner: Learner, say: Say) -> tuple[BatchReader, BatchReader]:
    """Both splits, staying where there is room for both."""
    pairs = ((data.train, list_arrays(config, learner)), (data.val, ["image", "label"]))
    choice = choose_residency(config.train.residency, [find_need(*pair) for pair in pairs], device=learner.device)
    say(format_residency(choice))
    size, kind = learner.processes.largest_share(config.train.batch_size), choice.kind
    train, val = (
        BatchReader(reader, arrays=names, batch_size=size, device=learner.device, residency=kind)
        for reader, names in pairs
    )
    return train, val


def list_arrays(config: Config, learner: Learner) -> list[str]:
    """What training reads: targets of terms without weight are not touched."""
    answers = [*(["logits"] if config.loss.beta else []), *learner.loss.align]
    label = ["label"] if config.loss.alpha else []
    return ["image", *label, *(array for name in answers for array in learner.targets.list_arrays(name))]


def run_epoch(
    config: Config, learner: Learner, train: BatchReader, val: BatchReader, *, epoch: int, progress: Progress
) -> tuple[dict, Tensor]:
    """Train and evaluate once; `epoch` counts from 1.

    Returns: the epoch's line for metrics.jsonl, and the confusion on val, int64 [K, K]. Raises: TrainingError.
    """
    began_s, waited_s, processes = time.monotonic(), train.wait_s, learner.processes
    layout, lr = train.reader.layout, learner.scheduler.get_last_lr()[0]
    batches = plan_epoch(
        num_samples=layout.num_samples,
        num_views=config.augment.views,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        epoch=epoch - 1,
        views=config.train.views,
    )
    processes.draw_dropout(seed=config.train.seed, epoch=epoch)
    with progress.start(f"epoch {epoch}", total=layout.num_samples, unit="samples") as bar:
        totals = train_epoch(learner, train, batches, epoch=epoch, bar=bar)
    processes.agree(_check_finite, learner, epoch)  # waits for the device
    trained_s = time.monotonic()
    learner.scheduler.step()
    processes.spread(learner.student.buffers())
    confusion = evaluate(
        learner.student,
        val,
        num_classes=config.dataset.num_classes,
        batch_size=processes.largest_share(config.train.batch_size),
        autocast=learner.autocast,
        processes=processes,
    )
    means = totals.means(alpha=config.loss.alpha, beta=config.loss.beta, gamma=config.loss.gamma)
    entry = {"epoch": epoch, "processes": processes.count, "lr": lr, **means, "miou": compute_miou(confusion)}
    entry |= {"per_class_iou": compute_iou_per_class(confusion), "validation_s": time.monotonic() - trained_s}
    entry |= {"step_s": (trained_s - began_s) / len(batches), "data_wait_s": train.wait_s - waited_s}
    return {**entry, "time_s": time.monotonic() - began_s}, confusion


def _check_finite(learner: Learner, epoch: int) -> None:
    """A finite loss can have a non-finite gradient; such weights must not replace a good checkpoint."""
    bad = next((name for name, p in learner.student.named_parameters() if not torch.isfinite(p).all()), None)
    if bad:
        raise TrainingError(
            f"epoch {epoch}: weight {bad} is not finite, expected finite numbers; lower train.lr and resume"
        )


def find_teacher_channels(reader: CacheReader) -> dict[str, int]:
    """level -> channels of the teacher's features, however they are stored."""
    stored = {array.name: array.item_shape[0] for array in reader.layout.arrays if array.name in LEVELS}
    return {level: reader.encodings[level].channels or count for level, count in stored.items()}
