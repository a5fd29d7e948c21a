"""One training run in one folder: from settings to result.json, resumable after every epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcache.cache.manifest import Manifest
from kdcache.cache.place import Place
from kdcache.cache.reader import CacheReader, Check
from kdcache.cache.stage import Stage
from kdcache.config import Config
from kdcache.errors import TrainingError
from kdcache.lock import hold_folder
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.metrics import compute_iou_per_class, compute_miou
from kdcache.models.student import STUDENT_CHANNELS, LightweightSegmentationModel, count_parameters
from kdcache.report.progress import Progress
from kdcache.report.text import Say, format_epoch
from kdcache.training.arithmetic import choose_arithmetic
from kdcache.training.augment import make_augmentation
from kdcache.training.batches import BatchReader, plan_epoch
from kdcache.training.checkpoint import BEST, LAST, read_checkpoint, restore, save_checkpoint
from kdcache.training.compiling import choose_compiling, compile_learner, make_trial_batch
from kdcache.training.folder import (
    RESULT,
    check_folder,
    find_origin,
    make_folder,
    read_result,
    write_history,
    write_result,
)
from kdcache.training.loop import Learner, evaluate, train_epoch
from kdcache.training.residency import choose_residency, find_need, format_residency
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

    Returns: the contents of result.json. Raises: TrainingError, SettingsError, CacheError.
    """
    check_folder(config, data.manifest, folder, resume=resume)
    if resume and (folder / RESULT).is_file():
        return read_result(folder)
    make_folder(config, folder)
    with hold_folder(folder, wait=wait):
        if resume and (folder / RESULT).is_file():
            return read_result(folder)
        learner, history = _prepare(config, data, folder=folder, resume=resume, say=say)
        _train_epochs(
            config, data, learner, history, folder=folder, baseline_miou=baseline_miou, progress=progress, say=say
        )
        result = _result(config, data, history=history, learner=learner, baseline_miou=baseline_miou)
        write_result(folder, result)
    return result


def _train_epochs(
    config: Config,
    data: Data,
    learner: Learner,
    history: list[dict],
    *,
    folder: Path,
    baseline_miou: float | None,
    progress: Progress,
    say: Say,
) -> None:
    """Train the epochs that `history` lacks; after each the checkpoints and metrics.jsonl are as long as it."""
    train, val = _make_readers(config, data, learner, say)
    for epoch in range(len(history) + 1, config.train.epochs + 1):
        entry, confusion = run_epoch(config, learner, train, val, epoch=epoch, progress=progress)
        history.append(entry)
        best = max(history, key=lambda e: e["miou"])
        facts = _facts(config, data, history=history, baseline_miou=baseline_miou)
        if best is entry:
            save_checkpoint(folder / BEST, learner, facts={**facts, "confusion": confusion})
        save_checkpoint(folder / LAST, learner, facts=facts)
        write_history(folder, history)
        say(format_epoch(entry, config, best_miou=best["miou"]))


def build_learner(config: Config, *, teacher_channels: dict[str, int]) -> Learner:
    """Student, loss, optimiser and schedule, initialised from train.seed; dropout's sequence starts from it, too."""
    device, autocast = choose_arithmetic(config)
    torch.manual_seed(config.train.seed)
    student = LightweightSegmentationModel(
        config.dataset.num_classes, pretrained=config.student.pretrained, aspp_channels=config.student.aspp_channels
    )
    channels = {level: (teacher_channels[level], STUDENT_CHANNELS[level]) for level in config.cache.levels}
    weights = config.loss
    loss = KnowledgeDistillationLoss(weights.alpha, weights.beta, weights.gamma, weights.temperature, channels)
    torch.manual_seed(config.train.seed)  # again: a run without projections sees the same dropout
    student = student.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([*student.parameters(), *loss.to(device).parameters()], lr=config.train.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.train.epochs)
    return Learner(student, loss, optimizer, scheduler, device, autocast, forward=student)


