"""What the costs of one worker mean for many that fill one cache: arithmetic on measured times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Work:
    """What is to be done, in one worker's time.

    num_groups: missing shard groups. asking_s: seconds to make them all, with drawing, teacher and
    writing overlapping. group_s: seconds of the longest. size_bytes: to be written. alone_s:
    seconds that every worker prepares. once_s: seconds that one worker needs at the end for all.
    """

    num_groups: int
    asking_s: float
    group_s: float
    size_bytes: float
    alone_s: float
    once_s: float


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Workers as fast as the measured one.

    bandwidth_mb_s: what they can write together, 10^6 bytes a second; None: no known limit.
    per_hour: price of a worker-hour in any currency; None: not asked for.
    """

    workers: int = 1
    bandwidth_mb_s: float | None = None
    per_hour: float | None = None


def spread(work: Work, fleet: Fleet) -> dict:
    """Seconds from the start to the last worker's end, and money, as JSON values.

    Returns: the fleet; `num_groups` of the busiest worker; `parts`, seconds by name; `time_s`;
        `bottleneck`, the longest part; `next`, the longest part but asking; `next_workers`, the
        fewest workers that ask no longer than that (None if no group is missing); `cost` of all
        workers to the end (None without a price).
    """
    parts = _list_parts(work, fleet)
    time_s = sum(parts.values()) - min(parts["asking"], parts["bandwidth"])  # these two overlap
    others = {name: part_s for name, part_s in parts.items() if name != "asking"}
    longest = max(others, key=others.get)
    return {
        **asdict(fleet),
        "num_groups": math.ceil(work.num_groups / fleet.workers),
        "parts": parts,
        "time_s": time_s,
        "bottleneck": max(parts, key=parts.get),
        "next": longest,
        "next_workers": _count_workers(work, others[longest]),
        "cost": None if fleet.per_hour is None else fleet.workers * time_s / 3600 * fleet.per_hour,
    }


def _list_parts(work: Work, fleet: Fleet) -> dict[str, float]:
    """Seconds of each part. Workers share whole groups; within a single group nothing overlaps."""
    share = math.ceil(work.num_groups / fleet.workers) / max(work.num_groups, 1)
    rate = fleet.bandwidth_mb_s
    return {
        "alone": work.alone_s,
        "asking": work.asking_s * share,
        "bandwidth": work.size_bytes / (rate * 1e6) if rate else 0.0,
        "group": work.group_s,
        "once": work.once_s,
    }


def _count_workers(work: Work, part_s: float) -> int | None:
    """The fewest workers that ask for at most `part_s`, which is at least the longest group's."""
    if work.num_groups == 0:
        return None
    rounds = max(math.floor(part_s * work.num_groups / work.asking_s), 1)
    return math.ceil(work.num_groups / rounds)


def find_work(facts: Mapping) -> Work:
    """What is missing of the cache of a forecast (see `forecast_cache`), as measured here."""
    times, splits = facts["time"], facts["splits"]
    group_s = 0.0
    for name, split in splits.items():  # a full group's share of the missing samples
        share = min(split["shard_samples"] / max(split["num_missing"], 1), 1.0)
        group_s = max(group_s, times[f"{name}_s"] * share)
    return Work(
        num_groups=sum(split["groups"] - split["groups_committed"] for split in splits.values()),
        asking_s=sum(times[f"{name}_s"] for name in splits),
        group_s=group_s,
        size_bytes=facts["size"]["missing_bytes"],
        alone_s=times["setup_s"],
        once_s=times["score_s"] + times["comparison_s"],
    )
