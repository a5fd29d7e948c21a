"""Where a run's time went: waiting for data, stepping, validating, as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from kdcache.report.finished import Finished
from kdcache.report.tables import draw_grid

PARTS = {"wait": "data wait", "step": "step", "validation": "validation"}


@dataclass(frozen=True)
class Budget:
    """Seconds of all epochs by part, and the usual epoch's pace: medians, so that a first epoch's compiling does not count.

    seconds: "wait" (the host waited for the next batch), "step" (the rest of training), "validation".
    """

    seconds: dict[str, float]
    step_ms: float
    samples_per_s: float

    @property
    def total_s(self) -> float:
        """Of all epochs."""
        return sum(self.seconds.values())


def measure_budget(history: list[dict], *, num_samples: int) -> Budget | None:
    """From the lines of metrics.jsonl; None where a line lacks a time.

    Args:
        num_samples: seen in an epoch.
    """
    if not all(
        name in entry for entry in history for name in ("validation_s", "data_wait_s", "step_s")
    ):
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


def draw_budget(runs: dict[str, Finished], *, num_samples: int) -> str:
    """The section, of those runs whose times are known; nothing where none are.

    Args:
        runs: "baseline", "student" (those there are). num_samples: seen in an epoch.
    """
    known = {who: measure_budget(run.history, num_samples=num_samples) for who, run in runs.items()}
    budgets = {who: budget for who, budget in known.items() if budget}
    if not budgets:
        return ""
    longest_s = max(max(budget.total_s for budget in budgets.values()), 1e-9)
    key = "".join(f'<li><i class="{part}"></i>{name}</li>' for part, name in PARTS.items())
    bars = "".join(_draw_bar(who, budget, longest_s) for who, budget in budgets.items())
    return (
        f'<section><h2>Where the time went</h2><ul class="key blocks">{key}</ul>{bars}{_draw_table(budgets)}'
        '<p class="soft">Data wait: the host waited for the next batch. Step: the rest of training. '
        "A step and the pace are those of the median epoch.</p></section>"
    )


def _draw_bar(who: str, budget: Budget, longest_s: float) -> str:
    parts = "".join(
        f'<i class="{part}" style="width:{100 * seconds / longest_s:.2f}%" title="{PARTS[part]}: {seconds:.1f} s"></i>'
        for part, seconds in budget.seconds.items()
    )
    return f'<div class="budget"><span>{who}</span><div class="parts">{parts}</div></div>'


def _draw_table(budgets: dict[str, Budget]) -> str:
    rows = [
        [name, *(_tell_part(budget, part) for budget in budgets.values())]
        for part, name in PARTS.items()
    ]
    rows.append(["all epochs", *(f"{budget.total_s:.1f} s" for budget in budgets.values())])
    rows.append(["a step", *(f"{budget.step_ms:.1f} ms" for budget in budgets.values())])
    rows.append(["pace", *(f"{budget.samples_per_s:.1f} samples/s" for budget in budgets.values())])
    return draw_grid(["", *budgets], rows, kind="times")


def _tell_part(budget: Budget, part: str) -> str:
    seconds = budget.seconds[part]
    return f"{seconds:.1f} s, {100 * seconds / max(budget.total_s, 1e-9):.1f} %"
