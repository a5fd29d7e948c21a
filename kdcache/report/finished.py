"""A finished run as its folder tells it; its time, machine and settings for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from kdcache.config import Config, config_to_dict
from kdcache.config.parser import flatten
from kdcache.errors import TrainingError
from kdcache.training.checkpoint import BEST, read_checkpoint
from kdcache.training.run_folder import METRICS, RESULT, read_history, read_result
from kdcache.training.samples import Data

NEEDED = (
    "baseline_miou", "teacher_miou", "improvement_points", "improvement_percent", "per_class_iou",
    "params", "epochs", "best_epoch", "seconds",
)  # fmt: skip
PARTS = {"wait": "data wait", "step": "step", "validation": "validation"}
UNKNOWN = "not recorded"
_CURE = "restore it from a copy, or train that run again"


@dataclass(frozen=True)
class Finished:
    """What a run left.

    result: contents of result.json. history: an entry per epoch, from epoch 1 on.
    confusion_KK: of the best epoch on val, int64 [K, K], row: label, column: prediction;
        None if the best checkpoint is gone.
    """

    folder: Path
    result: dict
    history: list[dict]
    confusion_KK: np.ndarray | None

    @property
    def ious(self) -> list[float | None]:
        """IoU of each class at the best epoch, 0 to 1; None for a class that does not occur."""
        return list(self.result["per_class_iou"].values())

    def has(self, name: str) -> bool:
        """Whether each epoch has a value of that name."""
        return all(name in entry for entry in self.history)


@dataclass(frozen=True)
class Budget:
    """Where the time of a run went, and the pace of its median epoch.

    seconds: of all epochs: "wait" (the host waited for the next batch), "step" (the rest of
        training), "validation". The median leaves out what the first epoch spends on compiling.
    """

    seconds: dict[str, float]
    step_ms: float
    samples_per_s: float

    @property
    def total_s(self) -> float:
        """Of all epochs."""
        return sum(self.seconds.values())


def read_finished(folder: Path) -> Finished:
    """Read a run; its best checkpoint may be missing.

    Raises: TrainingError if another file of it is missing or one is damaged.
    """
    result = read_result(folder)
    missing = [name for name in NEEDED if name not in result]
    if missing:
        raise TrainingError(
            f"{folder / RESULT}: result is unreadable (it has no {missing[0]}); {_CURE}"
        )
    history = read_history(folder, result)
    if result["best_epoch"] > len(history):
        found = f"best_epoch is {result['best_epoch']} of {len(history)}"
        raise TrainingError(
            f"{folder / RESULT}: result is not that of {METRICS} ({found}); {_CURE}"
        )
    confusion = _read_confusion(folder, num_classes=len(result["per_class_iou"]))
    return Finished(folder, result, history, confusion)


def _read_confusion(folder: Path, *, num_classes: int) -> np.ndarray | None:
    """Of the best checkpoint; None if that is gone. Raises TrainingError."""
    best = folder / BEST
    if not best.is_file():
        return None
    confusion = read_checkpoint(best).get("confusion")
    if confusion is None or confusion.shape != (num_classes, num_classes) or confusion.min() < 0:
        found = f"its confusion is not one of {num_classes} classes"
        raise TrainingError(f"{best}: checkpoint is unreadable ({found}); {_CURE}")
    return confusion.numpy()


def measure_budget(history: list[dict], *, num_samples: int) -> Budget | None:
    """Add up the lines of metrics.jsonl. Args: num_samples: per epoch.

    Returns: None if a line lacks a time, as those of older runs do.
    """
    times = ("validation_s", "data_wait_s", "step_s")
    if not all(name in entry for entry in history for name in times):
        return None
    training_s = [entry["time_s"] - entry["validation_s"] for entry in history]
    waited_s = sum(entry["data_wait_s"] for entry in history)
    seconds = {
        "wait": waited_s,
        "step": max(0.0, sum(training_s) - waited_s),
        "validation": sum(entry["validation_s"] for entry in history),
    }
    step_ms = 1000 * median(entry["step_s"] for entry in history)
    return Budget(seconds, step_ms, num_samples / max(median(training_s), 1e-9))


def view_budget(runs: dict[str, Finished], *, num_samples: int) -> dict | None:
    """The section about time, of the runs whose times are known; None if there are none.

    Args:
        runs: "baseline", "student" (those there are). num_samples: per epoch.
    """
    known = {who: measure_budget(run.history, num_samples=num_samples) for who, run in runs.items()}
    budgets = {who: budget for who, budget in known.items() if budget}
    if not budgets:
        return None
    longest_s = max(*(budget.total_s for budget in budgets.values()), 1e-9)
    return {
        "parts": PARTS,
        "bars": {who: _view_bar(budget, longest_s) for who, budget in budgets.items()},
        "titles": ["", *budgets],
        "rows": _list_times(list(budgets.values())),
    }


def _view_bar(budget: Budget, longest_s: float) -> list[dict]:
    """A piece per part, its width in percent of the longest run."""
    return [
        {
            "part": part,
            "width": f"{100 * seconds / longest_s:.2f}",
            "title": f"{PARTS[part]}: {seconds:.1f} s",
        }
        for part, seconds in budget.seconds.items()
    ]


def _list_times(budgets: list[Budget]) -> list[list[str]]:
    parts = [
        [name, *(_format_part(budget, part) for budget in budgets)] for part, name in PARTS.items()
    ]
    return [
        *parts,
        ["all epochs", *(f"{budget.total_s:.1f} s" for budget in budgets)],
        ["a step", *(f"{budget.step_ms:.1f} ms" for budget in budgets)],
        ["pace", *(f"{budget.samples_per_s:.1f} samples/s" for budget in budgets)],
    ]


def _format_part(budget: Budget, part: str) -> str:
    seconds = budget.seconds[part]
    return f"{seconds:.1f} s, {100 * seconds / max(budget.total_s, 1e-9):.1f} %"


def view_facts(config: Config, data: Data, runs: dict[str, Finished]) -> dict:
    """The section about the run: time, size, cache, versions, settings.

    Args:
        runs: "baseline", "student" (those there are).
    """
    manifest = data.manifest
    facts = {who: _format_time(run.result) for who, run in reversed(runs.items())}
    facts["parameters"] = f"{runs['student'].result['params']:,}"
    facts |= {"cache": str(data.val.storage), "identity": manifest.identity_hash}
    for split, layout in manifest.listed.items():
        facts[split] = f"{layout.num_samples} samples x {layout.num_views} views"
    machines = {**{who: run.result for who, run in runs.items()}, "cache": manifest.information}
    return {
        "facts": facts,
        "machine_titles": ["", *machines],
        "machine_rows": _list_machines(list(machines.values())),
        "details": {
            "Settings": flatten(config_to_dict(config)),
            "Cache identity": flatten(manifest.identity),
        },
    }


def _list_machines(machines: list[dict]) -> list[list[str]]:
    """Device and versions, a column each; an older kdcache did not record them."""
    columns = [_describe_machine(machine) for machine in machines]
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, UNKNOWN) for column in columns)] for name in names]


def _describe_machine(machine: dict) -> dict[str, str]:
    device, threads = machine.get("device"), machine.get("num_threads")
    facts = {"device": str(device)} if device else {}
    facts |= {"CPU threads": str(threads)} if threads else {}
    versions = machine.get("versions") or {}
    return facts | {name: str(version) for name, version in versions.items()}


def _format_time(result: dict) -> str:
    seconds, epochs = result["seconds"], result["epochs"]
    pace = f"{seconds / epochs:.1f} s an epoch; best: {result['best_epoch']}"
    return f"{epochs} epochs in {seconds:.0f} s, {pace}"
