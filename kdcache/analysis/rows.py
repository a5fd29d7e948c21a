"""Runs with the same settings but the seed are a row, and a row is compared with its baseline seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property

from kdcache.analysis.runs import CACHE, Run, read_encoding

Measure = Callable[[Run], float | None]


@dataclass
class Row:
    """Runs by seed, all with the same `facts`; `baseline` is the row without the teacher and with the same settings else."""

    facts: dict
    runs: dict[int, Run] = field(default_factory=dict)
    baseline: Row | None = None
    name: str = ""

    @property
    def teaches(self) -> bool:
        return any(run.teaches for run in self.runs.values())

    @cached_property
    def pairs(self) -> list[tuple[Run, Run]]:
        """(run, its baseline) of each seed that both rows have."""
        other = self.baseline.runs if self.baseline else {}
        return [(run, other[seed]) for seed, run in sorted(self.runs.items()) if seed in other]

    def estimate(self, measure: Measure) -> Estimate | None:
        """Over the seeds, of what `measure` gives; None where it gives nothing."""
        values = [value for run in self.runs.values() if (value := measure(run)) is not None]
        return estimate(values) if values else None

    def differences(self, measure: Measure) -> dict[int, float]:
        """seed -> run minus baseline in points (hundredths of `measure`), of the seeds where both have it."""
        measured = [(run.seed, measure(run), measure(base)) for run, base in self.pairs]
        return {seed: 100 * (a - b) for seed, a, b in measured if a is not None and b is not None}

    def difference(self, measure: Measure) -> Estimate | None:
        """Of the differences over the seeds; None without a pair."""
        values = self.differences(measure).values()
        return estimate(values) if values else None

    def paired_means(self, measure: Measure) -> tuple[float, float] | None:
        """Of the row and of its baseline, over the seeds that `difference` counts; None without a pair."""
        measured = [(measure(run), measure(base)) for run, base in self.pairs]
        both = [pair for pair in measured if None not in pair]
        return tuple(map(statistics.fmean, zip(*both, strict=True))) if both else None

    @cached_property
    def encoding(self) -> str | None:
        """Of the cache that all its runs were trained from; None of a baseline, which caches of any encoding share."""
        found = (read_encoding(run.folder) for run in self.runs.values() if self.teaches)
        return next(filter(None, found), None)

    @property
    def epoch_s(self) -> float | None:
        """Median over the runs, None where none says it."""
        times = [run.epoch_s for run in self.runs.values() if run.epoch_s is not None]
        return statistics.median(times) if times else None


def best_miou(run: Run) -> float:
    return run.miou


def last_miou(run: Run) -> float:
    return run.last_miou


def class_iou(number: int) -> Measure:
    """The measure of one class."""
    return lambda run: run.ious[number]


def build_rows(runs: Iterable[Run]) -> tuple[list[Row], list[str]]:
    """Rows with their baselines, and a line for each run that repeats another: a seed counts once."""
    rows, repeated = [], []
    for run in runs:
        row = next((row for row in rows if row.facts == run.facts), None)
        if row is None:
            row = Row(run.facts)
            rows.append(row)
        first = row.runs.setdefault(run.seed, run)
        if first is not run:
            same = f"settings and seed are those of {first.folder}, which has mIoU {first.miou:.4f}, this one {run.miou:.4f}"
            repeated.append(f"{run.folder}: {same}; only that one is counted")
    for row in rows:
        row.baseline = _find_baseline(row, rows)
    return rows, repeated


def _find_baseline(row: Row, rows: list[Row]) -> Row | None:
    """None where none has the same settings, and where several have, of images that a run of an older kdcache does not name."""
    wanted = _without_teacher(row.facts)
    fitting = [
        other for other in rows if not other.teaches and {**other.facts, **wanted} == other.facts
    ]
    return fitting[0] if row.teaches and len(fitting) == 1 else None


def _without_teacher(facts: dict) -> dict:
    """What the baseline of such a run has; `kdcache.training.distill.baseline_config` makes it so."""
    idle = {"loss.temperature", "cache.levels", CACHE}
    plain = {name: value for name, value in facts.items() if name not in idle}
    return plain | {"loss.alpha": facts["loss.alpha"] or 1.0, "loss.beta": 0.0, "loss.gamma": 0.0}


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """What `count` values say: their mean, standard deviation (n - 1) and the 95 % interval of the mean.

    One value has neither deviation nor interval.
    """

    count: int
    mean: float
    deviation: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval, where there is one, does not hold 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def estimate(values: Iterable[float]) -> Estimate:
    """Of at least one value. The interval takes them for independent and normal, as Student (1908) does."""
    values = list(values)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(1, mean)
    deviation = statistics.stdev(values)
    half = find_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(len(values), mean, deviation, (mean - half, mean + half))


@cache
def find_quantile(freedom: int) -> float:
    """t such that Student's distribution of `freedom` >= 1 degrees has 95 % between -t and t, by bisection."""
    low, high = 1.0, 16.0  # it falls from 12.7 to 1.96
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if find_coverage(middle, freedom) < CONFIDENCE else (low, middle)
    return (low + high) / 2


def find_coverage(t: float, freedom: int) -> float:
    """Share of Student's distribution between -t and t, 0 to 1: a finite sum of positive terms, so nothing cancels.

    Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.

    Args:
        t: >= 0. freedom: degrees, >= 1.
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
