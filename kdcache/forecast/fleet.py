"""What the costs of one worker mean for many that fill one place: arithmetic over what was measured elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Work:
    """What is to be done, in one worker's time.

    num_groups: shard groups that are missing. asking_s: seconds to make them all, drawing, teacher and writing overlapping.
    group_s: seconds of the longest of them. size_bytes: to be written. alone_s: seconds that every worker prepares, however
    many they are. once_s: seconds at the end, of one worker for all.
    """

    num_groups: int
    asking_s: float
    group_s: float
    size_bytes: float
    alone_s: float
    once_s: float


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Workers as fast as the one that was measured.

    bandwidth_mb_s: what all of them together can write to the place of the cache, 10^6 bytes a second; None: no limit is known.
    per_hour: price of a worker-hour, in any currency; None: not asked for.
    """

    workers: int = 1
    bandwidth_mb_s: float | None = None
    per_hour: float | None = None


def spread(work: Work, fleet: Fleet) -> dict:
    """Seconds from the start to the last worker's end, part by part, what takes longest, and money, as JSON values.

    Returns: the fleet; `num_groups`, those of the busiest worker; `parts`, seconds by name; `time_s`; `bottleneck`, the longest
    part; `next`, the longest beside asking, and `next_workers`, from how many workers on asking takes no longer than that
    (None where no group is missing); `cost`: of all workers to the end, None without a price.
    """
    parts = _list_parts(work, fleet)
    time_s = sum(parts.values()) - min(parts["asking"], parts["bandwidth"])  # which overlap
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
    """Workers share whole groups, so the busiest makes ceil(groups / workers); on one group's way through its pipeline nothing
    overlaps."""
    share = math.ceil(work.num_groups / fleet.workers) / max(work.num_groups, 1)
    return {
        "alone": work.alone_s,
        "asking": work.asking_s * share,
        "bandwidth": work.size_bytes / (fleet.bandwidth_mb_s * 1e6)
        if fleet.bandwidth_mb_s
        else 0.0,
        "group": work.group_s,
        "once": work.once_s,
    }


def _count_workers(work: Work, part_s: float) -> int | None:
    """The least workers that ask for no longer than a part takes, which is no shorter than the longest group."""
    if work.num_groups == 0:
        return None
    rounds = max(math.floor(part_s * work.num_groups / work.asking_s), 1)
    return math.ceil(work.num_groups / rounds)


def find_work(facts: Mapping) -> Work:
    """What is missing of the cache of a forecast (`forecast_cache`), by what it measured on this machine."""
    times, splits = facts["time"], facts["splits"]
    groups_s = [times[f"{name}_s"] * _first_share(split) for name, split in splits.items()]
    return Work(
        num_groups=sum(split["groups"] - split["groups_committed"] for split in splits.values()),
        asking_s=times["val_s"] + times["train_s"],
        group_s=max(groups_s),
        size_bytes=facts["size"]["missing_bytes"],
        alone_s=times["setup_s"],
        once_s=times["score_s"] + times["comparison_s"],
    )


def _first_share(split: Mapping) -> float:
    """A full group's share of the samples that are missing, 1 at most; where none is missing they take no time."""
    return min(split["shard_samples"] / max(split["num_missing"], 1), 1.0)
