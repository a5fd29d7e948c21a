"""The folder of a probe: beside the cache, removed at the end; and what its disk can hold.

A killed process leaves its folder. The next plan of the same cache removes it, unless a lock in the
folder says that its process lives.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kdcache.cache.layout import CRC_BYTES, Group, SplitLayout, index_bytes
from kdcache.cache.manifest import Manifest
from kdcache.errors import CacheError, Phrase, describe
from kdcache.precompute.pipeline import Job
from kdcache.progress import format_bytes
from kdcache.storage.local import find_folder
from kdcache.storage.lock import LOCK, FolderInUseError, hold_folder

DOCUMENTS, CACHE = "documents", "cache"  # what a probe makes in its folder
LEAST_GROUPS, LEAST_SAMPLES = 2, 16  # of train, however long they take
SHARE = 0.5  # of the free space for more than the least
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def make_folder(root: Path) -> Iterator[Path]:
    """A new folder for a probe of the cache at `root`, beside it.

    Raises: CacheError if a file is in the way, OSError if the disk refuses.
    """
    folder = find_folder(root)
    beside, prefix = folder.absolute().parent if folder == root else folder, f".{root.name}.plan-"
    for stale in beside.iterdir():
        if stale.name.startswith(prefix) and _is_ours(stale):
            with suppress(FolderInUseError, OSError), hold_folder(stale):
                shutil.rmtree(stale, ignore_errors=True)
    with ExitStack() as held:
        made = _make_held(beside, prefix, held)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _make_held(beside: Path, prefix: str, held: ExitStack) -> Path:
    """Tries again if another plan took the folder for stale just before it was locked."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
        with suppress(FolderInUseError, FileNotFoundError):
            held.enter_context(hold_folder(made))
            if (made / LOCK).exists():
                return made


def _is_ours(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    with suppress(OSError):  # another user's, or gone by now
        return {entry.name for entry in folder.iterdir()} <= {LOCK, DOCUMENTS, CACHE}
    return False


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
