"""Finished runs as a comparison sees them: what decided their numbers, the numbers, and the
estimate of a number over several runs.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdcache.config.names import IDLE_SHARE
from kdcache.errors import Phrase, SettingsError, TrainingError, describe
from kdcache.training.run_folder import (
    BEFORE,
    EPOCH_TIMES,
    RESULT,
    SETTINGS,
    TEACHING,
    DamagedHistoryError,
    read_history,
    read_result,
    read_run_settings,
)

SEED, SHARE = "train.seed", "train.unlabelled_share"
CACHE, PICTURES, UNLABELLED = "cache", "images and labels", "unlabelled images"
CONFIDENCE = 0.95
DEPTH = 2  # a folder of runs, or of folders of runs


@dataclass(frozen=True)
class Run:
    """A finished run.

    facts: name -> everything that decided the numbers, except the seed and what had no effect (or
    what an older kdcache did not record). names: of the classes. ious: IoU of each class in the
    best epoch, 0 to 1, None for a class that does not occur. miou, last_miou: of the best and the
    last epoch on val, 0 to 1. validation: identity of the validation data, None if the run does not
    say. epoch_s: median seconds of an epoch without validation, None without a sound metrics.jsonl.
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
        """False for a baseline."""
        return any(self.facts[name] for name in TEACHING)


Measure = Callable[[Run], float | None]


def best_miou(run: Run) -> float:
    """mIoU of the best epoch, 0 to 1."""
    return run.miou


def last_miou(run: Run) -> float:
    """mIoU of the last epoch, 0 to 1."""
    return run.last_miou


