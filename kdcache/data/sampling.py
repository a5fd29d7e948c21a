"""Which samples are shown or compared if a split has too many: evenly spaced ones, or extremes."""

from __future__ import annotations

from collections.abc import Mapping


def space_evenly(total: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..total-1, evenly spaced, rising."""
    count = min(total, most)
    return [step * total // count for step in range(count)]


def choose_extremes(values: Mapping[int, float], count: int) -> list[int]:
    """The `count` keys with the largest and the smallest value, half of each.

    Returns: keys in falling order of their value, equal values by key. If `count` is odd, one more
    of the largest; all keys if there are no more than `count`.
    """
    falling = sorted(values, key=lambda key: (-values[key], key))
    if len(falling) <= count:
        return falling
    least = count // 2
    return falling[: count - least] + falling[len(falling) - least :]
