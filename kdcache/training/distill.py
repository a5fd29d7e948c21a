"""Phase two: the baseline with equal budget, then the distilled student, then what they say together."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.config import Config, LossConfig
from kdcache.progress import Progress, Say, Silent
from kdcache.storage.place import Place
from kdcache.training.arithmetic import choose_arithmetic
from kdcache.training.events import TrainingEvents
from kdcache.training.folder import BEFORE, check_folder, find_identity, hyperparameters
from kdcache.training.learner import check_student
from kdcache.training.plan import Plan
from kdcache.training.processes import Alone, format_processes
from kdcache.training.run import Data, open_configured, train_run
from kdcache.training.settings import check_batches, resolve_config

log = logging.getLogger("kdcache")
FEWEST_ROWS = (
    4  # two of a batch of 8 cost 9.9 points of mIoU, four 0.7 (`python -m tests.bench.processes`)
)


@dataclass(frozen=True)
class Outcome:
    """What was trained, and from what.

    student, baseline: contents of result.json; the baseline's is None if none was asked for.
    config: resolved settings of the run. data: the opened cache.
    baseline_folder: None if none was asked for.
    """

    student: dict
    baseline: dict | None
    config: Config
    data: Data
    baseline_folder: Path | None

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.config.run.dir


def distill(
    given: dict,
    *,
    root: Place,
    processes: Alone | None = None,
    progress: Progress | None = None,
    events: TrainingEvents | None = None,
) -> Outcome:
    """Train the student of the given settings from the cache at `root`.

    Args:
        given: nested dict of the settings that were given; the rest comes from the cache and the defaults.
        processes: that train it together, as `join_processes` gives them (default: this one alone); each calls this function,
            the first alone writes, shows progress and calls `events`.
        events: told what happens (default: nobody is told).

    Raises: SettingsError, CacheError, TrainingError; ToldElsewhere where another process raises one of these.
    """
    processes = processes or Alone()
    if not processes.leads:
        progress, events = None, None
    progress, events = progress or Silent(), events or TrainingEvents()
    together = {"processes": processes, "progress": progress, "events": events}
    config, data = processes.agree(_open, given, root=root, processes=processes)
    _check_start(config, data, processes, say=events.said)
    folder, baseline, baseline_folder = config.run.dir, None, None
    if config.run.baseline and config.loss.uses_teacher:
        plain, baseline_folder = find_baseline(
            config, data.manifest, beside=folder, count=processes.count
        )
        events.said(f"baseline: the same student without the teacher, in {baseline_folder}")
        baseline = train_run(Plan(plain, baseline_folder, resume=True, wait=True), data, **together)
    events.said(f"student: {folder}, from {root} ({data.manifest.identity_hash[:12]})")
    student = train_run(
        Plan(config, folder, resume=config.run.resume, baseline=baseline_folder), data, **together
    )
    return Outcome(student, baseline, config, data, baseline_folder)


def _open(given: dict, *, root: Place, processes: Alone) -> tuple[Config, Data]:
    """The settings in full and the cache; whatever of them cannot be is refused here."""
    manifest = read_manifest(root)
    config = resolve_config(root, manifest, given)
    device, _ = choose_arithmetic(config)
    check_student(config)
    num_samples = manifest.layouts["train"].num_samples
    check_batches(config, num_samples=num_samples, count=processes.count, device=device)
    return config, open_configured(config, root, manifest)


def _check_start(config: Config, data: Data, processes: Alone, *, say: Say) -> None:
    """What the processes must find out together, before anything is trained."""
    device, _ = choose_arithmetic(config)
    processes.check_same(_list_facts(config, data, device))
    processes.take_device(device)
    processes.lead(check_folder, config, data.manifest, config.run.dir, resume=config.run.resume)
    if processes.count > 1:
        say(format_processes(processes, batch_size=config.train.batch_size, device=device))
        _warn_of_few_rows(config.train.batch_size, processes.count, device)


def _list_facts(config: Config, data: Data, device: torch.device) -> dict[str, object]:
    """In what the processes of a run must be equal, or they would wait for each other, or train different students."""
    sizes = {
        f"number of {split} samples": layout.num_samples
        for split, layout in data.manifest.layouts.items()
    }
    facts = {
        "kind of device": device.type,
        "run.baseline": config.run.baseline,
        **hyperparameters(config),
    }
    return {**facts, "identity of the cache": data.manifest.identity_hash, **sizes}


def _warn_of_few_rows(batch_size: int, count: int, device: torch.device) -> None:
    if device.type == "cpu" and batch_size // count < FEWEST_ROWS:
        log.warning(
            "some of %d processes have %d rows of a batch, and on a CPU BatchNorm normalises these alone: fewer than %d cost "
            "accuracy; start fewer processes or set train.batch_size %d",
            count, batch_size // count, FEWEST_ROWS, FEWEST_ROWS * count,
        )  # fmt: skip


def find_baseline(
    config: Config, manifest: Manifest, *, beside: Path, count: int = 1
) -> tuple[Config, Path]:
    """The settings of a run's baseline, and its folder, beside that of the run. Args: count: of processes."""
    plain = baseline_config(config)
    return plain, beside.parent / f"baseline-{hash_settings(plain, manifest, count=count)}"


def baseline_config(config: Config) -> Config:
    """The same student, seed, data order and epochs, with labels only."""
    loss = replace(config.loss, alpha=config.loss.alpha or 1.0, beta=0.0, gamma=0.0)
    loss = replace(
        loss, temperature=LossConfig().temperature
    )  # this and levels do not matter: one serves students of any
    return replace(config, loss=loss, cache=replace(config.cache, levels=[]))


def hash_settings(config: Config, manifest: Manifest, *, count: int) -> str:
    """12 hex digits over everything that decides the numbers of a baseline; on a CPU also how many processes train it."""
    facts = hyperparameters(config)
    identity = find_identity(manifest, facts)
    facts = {name: value for name, value in facts.items() if BEFORE.get(name, ...) != value}
    device, _ = choose_arithmetic(config)
    facts |= {"cache": identity, "device": device.type}
    facts |= (
        {"processes": count} if device.type == "cpu" and count > 1 else {}
    )  # each normalises its own rows
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