def class_iou(number: int) -> Measure:
    """The measure "IoU of this class"."""
    return lambda run: run.ious[number]


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs in `paths`: run folders, or folders of runs; with a run its baseline.

    Returns: the runs, each once, and a line for each folder that is left out.
    Raises: SettingsError for a path that does not exist.
    """
    runs, left_out = {}, []
    for path in paths:
        if not path.exists():
            found, expected = Phrase("missing"), Phrase("a run folder, or a folder of runs")
            cure = "give one that is there"
            raise SettingsError(
                describe(path, field="path", found=found, expected=expected, cure=cure)
            )
        for folder, reason in _walk(path, DEPTH):
            try:
                if reason is None:
                    runs[folder.resolve()] = read_run(folder)
                    own = _find_own_baseline(folder) if folder == path else None
                    runs |= {own.resolve(): read_run(own)} if own else {}
            except TrainingError as error:
                reason = str(error)
            left_out += [reason] if reason else []
    return list(runs.values()), list(dict.fromkeys(left_out))


def _find_own_baseline(folder: Path) -> Path | None:
    """The finished baseline that a run was compared with, beside it; None if that is elsewhere."""
    named = re.fullmatch(r"\.\./(baseline-[0-9a-f]{12})", read_result(folder).get("baseline") or "")
    beside = folder.resolve().parent / named[1] if named else None
    return beside if beside and (beside / RESULT).is_file() else None


def _walk(path: Path, depth: int) -> Iterator[tuple[Path, str | None]]:
    """Folders, each with None if it is a finished run, else with the reason why not."""
    if (path / SETTINGS).is_file():
        cure = "go on with it by --run.resume, or start its grid again"
        unfinished = f"{path}: run is not finished (it has no {RESULT}); {cure}"
        yield path, None if (path / RESULT).is_file() else unfinished
        return
    folders = _list_folders(path) if depth else []
    inner = [pair for folder in folders for pair in _walk(folder, depth - 1)]
    of_runs = any((folder / SETTINGS).is_file() for folder, _ in inner)
    yield from inner if of_runs else [(path, f"{path}: no run folder (it has no {SETTINGS})")]


def _list_folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:  # a file, or a folder that we may not read
        return []


def read_run(folder: Path) -> Run:
    """The run in a folder that has a result.json. Raises TrainingError if that is damaged."""
    result = read_result(folder)
    try:
        return _make_run(folder, result)
    except KeyError as error:
        reason = f"{error} is missing"
        raise TrainingError(
            f"{folder / RESULT}: result is unreadable ({reason}); train that run again"
        ) from None


def _make_run(folder: Path, result: dict) -> Run:
    facts = {**BEFORE, **result["hyperparameters"]}
    facts |= {name: float(facts[name]) for name in ("loss.alpha", *TEACHING)}
    seed, ious = facts.pop(SEED), result["per_class_iou"]
    return Run(
        folder=folder,
        seed=seed,
        facts=_keep_effective(facts) | _list_origin(facts, result),
        names=list(ious),
        ious=list(ious.values()),
        miou=float(result["miou"]),
        last_miou=float(result["last_miou"]),
        best_epoch=result["best_epoch"],
        validation=result.get("validation_identity"),
        epoch_s=_read_epoch_s(folder, result),
    )


def _keep_effective(facts: dict) -> dict:
    """The facts without settings of terms that have no weight: those are not computed.

    How large the unlabelled share is makes no difference to a run with labels only.
    """
    idle = {"loss.temperature"} if not facts["loss.beta"] else set()
    idle |= {"cache.levels"} if not facts["loss.gamma"] else set()
    idle |= {"loss.pseudo_threshold"} if not facts["loss.pseudo"] else set()
    kept = {name: value for name, value in facts.items() if name not in idle}
    if not any(facts[name] for name in TEACHING) and kept[SHARE] is not None:
        kept[SHARE] = IDLE_SHARE
    return kept


def _list_origin(facts: dict, result: dict) -> dict:
    """Cache, images and labels, device; on a CPU processes, since each normalises its own rows.

    The number of unlabelled images, if they are used, decides the number of steps.
    """
    uses_teacher = any(facts[name] for name in TEACHING)
    cache, device = result["cache_identity"], result.get("device_type")
    pictures = result.get("pictures_identity", None if uses_teacher else cache)
    origin = {PICTURES: pictures, UNLABELLED: result.get("unlabelled_samples"), "device": device}
    if uses_teacher:
        origin[CACHE] = cache
    if device == "cpu":
        origin["processes"] = " and ".join(map(str, result["processes"]))
    return {name: value for name, value in origin.items() if value is not None}


def read_encoding(folder: Path) -> str | None:
    """Encoding of the cache a run was trained from; None if its settings are unreadable."""
    try:
        encoding = read_run_settings(folder)["cache"]["encoding"]
    except (SettingsError, TypeError, KeyError):
        return None
    if isinstance(encoding, dict):
        return " ".join(f"{name}={kind}" for name, kind in encoding.items())
    return str(encoding)


def _read_epoch_s(folder: Path, result: dict) -> float | None:
    try:
        entries = read_history(folder, result, entry=EPOCH_TIMES)
    except DamagedHistoryError:
        raise
    except TrainingError:  # the run counts all the same
        return None
    return statistics.median(entry["time_s"] - entry["validation_s"] for entry in entries)


@dataclass(frozen=True)
class Estimate:
    """Mean of `count` values, their standard deviation (n - 1), and the 95 % interval of the mean.

    One value has neither deviation nor interval.
    """

    count: int
    mean: float
    deviation: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 is outside."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def estimate(values: Iterable[float]) -> Estimate:
    """The estimate of one or more values.

    Its interval assumes independent, normally distributed values, as Student (1908) does.
    """
    values = list(values)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(1, mean)
    deviation = statistics.stdev(values)
    half = find_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(len(values), mean, deviation, (mean - half, mean + half))


@cache
def format_estimate(value: Estimate | None, *, digits: int = 4) -> str:
    """`0.5231 ± 0.0042`; one seed has no deviation."""
    if value is None:
        return "-"
    return f"{value.mean:.{digits}f}" + (
        "" if value.deviation is None else f" ± {value.deviation:.{digits}f}"
    )


def format_difference(value: Estimate) -> str:
    """`+2.13 [+0.80, +3.46]`, points; of one pair `+2.13`."""
    return f"{value.mean:+.2f}" + (f" {format_interval(value)}" if value.interval else "")


def format_interval(value: Estimate) -> str:
    """`[+0.80, +3.46]`."""
    return f"[{value.interval[0]:+.2f}, {value.interval[1]:+.2f}]"


def find_quantile(freedom: int) -> float:
    """t such that 95 % of Student's distribution lie between -t and t, by bisection.

    Args:
        freedom: degrees of freedom, >= 1.
    """
    low, high = 1.0, 16.0  # t falls from 12.7 to 1.96
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if find_coverage(middle, freedom) < CONFIDENCE else (low, middle)
    return (low + high) / 2


def find_coverage(t: float, freedom: int) -> float:
    """Share of Student's distribution between -t and t, 0 to 1.

    A finite sum of positive terms, so nothing cancels: Abramowitz and Stegun, Handbook of
    Mathematical Functions (1964), 26.7.3 and 26.7.4.

    Args:
        t: >= 0. freedom: degrees of freedom, >= 1.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    if freedom == 1:
        return 2 * angle / math.pi
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
