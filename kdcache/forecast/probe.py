"""A few shard groups of a cache that is not there yet: really made, in a folder beside it that is gone afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from kdcache.cache.folder import open_for_writing
from kdcache.cache.layout import ArraySpec, Group, SplitLayout, commit_path, shard_path
from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.shard import read_index
from kdcache.data.voc import Split
from kdcache.forecast.disk import count_fitting, count_least, list_groups, say_what_is_lacking
from kdcache.forecast.folder import CACHE, DOCUMENTS, make_folder
from kdcache.forecast.rates import Clock, find_rates, stop_in_time
from kdcache.forecast.views import pick_samples
from kdcache.precompute.pipeline import Job, Pipeline
from kdcache.precompute.score import count_answers
from kdcache.progress import Progress, Silent

LEAST_VAL_SAMPLES = 4  # behind the first group, which fills the pipeline
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


def probe_cache(job: Job, *, progress: Progress) -> Probe:
    """Run phase one on some groups of both splits, spread over samples and views.

    Raises: DataError, TeacherError; CacheError where the disk is too small for that or refuses it.
    """
    with make_folder(job.config.cache.path) as folder:
        small = _shrink(job, folder / CACHE)
        root, manifest = small.config.cache.path, small.manifest
        with say_what_is_lacking(job, small.manifest, folder):
            document_bytes = _measure_documents(job, folder / DOCUMENTS)
            open_for_writing(root, manifest, small.bases)
            written, sample_s = _write_groups(small, progress)
        num_samples, chunk_bytes, record_bytes = {}, {}, {}
        for split, layout in manifest.layouts.items():
            groups = [group for group in written if group.split == split]
            num_samples[split] = sum(_count(group) for group in groups)
            chunk_bytes[split] = _measure_chunks(root, layout, groups)
            records = sum(commit_path(root, group).stat().st_size for group in groups)
            record_bytes[split] = records / num_samples[split]
        score_s = _time_score(root, manifest, num_classes=job.config.dataset.num_classes)
        return Probe(num_samples, sample_s, score_s, chunk_bytes, record_bytes, document_bytes)


def _shrink(job: Job, root: Path) -> Job:
    """The same cache of fewer samples, at `root`, every group of it spread over the split; of val a batch a group."""
    config, batch = job.config, job.config.teacher.batch_size
    shard = min(config.cache.shard_samples, max(SHARD_SAMPLES // batch, 1) * batch)
    shards = {"val": min(batch, shard), "train": shard}
    most = {
        "val": shards["val"] * (1 + -(-LEAST_VAL_SAMPLES // shards["val"])),
        "train": shard * 64,
    }
    splits = {name: _choose(split, most[name]) for name, split in job.splits.items()}
    layouts = {
        name: replace(layout, num_samples=len(splits[name].samples), shard_samples=shards[name])
        for name, layout in job.manifest.layouts.items()
    }
    manifest = replace(job.manifest, layouts=layouts)
    return replace(
        job,
        config=replace(config, cache=replace(config.cache, path=root)),
        manifest=manifest,
        splits=splits,
    )


def _choose(split: Split, most: int) -> Split:
    samples = tuple(split.samples[index] for index in pick_samples(len(split.samples), most))
    return replace(split, samples=samples)


def _write_groups(job: Job, progress: Progress) -> tuple[list[Group], dict[str, float]]:
    """Groups written, and split -> seconds a sample."""
    layouts, root = job.manifest.layouts, job.config.cache.path
    val, train = list(layouts["val"].groups()), list_groups(layouts["train"])
    least, fitting = count_least(layouts["train"]), count_fitting(job.manifest, root)
    with (
        progress.start("probing", total=None, unit="samples") as bar,
        Pipeline(job, Clock(bar)) as pipeline,
    ):
        clock, crew = pipeline.done, pipeline.crew
        most = max(min(2 * crew.most_groups, fitting), least)
        pipeline.write(chain(val, stop_in_time(train[:most], least=least, ahead=crew.ahead)))
    counts = {
        split: [_count(group) for group in pipeline.written if group.split == split]
        for split in layouts
    }
    return pipeline.written, find_rates(
        clock.times, began_s=clock.began_s, writers=crew.writers, **counts
    )


def _count(group: Group) -> int:
    return group.stop - group.start


def _measure_documents(job: Job, root: Path) -> int:
    """Bytes of the manifest, every zarr.json and every basis of the whole cache."""
    open_for_writing(root, job.manifest, job.bases)
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def _measure_chunks(root: Path, layout: SplitLayout, groups: list[Group]) -> dict[str, np.ndarray]:
    """array -> bytes of each sample's chunk and its checksum, float64, in the same order for all arrays."""
    return {
        spec.name: np.concatenate([_read_sizes(root, layout, spec, group) for group in groups])
        for spec in layout.arrays
    }


def _read_sizes(root: Path, layout: SplitLayout, spec: ArraySpec, group: Group) -> np.ndarray:
    path, count = shard_path(root, spec, group), _count(group)
    size_bytes, shard = path.stat().st_size, layout.shard_samples
    index = read_index(
        path,
        count=count,
        shard_samples=shard,
        size_bytes=size_bytes,
        chunk_bytes=None,
        cure="plan again",
    )
    return index[:count, 1].astype(np.float64)


def _time_score(root: Path, manifest: Manifest, *, num_classes: int) -> float:
    """Seconds a validation sample."""
    began_s = time.monotonic()
    count_answers(CacheReader(root, manifest, "val"), num_classes=num_classes, progress=Silent())
    return (time.monotonic() - began_s) / manifest.layouts["val"].num_samples
