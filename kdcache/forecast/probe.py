"""The probe: phase one really run on a few shard groups, in a folder beside the cache that is
removed again.

A killed process leaves its folder. The next plan of the same cache removes it, unless a lock in the
folder says that its process lives.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

from kdcache.cache.layout import (
    SPLITS,
    UNLABELLED,
    ArraySpec,
    Group,
    SplitLayout,
    commit_key,
    shard_key,
)
from kdcache.cache.lifecycle import open_for_writing
from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.shards import read_index
from kdcache.forecast.costs import check_room, count_fitting, count_least, list_groups
from kdcache.precompute.pipeline import Job, Pipeline
from kdcache.precompute.score import count_answers, find_val_scale
from kdcache.progress import Bar, Progress, Silent
from kdcache.storage import Storage, open_storage
from kdcache.storage.local import find_folder
from kdcache.storage.lock import LOCK, FolderInUseError, hold_folder

DOCUMENTS, CACHE = "documents", "cache"  # what a probe makes in its folder
LEAST_VAL_SAMPLES = 4  # after the first group, which fills the pipeline
SHARD_SAMPLES = 16  # about; larger shard groups are probed by smaller ones
MOST_PROBING_S = 25.0  # no group starts that would end later, but for the least


@dataclass(frozen=True)
class Probe:
    """What a few shard groups took.

    num_samples: split -> samples made. sample_s: split -> seconds a sample, with drawing, teacher
    and writing overlapping. score_s: seconds to score a validation sample. val_confusion_KK: int64,
    labels and answers of the validation samples. val_scale: how large these are shown.
    chunk_bytes: split -> array -> mean bytes of a sample's chunk and its checksum.
    record_bytes: split -> bytes a sample of commit records.
    document_bytes: of all other documents of the whole cache.
    """

    num_samples: dict[str, int]
    sample_s: dict[str, float]
    score_s: float
    val_confusion_KK: Tensor
    val_scale: float
    chunk_bytes: dict[str, dict[str, float]]
    record_bytes: dict[str, float]
    document_bytes: int


def probe_cache(job: Job, *, progress: Progress) -> Probe:
    """Run phase one on some groups of val and train, spread over samples and views.

    Unlabelled images, which are made as those of train, are taken to cost as much.

    Raises: DataError, TeacherError; CacheError if the disk is too small for that or refuses it.
    """
    with make_folder(job.config.cache.path) as folder:
        small = _shrink(job, folder / CACHE)
        root, manifest = small.storage, small.manifest
        with check_room(job, manifest, folder):
            open_for_writing(open_storage(folder / DOCUMENTS), job.manifest, job.bases)
            open_for_writing(root, manifest, small.bases)
            written, sample_s = _write_groups(small, progress)
        num_samples, chunk_bytes, record_bytes = {}, {}, {}
        for split, layout in manifest.layouts.items():
            groups = [group for group in written if group.split == split]
            num_samples[split] = sum(count_samples(groups))
            chunk_bytes[split] = {
                spec.name: _measure_chunks(root, layout, spec, groups) for spec in layout.arrays
            }
            records = root.sum_sizes(map(commit_key, groups))
            record_bytes[split] = records / num_samples[split]
        if UNLABELLED in job.manifest.layouts:
            for facts in (sample_s, chunk_bytes, record_bytes):
                facts[UNLABELLED] = facts["train"]
        documents = (folder / DOCUMENTS).rglob("*")
        document_bytes = sum(path.stat().st_size for path in documents if path.is_file())
        scored = _score_val(root, manifest, num_classes=job.config.dataset.num_classes)
        scored = (*scored, find_val_scale(root, manifest))
        return Probe(num_samples, sample_s, *scored, chunk_bytes, record_bytes, document_bytes)


def count_samples(groups: Iterable[Group]) -> list[int]:
    """Samples of each group."""
    return [group.stop - group.start for group in groups]


def pick_samples(count: int, most: int) -> list[int]:
    """Up to `most` different samples of `count`, in a random order that is always the same.

    Not in even steps: those can be in step with the data set's order.
    """
    return np.random.default_rng(0).permutation(count)[:most].tolist()


def _shrink(job: Job, root: Path) -> Job:
    """A job for fewer samples, at `root`; each of its groups is spread over the split."""
    config, batch = job.config, job.config.teacher.batch_size
    shard = min(config.cache.shard_samples, max(SHARD_SAMPLES // batch, 1) * batch)
    shards = {"val": min(batch, shard), "train": shard}
    groups = {"val": 1 + -(-LEAST_VAL_SAMPLES // shards["val"]), "train": 64}
    splits, layouts = {}, {}
    for name in SPLITS:
        split = job.splits[name]
        chosen = pick_samples(len(split.samples), groups[name] * shards[name])
        splits[name] = replace(split, samples=tuple(split.samples[index] for index in chosen))
        layouts[name] = replace(
            job.manifest.layouts[name], num_samples=len(chosen), shard_samples=shards[name]
        )
    config = replace(config, cache=replace(config.cache, path=root))
    manifest = Manifest(
        {name: job.manifest.identity[name] for name in SPLITS},
        layouts,
        dict.fromkeys(SPLITS, 0),
        job.manifest.information,
    )
    return replace(job, config=config, manifest=manifest, splits=splits)


class Clock:
    """For a `Pipeline`: notes when each group was committed, and advances a bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.began_s, self.times = bar, time.monotonic(), []

    def __call__(self, group: Group, size_bytes: int) -> None:
        """One group more."""
        self.times.append(time.monotonic())
        self.bar.advance(group.stop - group.start, size_bytes=size_bytes)


