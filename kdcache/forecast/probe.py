"""A few shard groups of a cache that is not there yet: really made, in a folder beside it that is gone afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from kdcache.cache.folder import open_for_writing
from kdcache.cache.layout import ArraySpec, Group, SplitLayout, commit_path, shard_path
from kdcache.cache.manifest import Manifest
from kdcache.cache.pipeline import Pipeline, Plan
from kdcache.cache.reader import CacheReader
from kdcache.cache.score import count_answers
from kdcache.cache.shard import read_index
from kdcache.data.voc import Split
from kdcache.forecast.folder import CACHE, DOCUMENTS, make_folder
from kdcache.report.progress import Bar, Progress, Silent

MOST_S = 25.0  # no group is begun that would end later, but for the least
LEAST_GROUPS = 2
SHARD_SAMPLES = 16  # about; larger shard groups are probed by smaller ones


@dataclass(frozen=True)
class Probe:
    """What a few shard groups took.

    num_samples: split -> samples made.
    sample_s: split -> seconds a sample, drawing, teacher and writing overlapping as in phase one.
    score_s: seconds a validation sample to compare it with its label.
    chunk_bytes: split -> array -> bytes of each sample's chunk and its checksum, float64.
    record_bytes: split -> bytes a sample of commit records.
    document_bytes: of all other documents of the whole cache.
    """

    num_samples: dict[str, int]
    sample_s: dict[str, float]
    score_s: float
    chunk_bytes: dict[str, dict[str, np.ndarray]]
    record_bytes: dict[str, float]
    document_bytes: int


def probe_cache(plan: Plan, *, progress: Progress) -> Probe:
    """Run phase one on a validation group and some training groups, spread over samples and views.

    Raises: DataError, TeacherError, CacheError; OSError where the folder is refused.
    """
    with make_folder(plan.config.cache.path) as folder:
        document_bytes = _measure_documents(plan, folder / DOCUMENTS)
        small = _shrink(plan, folder / CACHE)
        root, manifest = small.config.cache.path, small.manifest
        open_for_writing(root, manifest, small.bases)
        written, sample_s = _write_groups(small, progress)
        num_samples, chunk_bytes, record_bytes = {}, {}, {}
        for split, layout in manifest.layouts.items():
            groups = [group for group in written if group.split == split]
            num_samples[split] = sum(group.stop - group.start for group in groups)
            chunk_bytes[split] = _measure_chunks(root, layout, groups)
            records = sum(commit_path(root, group).stat().st_size for group in groups)
            record_bytes[split] = records / num_samples[split]
        score_s = _time_score(root, manifest, num_classes=plan.config.dataset.num_classes)
        return Probe(num_samples, sample_s, score_s, chunk_bytes, record_bytes, document_bytes)


def pick_samples(count: int, most: int) -> list[int]:
    """Up to `most` different samples of `count` in random order, always the same: any first few stand for all.

    Even steps would be in step with a data set's order: of CamVid's frames they erred by half as much again.
    """
    return np.random.default_rng(0).permutation(count)[:most].tolist()


def _shrink(plan: Plan, root: Path) -> Plan:
    """The same cache of fewer samples, at `root`, every group of it spread over the split."""
    config, batch = plan.config, plan.config.teacher.batch_size
    shard = min(config.cache.shard_samples, max(SHARD_SAMPLES // batch, 1) * batch)
    most = {"val": min(batch, shard), "train": shard * 64}
    splits = {name: _choose(split, most[name]) for name, split in plan.splits.items()}
    layouts = {
        name: replace(layout, num_samples=len(splits[name].samples), shard_samples=shard)
        for name, layout in plan.manifest.layouts.items()
    }
    manifest = replace(plan.manifest, layouts=layouts)
    return replace(
        plan, config=replace(config, cache=replace(config.cache, path=root)), manifest=manifest, splits=splits
    )


def _choose(split: Split, most: int) -> Split:
    samples = tuple(split.samples[index] for index in pick_samples(len(split.samples), most))
    return replace(split, samples=samples)


def _write_groups(plan: Plan, progress: Progress) -> tuple[list[Group], dict[str, float]]:
    """Groups written, and split -> seconds a sample. The validation group comes first and fills the pipeline: the time from
    its end to the end of the last group is that of the training groups."""
    val, train = plan.manifest.layouts["val"].group(0, 0), list(_list_groups(plan.manifest.layouts["train"]))
    with progress.start("probing", total=None, unit="samples") as bar, Pipeline(plan, _Clock(bar)) as pipeline:
        clock, most = pipeline.bar, 2 * pipeline.crew.most_groups
        pipeline.write(chain([val], _until_late(train[: max(most, LEAST_GROUPS)], ahead=pipeline.crew.ahead)))
    first, last = clock.times[0], clock.times[-1]
    num_train = sum(group.stop - group.start for group in pipeline.written if group.split == "train")
    return pipeline.written, {
        "val": (first - clock.began_s) / (val.stop - val.start),
        "train": (last - first) / num_train,
    }


def _list_groups(layout: SplitLayout) -> Iterator[Group]:
    """All groups of a small cache, each view of a sample once, neighbours of different samples and views."""
    for round_ in range(layout.num_views):
        for index in range(layout.groups_per_view):
            yield layout.group((index + round_) % layout.num_views, index)


def _until_late(groups: Iterable[Group], *, ahead: int) -> Iterator[Group]:
    """Groups until the next one would end too late, were it as slow as those before it; `ahead` of them are only drawn."""
    began_s = time.monotonic()
    for count, group in enumerate(groups):
        done = max(count - ahead, 1)
        if count >= LEAST_GROUPS and (time.monotonic() - began_s) / done * (count + 1) > MOST_S:
            return
        yield group


class _Clock:
    """A bar that notes when each group was committed."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.began_s, self.times = bar, time.monotonic(), []

    def advance(self, count: int, *, size_bytes: int = 0) -> None:
        """One group more."""
        self.times.append(time.monotonic())
        self.bar.advance(count, size_bytes=size_bytes)


def _measure_documents(plan: Plan, root: Path) -> int:
    """Bytes of the manifest, every zarr.json and every basis of the whole cache."""
    open_for_writing(root, plan.manifest, plan.bases)
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def _measure_chunks(root: Path, layout: SplitLayout, groups: list[Group]) -> dict[str, np.ndarray]:
    """array -> bytes of each sample's chunk and its checksum, float64, in the same order for all arrays."""
    return {
        spec.name: np.concatenate([_read_sizes(root, layout, spec, group) for group in groups])
        for spec in layout.arrays
    }


def _read_sizes(root: Path, layout: SplitLayout, spec: ArraySpec, group: Group) -> np.ndarray:
    path, count = shard_path(root, spec, group), group.stop - group.start
    size_bytes, shard = path.stat().st_size, layout.shard_samples
    index = read_index(
        path, count=count, shard_samples=shard, size_bytes=size_bytes, chunk_bytes=None, cure="plan again"
    )
    return index[:count, 1].astype(np.float64)


def _time_score(root: Path, manifest: Manifest, *, num_classes: int) -> float:
    """Seconds a validation sample."""
    began_s = time.monotonic()
    count_answers(CacheReader(root, manifest, "val"), num_classes=num_classes, progress=Silent())
    return (time.monotonic() - began_s) / manifest.layouts["val"].num_samples
