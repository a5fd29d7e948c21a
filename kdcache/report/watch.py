"""A cache while it is being built, seen from any machine that sees its folder: nothing is asked of those who build it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kdcache.cache.layout import LEASES, Group, shard_path
from kdcache.cache.lease import is_held, read_holder
from kdcache.cache.manifest import read_manifest
from kdcache.cache.records import find_committed
from kdcache.cache.shard import sum_sizes
from kdcache.progress import Progress, Say


def watch_cache(
    root: Path,
    *,
    every_s: float,
    progress: Progress,
    say: Say,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show how many samples are committed, until all are; views that are added meanwhile are not waited for.

    Args:
        every_s: seconds between two looks at the folder of commit records.

    Raises: CacheError where `root` is no cache or cannot be looked at.
    """
    layouts = read_manifest(root).layouts
    missing = {group for layout in layouts.values() for group in layout.groups()}
    total = sum(map(_count, missing))
    missing -= set(find_committed(root, missing))
    left = sum(map(_count, missing))
    say(f"{root}: {total - left} of {total} samples are there{_name_writers(root)}")
    with progress.start("committed", total=left, unit="samples") as bar:
        while missing:
            sleep(every_s)
            read_manifest(root)  # it may have been moved away
            new = find_committed(root, missing)
            missing -= set(new)
            files = [
                shard_path(root, spec, group)
                for group in new
                for spec in layouts[group.split].arrays
            ]
            bar.advance(sum(map(_count, new)), size_bytes=sum_sizes(root, files))


def _name_writers(root: Path) -> str:
    """Processes that hold leases, with how many groups each; those of other machines where the file system tells."""
    folder = root / LEASES
    names = (
        [path.name for path in folder.iterdir() if is_held(root, path.name)]
        if folder.is_dir()
        else []
    )
    holders = Counter(read_holder(root, name) for name in names)
    told = ", ".join(f"{holder} ({count})" for holder, count in sorted(holders.items()))
    return f"; writing now, with so many shard groups: {told}" if told else "; nobody is writing"


def _count(group: Group) -> int:
    return group.stop - group.start