def _write_groups(job: Job, progress: Progress) -> tuple[list[Group], dict[str, float]]:
    """Groups written, and split -> seconds a sample."""
    val, train = job.manifest.layouts["val"], job.manifest.layouts["train"]
    least, fitting = count_least(train), count_fitting(job.manifest, job.config.cache.path)
    with progress.start("probing", total=None, unit="samples") as bar:
        clock = Clock(bar)
        with Pipeline(job, clock) as pipeline:
            crew = pipeline.crew
            most = max(min(2 * crew.most_groups, fitting), least)
            groups = _stop_in_time(list_groups(train)[:most], least=least, ahead=crew.ahead)
            pipeline.write(chain(val.groups(), groups))
    written, counts = pipeline.written, {}
    for split in ("val", "train"):
        counts[split] = count_samples(group for group in written if group.split == split)
    rates = find_rates(clock.times, began_s=clock.began_s, writers=crew.writers, **counts)
    return written, rates


def _stop_in_time(groups: Iterable[Group], *, least: int, ahead: int) -> Iterator[Group]:
    """Groups, until the next would end too late at the pace of those before.

    Args:
        ahead: how many of those that were taken are only drawn yet.
    """
    began_s = time.monotonic()
    for count, group in enumerate(groups):
        group_s = (time.monotonic() - began_s) / max(count - ahead, 1)
        if count >= least and group_s * (count + 1) > MOST_PROBING_S:
            return
        yield group


def find_rates(
    ends_s: list[float], *, began_s: float, val: list[int], train: list[int], writers: int
) -> dict[str, float]:
    """Split -> seconds a sample while the pipeline is full.

    The first group of a split fills the pipeline, so it counts only if there are few others: of
    train up to twice the writers, since groups written at once are committed at once.

    Args:
        ends_s: when each group was committed, those of val first. val, train: samples of each.
    """

    def find_rate(times_s: list[float], counts: list[int], skipped: int) -> float:
        return (times_s[-1] - times_s[skipped]) / sum(counts[skipped:])

    val_s, train_s = [began_s, *ends_s[: len(val)]], ends_s[len(val) - 1 :]
    return {
        "val": find_rate(val_s, val, min(len(val) - 1, 1)),
        "train": find_rate(train_s, train, 1 if len(train) > 2 * writers else 0),
    }


def _measure_chunks(
    root: Storage, layout: SplitLayout, spec: ArraySpec, groups: list[Group]
) -> float:
    """Mean bytes of a chunk and its checksum."""
    size_bytes = 0
    for group in groups:
        key, count = shard_key(spec, group), group.stop - group.start
        index = read_index(
            root,
            key,
            count=count,
            shard_samples=layout.shard_samples,
            size_bytes=root.sum_sizes([key]),
            chunk_bytes=None,
            cure="plan again",
        )
        size_bytes += int(index[:count, 1].sum())
    return size_bytes / sum(count_samples(groups))


def _score_val(root: Storage, manifest: Manifest, *, num_classes: int) -> tuple[float, Tensor]:
    """Seconds a validation sample, and the confusion matrix of all."""
    began_s, reader = time.monotonic(), CacheReader(root, manifest, "val")
    confusion_KK = count_answers(reader, num_classes=num_classes, progress=Silent())
    return (time.monotonic() - began_s) / manifest.layouts["val"].num_samples, confusion_KK


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
