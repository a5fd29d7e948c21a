"""One training run in one folder: from settings to result.json, resumable after every epoch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from kdcache.cache.manifest import Manifest, write_json
from kdcache.cache.reader import CacheReader, open_split
from kdcache.config import Config, config_to_dict
from kdcache.devices import check_precision, choose_device
from kdcache.errors import Phrase, SettingsError, TrainingError, describe
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.metrics import compute_iou_per_class, compute_miou
from kdcache.models.student import STUDENT_CHANNELS, LightweightSegmentationModel, count_parameters
from kdcache.report.progress import Progress
from kdcache.report.text import Say, format_epoch
from kdcache.settings import flatten
from kdcache.training.batches import BatchReader, plan_epoch
from kdcache.training.checkpoint import BEST, LAST, read_checkpoint, restore, save_checkpoint
from kdcache.training.loop import Learner, evaluate, train_epoch

RESULT, METRICS, SETTINGS = "result.json", "metrics.jsonl", "config.yaml"
NOT_COMPARED = (
    "run",
    "fit",
    "dataset.root",
    "dataset.download",
    "train.device",
    "teacher.device",
    "teacher.batch_size",
    "cache.path",
)


@dataclass(frozen=True)
class Data:
    """An opened cache: its manifest and both splits."""

    manifest: Manifest
    train: CacheReader
    val: CacheReader


def open_data(root: Path, manifest: Manifest, *, num_views: int) -> Data:
    """Open both splits; `num_views` training views must be complete. Raises CacheError."""
    train = open_split(root, manifest.layouts["train"], num_views=num_views)
    return Data(manifest, train, open_split(root, manifest.layouts["val"]))


def train_run(
    config: Config, data: Data, *, folder: Path, resume: bool, baseline_miou: float | None, progress: Progress, say: Say
) -> dict:
    """Train one student into `folder`, or go on with the run that is there.

    Args:
        config: resolved settings.
        folder: the run's folder.
        resume: continue an interrupted run; a finished one gives its result.
        baseline_miou: kept in checkpoints and result.

    Returns: the contents of result.json. Raises: TrainingError, SettingsError, CacheError.
    """
    if resume and (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text())
    learner, state = _prepare(config, data, folder=folder, resume=resume)
    history = state["history"]
    train, val = _make_readers(config, data, learner)
    for epoch in range(len(history) + 1, config.train.epochs + 1):
        entry, confusion = _run_epoch(config, learner, train, val, epoch=epoch, progress=progress)
        history.append(entry)
        best = max(history, key=lambda e: e["miou"])
        facts = _facts(config, data, history=history, baseline_miou=baseline_miou)
        if best is entry:
            save_checkpoint(folder / BEST, learner, facts={**facts, "confusion": confusion})
        save_checkpoint(folder / LAST, learner, facts=facts)
        _write_metrics(folder, history)
        say(format_epoch(entry, config, best_miou=best["miou"]))
    result = _result(config, data, folder=folder, history=history, learner=learner, baseline_miou=baseline_miou)
    write_json(folder / RESULT, result)
    return result


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
    return Learner(student, loss, optimizer, scheduler, device, autocast)


def choose_arithmetic(config: Config) -> tuple[torch.device, torch.dtype | None]:
    """Device and autocast type (None: float32). Raises SettingsError where the machine lacks them."""
    device = choose_device(config.train.device, field="train.device")
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    check_precision(precision, device, field="train.precision")
    return device, None if precision == "float32" else getattr(torch, precision)


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raises SettingsError where the folder holds a run that is not to be continued, or anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    ours = folder.is_dir() and (folder / SETTINGS).is_file()
    if not (resume and ours):
        cure = "set run.dir to another folder" + (", or continue the run with --run.resume" if ours else "")
        raise SettingsError(
            describe(folder, field="run.dir", found=Phrase("in use"), expected=Phrase("a new folder"), cure=cure)
        )


def hyperparameters(config: Config) -> dict:
    """The settings that decide the numbers of a run, by dotted name."""
    flat = flatten(config_to_dict(config))
    return {name: value for name, value in flat.items() if not name.startswith(NOT_COMPARED)}


def _prepare(config: Config, data: Data, *, folder: Path, resume: bool) -> tuple[Learner, dict]:
    """A learner, new or restored, in a folder that is ours."""
    learner = build_learner(config, teacher_channels=_teacher_channels(data.manifest))
    if resume and (folder / LAST).is_file():
        state = read_checkpoint(folder / LAST)
        _check_same_run(config, data, folder, state)
        restore(learner, state)
        _write_metrics(folder, state["history"])
        return learner, state
    check_folder(folder, resume=resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
    except OSError as error:
        raise SettingsError(f"{folder}: run.dir is unwritable ({error.strerror}); set another folder") from None
    return learner, {"history": []}


def _check_same_run(config: Config, data: Data, folder: Path, state: dict) -> None:
    found, expected = state["hyperparameters"], hyperparameters(config)
    cure = "resume with the settings of the run, or choose another run.dir"
    for name in expected:
        if found.get(name) != expected[name]:
            raise TrainingError(describe(folder, field=name, found=found.get(name), expected=expected[name], cure=cure))
    if state["cache_identity"] != data.manifest.identity_hash:
        found, expected = state["cache_identity"][:12], data.manifest.identity_hash[:12]
        raise TrainingError(describe(folder, field="cache identity", found=found, expected=expected, cure=cure))


def _make_readers(config: Config, data: Data, learner: Learner) -> tuple[BatchReader, BatchReader]:
    arrays = ["image", "label", *(["logits"] if config.loss.beta else []), *learner.loss.align]
    size, device = config.train.batch_size, learner.device
    train = BatchReader(data.train, arrays=arrays, batch_size=size, device=device)
    return train, BatchReader(data.val, arrays=["image", "label"], batch_size=size, device=device)


def _run_epoch(
    config: Config, learner: Learner, train: BatchReader, val: BatchReader, *, epoch: int, progress: Progress
):
    """Train and evaluate; returns the epoch's line for metrics.jsonl and the confusion on val."""
    began_s, size = time.monotonic(), config.train.batch_size
    layout, lr = train.reader.layout, learner.scheduler.get_last_lr()[0]
    batches = plan_epoch(
        num_samples=layout.num_samples,
        num_views=config.augment.views,
        batch_size=size,
        seed=config.train.seed,
        epoch=epoch - 1,
    )
    with progress.start(f"epoch {epoch}", total=layout.num_samples, unit="samples") as bar:
        totals = train_epoch(learner, train, batches, epoch=epoch, bar=bar)
    trained_s = time.monotonic()
    learner.scheduler.step()
    confusion = evaluate(
        learner.student, val, num_classes=config.dataset.num_classes, batch_size=size, autocast=learner.autocast
    )
    means = totals.means(alpha=config.loss.alpha, beta=config.loss.beta, gamma=config.loss.gamma)
    entry = {"epoch": epoch, "lr": lr, **means, "miou": compute_miou(confusion), "time_s": time.monotonic() - began_s}
    return {**entry, "validation_s": time.monotonic() - trained_s}, confusion


