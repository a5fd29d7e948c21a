"""The arithmetic of a forecast: bytes that a probe and the whole cache take of a disk, and what the
costs of one worker mean for many that fill one cache.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.cache.layout import CRC_BYTES, Group, SplitLayout, index_bytes
from kdcache.cache.manifest import Manifest
from kdcache.errors import CacheError, Phrase, describe
from kdcache.progress import format_bytes

if TYPE_CHECKING:
    from kdcache.precompute.pipeline import Job

LEAST_GROUPS, LEAST_SAMPLES = 2, 16  # of train, however long they take
SHARE = 0.5  # of the free space for more than the least
_FULL = (errno.ENOSPC, errno.EDQUOT)


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


def list_groups(layout: SplitLayout) -> list[Group]:
    """All groups of a probe's split; the first few have different samples and views."""
    return [
        layout.group((index + round_) % layout.num_views, index)
        for round_ in range(layout.num_views)
        for index in range(layout.groups_per_view)
    ]


def count_least(layout: SplitLayout) -> int:
    """Training groups that a probe makes in any case."""
    return max(LEAST_GROUPS, -(-LEAST_SAMPLES // layout.shard_samples))


def count_fitting(manifest: Manifest, folder: Path) -> int:
    """Training groups of a probe that fit our share of the free space, beside those of val."""
    train, val = manifest.layouts["train"], manifest.layouts["val"]
    room = int(SHARE * shutil.disk_usage(folder).free) - val.sum_bytes(list(val.groups()))
    return room // train.group_bytes(train.group(0, 0))


def sum_shards(layout: SplitLayout, sample_bytes: float) -> float:
    """Bytes of all shard files of a split, given those of a sample's chunks and checksums."""
    indices = len(layout.arrays) * layout.num_groups * index_bytes(layout.shard_samples)
    return layout.num_views * layout.num_samples * sample_bytes + indices


@contextmanager
def check_room(job: Job, probe: Manifest, folder: Path) -> Iterator[None]:
    """Raise CacheError if the disk of `folder` cannot hold the least probe, before or during it.

    Args:
        job: the whole cache. probe: manifest of the probe.
    """
    train, val = probe.layouts["train"], probe.layouts["val"]
    needed = train.sum_bytes(list_groups(train)[: count_least(train)])
    needed += val.sum_bytes(list(val.groups()))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _explain(job, needed, format_bytes(free))
    try:
        yield
    except CacheError as error:
        refusal = error.__context__  # the error itself would ask to go on with phase one
        if isinstance(refusal, OSError) and refusal.errno in _FULL:
            raise _explain(job, needed, f"used up ({refusal.strerror})") from None
        raise


def _explain(job: Job, needed: int, found: str) -> CacheError:
    whole = sum(
        sum_shards(layout, sum(spec.most_chunk_bytes + CRC_BYTES for spec in layout.arrays))
        for layout in job.manifest.layouts.values()
    )
    return CacheError(
        describe(
            job.config.cache.path,
            field="free disk space",
            found=Phrase(found),
            expected=Phrase(
                f"{format_bytes(needed)} or more for the samples that plan makes and removes again"
            ),
            cure="make room or set cache.path to another disk; "
            f"the whole cache takes up to {format_bytes(whole)}",
        )
    )
