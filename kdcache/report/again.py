"""The report of a finished run, written again: with more panels, or by a newer version."""

from __future__ import annotations

from pathlib import Path

from kdcache.cache.manifest import read_manifest
from kdcache.config import Config
from kdcache.config.parser import build_parser, make_config, merge, read_given
from kdcache.errors import Phrase, TrainingError, describe
from kdcache.report.page import write_report
from kdcache.storage.place import find_place
from kdcache.training.folder import RESULT, SETTINGS, find_identity, read_result
from kdcache.training.run import Data, open_configured
from kdcache.training.settings import resolve_config


def rewrite_report(folder: Path, given: dict | None = None, *, num_panels: int) -> Path:
    """Write report.html of a finished run again.

    Args:
        folder: the run's.
        given: nested settings that are to be others than the run's: where the cache is now, which device answers.
        num_panels: how many validation samples are shown.

    Returns: the file. Raises: TrainingError where the run is not finished or damaged, CacheError where its cache is gone or
    another one, SettingsError.
    """
    check_finished(folder)
    result = read_result(folder)
    config, data = _open(folder, given or {}, result)
    return write_report(
        config,
        data,
        folder=folder,
        baseline_folder=recall_baseline(folder, result),
        num_panels=num_panels,
    )


def check_finished(folder: Path) -> None:
    """Raises TrainingError where the folder is not that of a finished run."""
    field, expected = "run folder", Phrase("the folder of a finished run")
    if not (folder / SETTINGS).is_file():
        found, cure = (
            Phrase("of no run" if folder.exists() else "missing"),
            "give run.dir of a training",
        )
        raise TrainingError(
            describe(folder, field=field, found=found, expected=expected, cure=cure)
        )
    if not (folder / RESULT).is_file():
        found, cure = Phrase("unfinished"), "finish it with --run.resume, or wait for its end"
        raise TrainingError(
            describe(folder, field=field, found=found, expected=expected, cure=cure)
        )


def recall_baseline(folder: Path, result: dict) -> Path | None:
    """The folder of the baseline that a run was compared with; None where there was none, or it is gone or not recorded."""
    baseline = result.get("baseline")
    return folder / baseline if baseline and (folder / baseline / RESULT).is_file() else None


def _open(folder: Path, given: dict, result: dict) -> tuple[Config, Data]:
    """The settings of the run, and the cache, which must be the one it was trained from."""
    stored = read_given(build_parser(prog="", description=""), ["--config", str(folder / SETTINGS)])
    stored.pop("teacher", None)  # not asked here; hashing its weights again would take seconds
    given = merge(stored, given)
    root = find_place(make_config(given).cache.path)
    manifest = read_manifest(root)
    config = resolve_config(root, manifest, given)
    found, expected = find_identity(manifest, result["hyperparameters"]), result["cache_identity"]
    if found != expected:
        cure = "give the cache of this run by --cache.path"
        raise TrainingError(
            describe(
                root, field="cache identity", found=found[:12], expected=expected[:12], cure=cure
            )
        )
    if list(result.get("per_class_iou", config.dataset.names)) != config.dataset.names:
        found, expected = Phrase("another one"), Phrase(f"that of {SETTINGS}")
        cure = f"make {SETTINGS} what it was"
        raise TrainingError(
            describe(
                folder / RESULT, field="list of classes", found=found, expected=expected, cure=cure
            )
        )
    return config, open_configured(config, root, manifest)