def _facts(config: Config, data: Data, *, history: list[dict], baseline_miou: float | None) -> dict:
    return {
        "epoch": len(history),
        "miou": history[-1]["miou"],
        "baseline_miou": baseline_miou,
        "hyperparameters": hyperparameters(config),
        "cache_identity": data.manifest.identity_hash,
        "history": history,
    }


def _result(
    config: Config, data: Data, *, folder: Path, history: list[dict], learner: Learner, baseline_miou: float | None
) -> dict:
    best = max(history, key=lambda e: e["miou"])
    ious = compute_iou_per_class(read_checkpoint(folder / BEST)["confusion"])
    gain = None if baseline_miou is None else best["miou"] - baseline_miou
    return {
        "miou": best["miou"],
        "baseline_miou": baseline_miou,
        "teacher_miou": data.manifest.information.get("teacher_miou"),
        "improvement_points": None if gain is None else 100 * gain,
        "improvement_percent": 100 * gain / baseline_miou if gain is not None and baseline_miou else None,
        "per_class_iou": dict(zip(config.dataset.names, ious, strict=True)),
        "params": count_parameters(learner.student),
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "last_miou": history[-1]["miou"],
        "seconds": sum(e["time_s"] for e in history),
        "cache_identity": data.manifest.identity_hash,
    }


def _write_metrics(folder: Path, history: list[dict]) -> None:
    """One line an epoch; rewritten whole, so that a resumed run has each epoch once."""
    partial = folder / f"{METRICS}.partial"
    partial.write_text("".join(json.dumps(entry) + "\n" for entry in history))
    partial.replace(folder / METRICS)


def _teacher_channels(manifest: Manifest) -> dict[str, int]:
    return {a.name: a.item_shape[0] for a in manifest.layouts["train"].arrays if a.name in STUDENT_CHANNELS}
