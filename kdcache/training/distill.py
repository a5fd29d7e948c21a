"""Phase two: the baseline with the same budget, then the distilled student."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdcache.cache.facts import hash_facts
from kdcache.cache.layout import UNLABELLED
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.config import Config, LossConfig
from kdcache.config.names import IDLE_SHARE
from kdcache.progress import Progress, Silent
from kdcache.storage import Storage
from kdcache.training.learner import check_student, choose_arithmetic
from kdcache.training.planned_run import PlannedRun
from kdcache.training.processes import Alone, format_processes
from kdcache.training.run import TrainingEvents, train_run
from kdcache.training.run_folder import BEFORE
from kdcache.training.run_identity import (
    check_folder,
    check_source,
    find_identity,
    hyperparameters,
)
from kdcache.training.samples import Data, open_configured
from kdcache.training.settings import check_batches, resolve_config

log = logging.getLogger("kdcache")
ABOUT_THE_RECIPE = (
    "loss: the first defaults (T = 4); with T = 1 and unlabelled images students gained more where "
    "it was measured: docs/results.md, and configs/voc2012.yaml has the settings"
)
FEWEST_ROWS = 4
"""Samples of a batch per process on a CPU, below which a warning is given: with two of a batch of 8
mIoU is 9.9 points lower, with four 0.7 (`python -m tests.bench.processes`)."""


@dataclass(frozen=True)
class DistillationResult:
    """What a distillation has given.

    student, baseline: contents of result.json; no baseline if none was trained.
    config: all settings. data: the cache it was trained from, open.
    folder, baseline_folder: of the runs.
    """

    student: dict
    baseline: dict | None
    config: Config
    data: Data
    folder: Path
    baseline_folder: Path | None


def distill(
    given: dict,
    *,
    root: Storage,
    processes: Alone | None = None,
    progress: Progress | None = None,
    events: TrainingEvents | None = None,
) -> DistillationResult:
    """Train the student of the given settings from the cache at `root`, after its baseline.

    Args:
        given: nested dict of the settings that were given; the rest comes from the cache and the
            defaults.
        processes: those that train it together, as `join_processes` gives them (default: this one
            alone). Each calls this function; the first alone writes, and shows progress and events.

    Raises: SettingsError, CacheError, TrainingError; ToldElsewhere if another process raises one.
    """
    processes = processes or Alone()
    progress = (progress if processes.leads else None) or Silent()
    events = (events if processes.leads else None) or TrainingEvents()
    together = {"processes": processes, "progress": progress, "events": events}
    config, data = processes.agree(_open, given, root=root, processes=processes)
    _check_start(config, data, processes, events=events)
    if is_first_loss(config.loss):
        events.said(ABOUT_THE_RECIPE)
    folder, baseline, beside = config.run.dir, None, None
    if config.run.baseline and config.loss.uses_teacher:
        plain, beside = find_baseline(config, data.manifest, beside=folder, count=processes.count)
        events.said(f"baseline: the same student without the teacher, in {beside}")
        baseline = train_run(PlannedRun(plain, beside, resume=True, wait=True), data, **together)
    events.said(f"student: {folder}, from {root} ({data.manifest.identity_hash[:12]})")
    run = PlannedRun(config, folder, resume=config.run.resume, baseline=beside)
    student = train_run(run, data, **together)
    return DistillationResult(student, baseline, config, data, folder, beside)


def is_first_loss(loss: LossConfig) -> bool:
    """Whether the teacher's scores have the weight and temperature of the defaults."""
    first = LossConfig()
    return (loss.beta, loss.temperature) == (first.beta, first.temperature) and not loss.pseudo


def find_baseline(
    config: Config, manifest: Manifest, *, beside: Path, count: int = 1
) -> tuple[Config, Path]:
    """The settings of a run's baseline, and its folder, beside that of the run.

    Args:
        count: of processes.
    """
    plain = baseline_config(config)
    return plain, beside.parent / f"baseline-{hash_settings(plain, manifest, count=count)}"


def baseline_config(config: Config) -> Config:
    """Settings for training the same student on labels only.

    Seed, data order and epochs stay. What has no effect then (other settings of the loss, levels,
    how large the unlabelled share is) becomes one value for all, so that runs that differ in it
    share one baseline.
    """
    loss = LossConfig(alpha=config.loss.alpha or 1.0, beta=0.0, gamma=0.0)
    train = config.train
    if train.unlabelled_share is not None:
        train = replace(train, unlabelled_share=IDLE_SHARE)
    return replace(config, loss=loss, train=train, cache=replace(config.cache, levels=[]))


def hash_settings(config: Config, manifest: Manifest, *, count: int) -> str:
    """12 hex digits over everything that decides the numbers of a baseline.

    On a CPU that includes how many processes train it, since each normalises its own rows.
    """
    facts = hyperparameters(config)
    identity = find_identity(manifest, facts)
    facts = {name: value for name, value in facts.items() if BEFORE.get(name, ...) != value}
    device, _ = choose_arithmetic(config)
    facts |= {"cache": identity, "device": device.type}
    facts |= {"processes": count} if device.type == "cpu" and count > 1 else {}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _open(given: dict, *, root: Storage, processes: Alone) -> tuple[Config, Data]:
    """All settings, and the cache; what cannot be trained is refused here."""
    manifest = read_manifest(root)
    config = resolve_config(root, manifest, given)
    device, _ = choose_arithmetic(config)
    check_source(config, config.run.dir, resume=config.run.resume)
    check_student(config)
    num_samples = manifest.listed["train"].num_samples
    check_batches(config, num_samples=num_samples, count=processes.count, device=device)
    return config, open_configured(config, root, manifest)


def _check_start(config: Config, data: Data, processes: Alone, *, events: TrainingEvents) -> None:
    """Check facts, devices and the folder in all processes, before anything is trained."""
    device, _ = choose_arithmetic(config)
    processes.check_same(_list_facts(config, data, device))
    processes.take_device(device)
    processes.lead(check_folder, config, data.manifest, config.run.dir, resume=config.run.resume)
    if processes.count > 1:
        size = config.train.batch_size
        events.said(format_processes(processes, batch_size=size, device=device))
        _warn_of_few_rows(size, processes.count, device)


def _list_facts(config: Config, data: Data, device: torch.device) -> dict[str, object]:
    """The facts that must be equal in all processes of a run, by name.

    Otherwise they would wait for each other, or train different students.
    """
    manifest = data.manifest
    sizes = {
        f"number of {split} samples": layout.num_samples
        for split, layout in manifest.listed.items()
    }
    others = hash_facts(manifest.identity[UNLABELLED]) if UNLABELLED in manifest.listed else None
    return {
        "kind of device": device.type,
        "run.baseline": config.run.baseline,
        **hyperparameters(config),
        "identity of the cache": manifest.identity_hash,
        "identity of unlabelled samples": others,
        **sizes,
    }


def _warn_of_few_rows(batch_size: int, count: int, device: torch.device) -> None:
    if device.type == "cpu" and batch_size // count < FEWEST_ROWS:
        log.warning(
            "some of %d processes have %d rows of a batch, and on a CPU BatchNorm normalises these "
            "alone: fewer than %d cost accuracy; start fewer processes or set train.batch_size %d",
            count, batch_size // count, FEWEST_ROWS, FEWEST_ROWS * count,
        )  # fmt: skip
