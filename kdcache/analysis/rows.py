"""Rows of a comparison: runs that differ only in the seed, and their baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property

from kdcache.analysis.runs import CACHE, SHARE, Run, read_encoding
from kdcache.config.names import IDLE_SHARE
from kdcache.training.run_folder import TEACHING

Measure = Callable[[Run], float | None]
CONFIDENCE = 0.95


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


@dataclass
class Row:
    """Runs by seed, all with the same `facts`.

    baseline: the row with the same settings but without the teacher, if there is one.
    """

    facts: dict
    runs: dict[int, Run] = field(default_factory=dict)
    baseline: Row | None = None
    name: str = ""

    @property
    def uses_teacher(self) -> bool:
        """False for a baseline."""
        return any(run.uses_teacher for run in self.runs.values())

    @cached_property
    def pairs(self) -> list[tuple[Run, Run]]:
        """(run, its baseline) for each seed that both rows have."""
        other = self.baseline.runs if self.baseline else {}
        return [(run, other[seed]) for seed, run in sorted(self.runs.items()) if seed in other]

    def estimate(self, measure: Measure) -> Estimate | None:
        """The measure over the seeds; None if no run has it."""
        values = [value for run in self.runs.values() if (value := measure(run)) is not None]
        return estimate(values) if values else None

    def differences(self, measure: Measure) -> dict[int, float]:
        """Seed -> run minus baseline, in points (hundredths of the measure), if both have it."""
        measured = [(run.seed, measure(run), measure(base)) for run, base in self.pairs]
        return {seed: 100 * (a - b) for seed, a, b in measured if a is not None and b is not None}

    def difference(self, measure: Measure) -> Estimate | None:
        """The differences over the seeds; None without a pair."""
        values = self.differences(measure).values()
        return estimate(values) if values else None

    def paired_means(self, measure: Measure) -> tuple[float, float] | None:
        """Means of row and baseline over the seeds of `differences`; None without a pair."""
        measured = [(measure(run), measure(base)) for run, base in self.pairs]
        both = [pair for pair in measured if None not in pair]
        return tuple(map(statistics.fmean, zip(*both, strict=True))) if both else None

    @cached_property
    def encoding(self) -> str | None:
        """The encoding of the cache all runs share; None for a baseline, which may share any."""
        found = (read_encoding(run.folder) for run in self.runs.values() if self.uses_teacher)
        return next(filter(None, found), None)

    @property
    def epoch_s(self) -> float | None:
        """Median seconds of an epoch over the runs; None if no run says it."""
        times = [run.epoch_s for run in self.runs.values() if run.epoch_s is not None]
        return statistics.median(times) if times else None


def best_miou(run: Run) -> float:
    """mIoU of the best epoch, 0 to 1."""
    return run.miou


def last_miou(run: Run) -> float:
    """mIoU of the last epoch, 0 to 1."""
    return run.last_miou


def class_iou(number: int) -> Measure:
    """The measure "IoU of this class"."""
    return lambda run: run.ious[number]


def build_rows(runs: Iterable[Run]) -> tuple[list[Row], list[str]]:
    """Rows with their baselines.

    Returns: the rows, and a line for each run that repeats another's settings and seed: a seed
        counts once.
    """
    rows, repeated = [], []
    for run in runs:
        row = next((row for row in rows if row.facts == run.facts), None)
        if row is None:
            row = Row(run.facts)
            rows.append(row)
        first = row.runs.setdefault(run.seed, run)
        if first is not run:
            repeated.append(
                f"{run.folder}: settings and seed are those of {first.folder}, which has mIoU "
                f"{first.miou:.4f}, this one {run.miou:.4f}; only that one is counted"
            )
    for row in rows:
        row.baseline = _find_baseline(row, rows)
    return rows, repeated


def _find_baseline(row: Row, rows: list[Row]) -> Row | None:
    """The baseline with the same settings.

    None if there is none, or several: a run of an older kdcache does not name its images, and may
    fit baselines on different ones.
    """
    wanted = _without_teacher(row.facts)
    plain = [other for other in rows if not other.uses_teacher]
    fitting = [other for other in plain if {**other.facts, **wanted} == other.facts]
    return fitting[0] if row.uses_teacher and len(fitting) == 1 else None


def _without_teacher(facts: dict) -> dict:
    """The facts of the baseline that `kdcache.training.distill.baseline_config` makes of a run."""
    idle = {"loss.temperature", "loss.pseudo_threshold", "loss.channel_temperature"}
    idle |= {"loss.project", "cache.levels", CACHE}
    plain = {name: value for name, value in facts.items() if name not in idle}
    plain |= {"loss.alpha": facts["loss.alpha"] or 1.0} | dict.fromkeys(TEACHING, 0.0)
    return plain | {SHARE: IDLE_SHARE if facts[SHARE] is not None else None}
