"""How long a probe's shard groups take, and when it has seen enough."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from kdcache.cache.layout import Group
from kdcache.progress import Bar

MOST_PROBING_S = 25.0  # no group is begun that would end later, but for the least


class Clock:
    """For a `Pipeline`: notes when each group was committed, and advances a bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.began_s, self.times = bar, time.monotonic(), []

    def __call__(self, group: Group, size_bytes: int) -> None:
        """One group more."""
        self.times.append(time.monotonic())
        self.bar.advance(group.stop - group.start, size_bytes=size_bytes)


def stop_in_time(groups: Iterable[Group], *, least: int, ahead: int) -> Iterator[Group]:
    """Groups until the next one would end too late, were it as slow as those before it; `ahead` of them are only drawn."""
    began_s = time.monotonic()
    for count, group in enumerate(groups):
        done = max(count - ahead, 1)
        if count >= least and (time.monotonic() - began_s) / done * (count + 1) > MOST_PROBING_S:
            return
        yield group


def find_rates(
    ends_s: list[float], *, began_s: float, val: list[int], train: list[int], writers: int
) -> dict[str, float]:
    """Seconds a sample of each split while the pipeline is full.

    It fills while the first group of a split is on its way, which therefore counts only where there are too few others. Of
    train those are up to twice the writers: groups that are written at once are committed at once.

    Args:
        ends_s: when each group was committed, in order; those of val come first. val, train: samples of each group.
        writers: groups that may be written at once.
    """
    num_val = len(val)
    return {
        "val": _find_rate([began_s, *ends_s[:num_val]], val, skipped=min(num_val - 1, 1)),
        "train": _find_rate(
            ends_s[num_val - 1 :], train, skipped=1 if len(train) > 2 * writers else 0
        ),
    }


def _find_rate(times_s: list[float], counts: list[int], *, skipped: int) -> float:
    """Without the first `skipped` groups; times_s has when the first began and when each ended."""
    return (times_s[-1] - times_s[skipped]) / sum(counts[skipped:])
