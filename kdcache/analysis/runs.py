"""A finished run as a comparison sees it: what decided its numbers, and the numbers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import Phrase, SettingsError, TrainingError, describe, one_line
from kdcache.training.run_folder import (
    BEFORE,
    METRICS,
    RESULT,
    SETTINGS,
    read_result,
    read_run_settings,
)

SEED = "train.seed"
TEACHING = ("loss.beta", "loss.gamma")
CACHE, PICTURES = "cache", "images and labels"


@dataclass(frozen=True)
class Run:
    """Of one folder.

    Args:
        facts: all that decided the numbers but the seed, by name; what had no part in them is left out, and what an older kdcache
            did not write down.
        ious: best epoch's IoU of each class, 0 to 1, None where it does not occur.
        miou, last_miou: of the best epoch on val, and of the last one, 0 to 1.
        validation: identity of the validation data, None of a run that does not say.
        epoch_s: median of its epochs without validation, None where metrics.jsonl is unreadable.
    """

    folder: Path
    seed: int
    facts: dict
    names: list[str]
    ious: list[float | None]
    miou: float
    last_miou: float
    best_epoch: int
    validation: str | None
    epoch_s: float | None

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher had a part in it; one without is a baseline."""
        return any(self.facts[name] for name in TEACHING)


def read_run(folder: Path) -> Run:
    """The run in a folder that has a result.json. Raises TrainingError where that is damaged."""
    result = read_result(folder)
    try:
        return _make_run(folder, result)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise TrainingError(
            f"{folder / RESULT}: result is unreadable ({reason}); train that run again"
        ) from None


def _make_run(folder: Path, result: dict) -> Run:
    facts = {**BEFORE, **result["hyperparameters"]}
    facts |= {name: float(facts[name]) for name in ("loss.alpha", *TEACHING)}
    seed, ious = int(facts.pop(SEED)), [_share(iou) for iou in result["per_class_iou"].values()]
    return Run(
        folder=folder,
        seed=seed,
        facts=_keep_effective(facts) | _list_origin(facts, result),
        names=list(result["per_class_iou"]),
        ious=ious,
        miou=_share(float(result["miou"])),
        last_miou=_share(float(result["last_miou"])),
        best_epoch=int(result["best_epoch"]),
        validation=_hash(result.get("validation_identity")),
        epoch_s=_read_epoch_s(folder),
    )


def _keep_effective(facts: dict) -> dict:
    """Without what had no part in the loss. A term without weight is not computed, whatever its settings."""
    idle = {"loss.temperature"} if not facts["loss.beta"] else set()
    idle |= {"cache.levels"} if not facts["loss.gamma"] else set()
    return {name: value for name, value in facts.items() if name not in idle}


def _list_origin(facts: dict, result: dict) -> dict:
    """Cache, images and labels, device; processes of a CPU alone, where each normalises its own rows."""
    taught = any(facts[name] for name in TEACHING)
    cache = _hash(result["cache_identity"])
    pictures = _hash(result.get("pictures_identity", None if taught else cache))
    origin = {PICTURES: pictures, "device": result.get("device_type")}
    origin |= {CACHE: cache} if taught else {}
    origin |= (
        {"processes": " and ".join(map(str, result["processes"]))}
        if origin["device"] == "cpu"
        else {}
    )
    return {name: value for name, value in origin.items() if value is not None}


def _hash(value: str | None) -> str | None:
    if not isinstance(value, str | None):
        raise TypeError(f"{value} is no hash")
    return value


def _share(value: float | None) -> float | None:
    """Raises ValueError outside 0..1, NaN too."""
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{value} is no share")
    return value


def read_encoding(folder: Path) -> str | None:
    """Of the cache a run was trained from, as its settings say it; None where they are unreadable."""
    try:
        encoding = read_run_settings(folder)["cache"]["encoding"]
    except (SettingsError, TypeError, KeyError):
        return None
    if isinstance(encoding, dict):
        return " ".join(f"{name}={kind}" for name, kind in encoding.items())
    return str(encoding)


def _read_epoch_s(folder: Path) -> float | None:
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        return statistics.median(
            entry["time_s"] - entry["validation_s"] for entry in map(json.loads, lines)
        )
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RecursionError,
    ):  # the run is whole all the same
        return None


DEPTH = 2  # a folder of runs, or of folders of runs


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs in `paths`, run folders or folders that hold some, each once; and what is left out, a line each.

    Raises: SettingsError for a path that is not there.
    """
    runs, left_out = {}, []
    for path in paths:
        if not path.exists():
            found, expected = Phrase("missing"), Phrase("a run folder, or a folder of runs")
            raise SettingsError(
                describe(
                    path,
                    field="path",
                    found=found,
                    expected=expected,
                    cure="give one that is there",
                )
            )
        for folder, reason in _walk(path, DEPTH):
            try:
                if reason is None:
                    runs[folder.resolve()] = read_run(folder)
            except TrainingError as error:
                reason = str(error)
            left_out += [reason] if reason else []
    return list(runs.values()), list(dict.fromkeys(left_out))


def _walk(path: Path, depth: int) -> Iterator[tuple[Path, str | None]]:
    """Folders of finished runs, and others with the reason why they are none."""
    if (path / RESULT).is_file() and (path / SETTINGS).is_file():
        yield path, None
    elif (path / SETTINGS).is_file():
        yield (
            path,
            f"{path}: run is not finished (it has no {RESULT}); go on with it by --run.resume, or start its grid again",
        )
    else:
        inner = (
            [pair for folder in _list_folders(path) for pair in _walk(folder, depth - 1)]
            if depth
            else []
        )
        of_runs = any((folder / SETTINGS).is_file() for folder, _ in inner)
        yield from inner if of_runs else [(path, f"{path}: no run folder (it has no {SETTINGS})")]


def _list_folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:  # a file, or a folder that is not ours to read: no run
        return []
