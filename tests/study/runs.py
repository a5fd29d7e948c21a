"""Which runs a study has, and how each is made: an arm, a number of views, a seed."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from kdcache.cache.basis import count_basis_bytes
from kdcache.cache.layout import commit_key, shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.config import Config
from kdcache.config.parser import make_config, merge
from kdcache.precompute.build import build_cache
from kdcache.progress import Progress, Say
from kdcache.report.training import PrintedRun
from kdcache.storage import open_storage
from kdcache.training.distill import baseline_config
from kdcache.training.planned_run import PlannedRun
from kdcache.training.run import train_run
from kdcache.training.run_folder import RESULT, read_history, read_result
from kdcache.training.run_identity import hyperparameters
from kdcache.training.samples import open_data
from kdcache.training.settings import resolve_config
from tests.study.live import train_live

ENCODINGS = ("exact", "half", "compact")
ARMS = ("none", *ENCODINGS, "live")  # none: labels only; live: the teacher asked at every step
_RUN = re.compile(rf"({'|'.join(ARMS)})-views([0-9]+)-seed([0-9]+)")
_OWN = ("train.seed", "augment.views")  # settings of a run


@dataclass(frozen=True)
class Study:
    """What is trained: settings of data set, teacher and student, and every arm with every number
    of views and seed.
    """

    given: dict
    folder: Path
    arms: tuple[str, ...]
    views: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def rows(self) -> list[tuple[str, int]]:
        """(arm, views) of the table."""
        return [(arm, views) for views in self.views for arm in self.arms]

    def cache_path(self, arm: str) -> Path:
        """Labels alone and the live teacher read images and labels of the exact cache."""
        return self.folder / "caches" / (arm if arm in ENCODINGS else "exact")


@dataclass
class Row:
    """What became of an arm with a number of views: seed -> best mIoU on val, seconds an epoch
    without validation, bytes.
    """

    miou: dict[int, float] = field(default_factory=dict)
    epoch_s: list[float] = field(default_factory=list)
    cache_bytes: int | None = None


def build_caches(study: Study, *, progress: Progress, say: Say) -> None:
    """The caches the arms need, with as many views as any run uses; one that is there is looked at
    and finished.
    """
    for root in dict.fromkeys(study.cache_path(arm) for arm in study.arms):
        say(f"cache: {root}")
        ours = {
            "cache": {"path": str(root), "encoding": root.name},
            "augment": {"views": max(study.views)},
        }
        build_cache(make_config(merge(study.given, ours)), progress=progress)


def run_study(study: Study, *, progress: Progress, say: Say) -> None:
    """Every run, by seed; finished ones are left, interrupted ones go on. Raises KdcacheError."""
    for seed in study.seeds:
        for arm, views in study.rows:
            folder = study.folder / "runs" / f"{arm}-views{views}-seed{seed}"
            say(f"run: {folder.name}")
            _run(study, arm, views, seed, folder=folder, progress=progress, say=say)


def find_rows(study: Study) -> dict[tuple[str, int], Row]:
    """Every finished run of the folder with the study's settings, whichever command made it; few
    views first.
    """
    rows: dict[tuple[str, int], Row] = {}
    for folder in sorted((study.folder / "runs").iterdir()):
        match = _RUN.fullmatch(folder.name)
        if match and (folder / RESULT).is_file():
            arm, views, seed = match[1], int(match[2]), int(match[3])
            result = read_result(folder)
            if _list_shared(result["hyperparameters"]) == _list_shared(
                _plan_hyperparameters(study, arm)
            ):
                row = rows.setdefault(
                    (arm, views), Row(cache_bytes=_measure_bytes(study, arm, views))
                )
                row.miou[seed] = result["miou"]
                row.epoch_s.append(
                    statistics.median(
                        e["time_s"] - e["validation_s"] for e in read_history(folder, result)
                    )
                )
    return dict(sorted(rows.items(), key=lambda row: (row[0][1], ARMS.index(row[0][0]))))


def _plan_hyperparameters(study: Study, arm: str) -> dict:
    config = make_config(study.given, {"train": {"compile": "off"}})
    return hyperparameters(baseline_config(config) if arm == "none" else config)


def _list_shared(facts: dict) -> dict:
    """What is equal in all runs of an arm."""
    return {name: value for name, value in facts.items() if name not in _OWN}


def _run(
    study: Study, arm: str, views: int, seed: int, *, folder: Path, progress: Progress, say: Say
) -> None:
    config = make_run_config(study, arm, views, seed, folder=folder)
    data = open_data(
        config.cache.path,
        read_manifest(config.cache.path),
        num_views=views,
        check=config.cache.check,
    )
    if arm == "live":
        train_live(config, data, folder=folder, progress=progress, say=say)
    else:
        train_run(
            PlannedRun(config, folder, resume=True), data, progress=progress, events=PrintedRun(say)
        )


def make_run_config(study: Study, arm: str, views: int, seed: int, *, folder: Path) -> Config:
    """Settings of one run. Nothing is compiled in any arm: a compiled student has other dropout and
    other rounding.
    """
    root = study.cache_path(arm)
    ours = {
        "augment": {"views": views},
        "cache": {"path": str(root)},
        "train": {"seed": seed, "compile": "off"},
        "run": {"dir": str(folder)},
    }
    of_training = {
        section: study.given[section]
        for section in ("student", "loss", "train")
        if section in study.given
    }
    config = resolve_config(root, read_manifest(root), merge(of_training, ours))
    return baseline_config(config) if arm == "none" else config


def _measure_bytes(study: Study, arm: str, views: int) -> int | None:
    """Bytes of the training split in so many views, shard files, commit records, bases; None of an
    arm that reads no answers, and where the cache was removed."""
    root = study.cache_path(arm)
    if arm not in ENCODINGS or not (root / "manifest.json").is_file():
        return None
    manifest = read_manifest(root)
    layout, bases = manifest.layouts["train"], count_basis_bytes(manifest.encodings)
    groups = [group for group in layout.groups() if group.view < views]
    shards = [shard_key(spec, group) for group in groups for spec in layout.arrays]
    files = [*shards, *map(commit_key, groups)]
    return sum(bases.values()) + open_storage(root).sum_sizes(files)
