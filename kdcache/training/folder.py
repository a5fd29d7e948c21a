"""The files of a run folder, and whether a folder may be used."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kdcache import durable
from kdcache.cache.manifest import Manifest
from kdcache.config import Config, config_to_dict
from kdcache.config.names import BUILT_IN_STUDENT
from kdcache.config.parser import flatten
from kdcache.errors import OtherRunError, Phrase, SettingsError, TrainingError, describe, one_line
from kdcache.models.arch import hash_source
from kdcache.storage.lock import hold_folder, is_empty
from kdcache.training.arithmetic import choose_arithmetic
from kdcache.training.checkpoint import LAST, read_checkpoint
from kdcache.training.compiling import choose_compiling

if TYPE_CHECKING:
    from kdcache.training.plan import Plan

RESULT, METRICS, SETTINGS = "result.json", "metrics.jsonl", "config.yaml"
BEFORE = {
    "train.compile": "off",
    "train.views": "cycle",
    "train.flip": 0.0,
    "train.crop": None,
}  # runs that do not say
BEFORE |= {"student.arch": BUILT_IN_STUDENT, "student.options": {}}


def hyperparameters(config: Config) -> dict:
    """The settings that decide the numbers of a run, by dotted name; what the cache's identity covers is not repeated."""
    settings = config_to_dict(config)
    chosen = {section: settings[section] for section in ("student", "loss", "train")}
    chosen |= {"augment": {"views": config.augment.views}, "cache": {"levels": config.cache.levels}}
    for machine in ("device", "residency"):  # where, not what
        chosen["train"].pop(machine)
    crop_hw = config.train.crop_hw  # N is [N, N], and all of a view is no crop
    chosen["train"]["crop"] = (
        list(crop_hw) if crop_hw and crop_hw != config.dataset.size_hw else None
    )
    device, autocast = choose_arithmetic(config)
    compiling, _ = choose_compiling(config.train.compile, device=device)
    chosen["train"]["compile"] = "on" if compiling else "off"  # other dropout, other rounding
    chosen["train"]["precision"] = (
        "float32" if autocast is None else str(autocast).removeprefix("torch.")
    )
    if config.student.arch != BUILT_IN_STUDENT:
        chosen["student"] = {
            **chosen["student"],
            "pretrained": None,
            "aspp_channels": None,
        }  # not of it
        chosen["student"]["source"] = hash_source(config.student.arch)
    options = chosen["student"].pop("options")
    return {**flatten(chosen), "student.options": options}


def find_identity(manifest: Manifest, facts: dict) -> str:
    """What a run was trained on: of a run with labels only the images and labels, which caches of other encodings share.

    Args:
        facts: its hyperparameters.
    """
    taught = facts["loss.beta"] or facts["loss.gamma"]
    return manifest.identity_hash if taught else manifest.pictures_hash


def find_origin(config: Config, manifest: Manifest) -> dict:
    """What makes a checkpoint or a result one of this run: `hyperparameters` and `cache_identity`; and what makes it comparable
    with another: `pictures_identity` of images and labels, `validation_identity` of those of val alone."""
    facts = hyperparameters(config)
    origin = {"hyperparameters": facts, "cache_identity": find_identity(manifest, facts)}
    return {
        **origin,
        "pictures_identity": manifest.pictures_hash,
        "validation_identity": manifest.validation_hash,
    }


def check_folder(config: Config, manifest: Manifest, folder: Path, *, resume: bool) -> None:
    """Raises SettingsError where the folder may not be used, TrainingError where its run is not the one to resume."""
    if not folder.exists() or (folder.is_dir() and is_empty(folder)):
        return
    ours = folder.is_dir() and (folder / SETTINGS).is_file()
    if not (resume and ours):
        cure = "set run.dir to another folder" + (
            ", or continue the run with --run.resume" if ours else ""
        )
        raise SettingsError(
            describe(
                folder,
                field="run.dir",
                found=Phrase("in use"),
                expected=Phrase("a new folder"),
                cure=cure,
            )
        )
    if (folder / RESULT).is_file():
        _check_same_run(config, manifest, folder, read_result(folder))
    elif (folder / LAST).is_file():
        _check_same_run(config, manifest, folder, read_checkpoint(folder / LAST))


def make_folder(config: Config, folder: Path) -> None:
    """Make the folder of a new run, with its settings. Raises SettingsError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(
            yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8"
        )
    except OSError as error:
        raise SettingsError(
            f"{folder}: run.dir is unwritable ({error.strerror}); set another folder"
        ) from None


def take_folder(plan: Plan, manifest: Manifest, *, held: ExitStack) -> dict | None:
    """Check a run's folder, make it where it is not there, and hold it for as long as `held` is open.

    Returns: the result where the run is finished. Raises: as `check_folder` and `make_folder`; FolderInUseError.
    """
    config, folder = plan.config, plan.folder
    check_folder(config, manifest, folder, resume=plan.resume)
    if plan.resume and (folder / RESULT).is_file():
        return read_result(folder)
    make_folder(config, folder)
    held.enter_context(hold_folder(folder, wait=plan.wait))
    return read_result(folder) if plan.resume and (folder / RESULT).is_file() else None


def read_result(folder: Path) -> dict:
    """The contents of result.json. Raises TrainingError where it is damaged."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        dict(result["hyperparameters"]), str(result["cache_identity"]), float(result["miou"])
        return result
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unreadable(folder / RESULT, "result", error) from None


def write_result(folder: Path, result: dict) -> None:
    """Write result.json in one step: with it a run is finished."""
    durable.replace_file(folder / RESULT, json.dumps(result, indent=1, allow_nan=False).encode())


def read_history(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl, an epoch each, at least one. Raises TrainingError where it is missing or damaged."""
    path = folder / METRICS
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        [
            (float(entry["miou"]), float(entry["total"]), float(entry["time_s"]))
            for entry in history
        ][0]
        return history
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise _unreadable(path, "history", error) from None


def write_history(folder: Path, history: list[dict]) -> None:
    """One line an epoch; rewritten whole, so that a resumed run has each epoch once."""
    partial = folder / f"{METRICS}.partial"
    partial.write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")
    partial.replace(folder / METRICS)


def _unreadable(path: Path, field: str, error: Exception) -> TrainingError:
    reason = one_line(error)
    return TrainingError(
        f"{path}: {field} is unreadable ({reason}); delete the run folder and start again"
    )


def _check_same_run(config: Config, manifest: Manifest, folder: Path, stored: dict) -> None:
    found, expected = {**BEFORE, **stored["hyperparameters"]}, hyperparameters(config)
    cure = "resume with the settings of the run, or choose another run.dir"
    for name in {**found, **expected}:
        if found.get(name) != expected.get(name):
            raise OtherRunError(
                describe(
                    folder,
                    field=name,
                    found=found.get(name),
                    expected=expected.get(name),
                    cure=cure,
                )
            )
    identity = find_identity(manifest, expected)
    if stored["cache_identity"] != identity:
        found, expected = stored["cache_identity"][:12], identity[:12]
        raise OtherRunError(
            describe(folder, field="cache identity", found=found, expected=expected, cure=cure)
        )