def _prepare(config: Config, data: Data, *, folder: Path, resume: bool, say: Say) -> tuple[Learner, list[dict]]:
    """A learner and its history, new or restored, in a folder that is ours."""
    learner = build_learner(config, teacher_channels=find_teacher_channels(data.train))
    learner.targets = open_targets(data.train, learner.device)
    learner.augmentation = make_augmentation(config)
    compiling, line = choose_compiling(config.train.compile, device=learner.device)
    say(line)
    if compiling:
        specs = [data.train.layout.array(name) for name in list_arrays(config, learner)]
        trial = make_trial_batch(specs, batch_size=config.train.batch_size, device=learner.device)
        compile_learner(learner, learner.augmentation.apply(trial, epoch=0) if learner.augmentation else trial)
    if not (resume and (folder / LAST).is_file()):
        return learner, []
    state = read_checkpoint(folder / LAST)
    restore(learner, state)
    write_history(folder, state["history"])
    return learner, state["history"]


def _make_readers(config: Config, data: Data, learner: Learner, say: Say) -> tuple[BatchReader, BatchReader]:
    """Both splits, staying where there is room for both."""
    pairs = ((data.train, list_arrays(config, learner)), (data.val, ["image", "label"]))
    choice = choose_residency(config.train.residency, [find_need(*pair) for pair in pairs], device=learner.device)
    say(format_residency(choice))
    size, kind = config.train.batch_size, choice.kind
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
    began_s, waited_s, size = time.monotonic(), train.wait_s, config.train.batch_size
    layout, lr = train.reader.layout, learner.scheduler.get_last_lr()[0]
    batches = plan_epoch(
        num_samples=layout.num_samples,
        num_views=config.augment.views,
        batch_size=size,
        seed=config.train.seed,
        epoch=epoch - 1,
        views=config.train.views,
    )
    with progress.start(f"epoch {epoch}", total=layout.num_samples, unit="samples") as bar:
        totals = train_epoch(learner, train, batches, epoch=epoch, bar=bar)
    _check_finite(learner, epoch)  # waits for the device
    trained_s = time.monotonic()
    learner.scheduler.step()
    confusion = evaluate(
        learner.student, val, num_classes=config.dataset.num_classes, batch_size=size, autocast=learner.autocast
    )
    means = totals.means(alpha=config.loss.alpha, beta=config.loss.beta, gamma=config.loss.gamma)
    entry = {"epoch": epoch, "lr": lr, **means, "miou": compute_miou(confusion)}
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


def _facts(config: Config, data: Data, *, history: list[dict], baseline_miou: float | None) -> dict:
    return {
        "epoch": len(history),
        "miou": history[-1]["miou"],
        "baseline_miou": baseline_miou,
        **find_origin(config, data.manifest),
        "history": history,
    }


def _result(config: Config, data: Data, *, history: list[dict], learner: Learner, baseline_miou: float | None) -> dict:
    best = max(history, key=lambda e: e["miou"])
    gain = None if baseline_miou is None else best["miou"] - baseline_miou
    return {
        "miou": best["miou"],
        "baseline_miou": baseline_miou,
        "teacher_miou": data.manifest.information.get("teacher_miou"),
        "improvement_points": None if gain is None else 100 * gain,
        "improvement_percent": 100 * gain / baseline_miou if gain is not None and baseline_miou else None,
        "per_class_iou": dict(zip(config.dataset.names, best["per_class_iou"], strict=True)),
        "params": count_parameters(learner.student),
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "last_miou": history[-1]["miou"],
        "seconds": sum(e["time_s"] for e in history),
        **find_origin(config, data.manifest),
    }


def find_teacher_channels(reader: CacheReader) -> dict[str, int]:
    """level -> channels of the teacher's features, however they are stored."""
    stored = {array.name: array.item_shape[0] for array in reader.layout.arrays if array.name in STUDENT_CHANNELS}
    return {level: reader.encodings[level].channels or count for level, count in stored.items()}
