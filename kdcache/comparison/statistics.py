"""Mean, spread and Student's t interval of a few numbers, one a seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

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
