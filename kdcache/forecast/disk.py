"""How much of the disk a probe takes: a little in any case, more only where there is plenty."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.cache.layout import CRC_BYTES, Group, SplitLayout
from kdcache.cache.manifest import Manifest
from kdcache.errors import CacheError, Phrase, describe
from kdcache.forecast.estimate import add_shards
from kdcache.precompute.pipeline import Job
from kdcache.progress import format_bytes

LEAST_GROUPS, LEAST_SAMPLES = 2, 16  # of train
SHARE = 0.5  # of the free space that more than the least may take
_FULL = (errno.ENOSPC, errno.EDQUOT)


def list_groups(layout: SplitLayout) -> list[Group]:
    """All groups of a probe, each view of a sample once, neighbours of different samples and views."""
    return [
        layout.group((index + round_) % layout.num_views, index)
        for round_ in range(layout.num_views)
        for index in range(layout.groups_per_view)
    ]


def count_least(layout: SplitLayout) -> int:
    """Training groups that are made however long it takes."""
    return max(LEAST_GROUPS, -(-LEAST_SAMPLES // layout.shard_samples))


def count_fitting(manifest: Manifest, folder: Path) -> int:
    """Training groups of a probe that our share of the disk of `folder` holds beside its other groups."""
    layout = manifest.layouts["train"]
    val_bytes = sum(
        manifest.layouts["val"].group_bytes(group) for group in manifest.layouts["val"].groups()
    )
    return (int(SHARE * shutil.disk_usage(folder).free) - val_bytes) // layout.group_bytes(
        layout.group(0, 0)
    )


def _measure_least(manifest: Manifest) -> int:
    """Bytes of the shard files that a probe makes at the least; with a codec the most they can be."""
    train = manifest.layouts["train"]
    groups = [*manifest.layouts["val"].groups(), *list_groups(train)[: count_least(train)]]
    return sum(manifest.layouts[group.split].group_bytes(group) for group in groups)


@contextmanager
def say_what_is_lacking(job: Job, manifest: Manifest, folder: Path) -> Iterator[None]:
    """Raises CacheError before a probe is begun in `folder` that its disk cannot hold, and where that is full after all.

    Args:
        job: of the whole cache. manifest: of the probe.
    """
    needed, free = _measure_least(manifest), shutil.disk_usage(folder).free
    if needed > free:
        raise _explain(job, needed, format_bytes(free))
    try:
        yield
    except CacheError as error:
        refusal = (
            error.__context__
        )  # of the disk, in whose words it would ask to go on with phase one
        if isinstance(refusal, OSError) and refusal.errno in _FULL:
            raise _explain(job, needed, f"used up ({refusal.strerror})") from None
        raise


def _explain(job: Job, needed: int, found: str) -> CacheError:
    layouts = job.manifest.layouts.values()
    whole = sum(
        add_shards(x, sum(spec.most_chunk_bytes + CRC_BYTES for spec in x.arrays)) for x in layouts
    )
    expected = f"{format_bytes(needed)} or more for the samples that plan makes and removes again"
    cure = f"make room or set cache.path to another disk; the whole cache takes up to {format_bytes(whole)}"
    root = job.config.cache.path
    return CacheError(
        describe(
            root, field="free disk space", found=Phrase(found), expected=Phrase(expected), cure=cure
        )
    )
