"""Phase one: ask the teacher about every view once, keep what it said, shard group by shard group."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from kdcache.cache.folder import (
    add_information,
    check_changeable,
    check_free_space,
    check_same_cache,
    complete_views,
    find_free_bytes,
    find_missing_groups,
    open_for_writing,
)
from kdcache.cache.layout import Group, manifest_path
from kdcache.cache.lease import SCORE, read_holder, take_lease
from kdcache.cache.manifest import Manifest, find_manifest, read_manifest
from kdcache.cache.records import find_committed
from kdcache.cache.settings import build_manifest, check_encodings, choose_codecs, read_config
from kdcache.config import Config
from kdcache.data.voc import Split, download_voc, read_split
from kdcache.errors import CacheMismatchError
from kdcache.machine.devices import check_precision, choose_device
from kdcache.machine.workers import Worker, find_worker
from kdcache.models.teacher import build_teacher
from kdcache.models.weights import hash_weights
from kdcache.precompute.encoder import choose_encodings, choose_ranks
from kdcache.precompute.learning import adopt_bases, find_bases
from kdcache.precompute.pipeline import Pipeline, Plan
from kdcache.precompute.score import TeacherScore, score_teacher
from kdcache.progress import Progress, Silent

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class BuildSummary:
    """What this process of phase one did: samples and bytes written now, seconds, and how right the teacher is.

    score: None where another worker finds it: the one that ends last.
    """

    num_samples: int
    size_bytes: int
    time_s: float
    score: TeacherScore | None


def build_cache(config: Config, *, progress: Progress | None = None) -> BuildSummary:
    """Build the cache of the settings, or finish one that was interrupted; committed groups are not touched.

    Several processes may do so at once: each group is written by one of them. As workers (torchrun, SLURM)
    they begin at different ones, and end when nothing is left that no one has begun; the first waits for the others' last groups.

    Raises: SettingsError, DataError, TeacherError or CacheError, each before or between shard groups.
    """
    progress, began_s, worker = progress or Silent(), time.monotonic(), find_worker()
    plan, missing = open_plan(make_plan(config, progress))
    done = _write_missing(plan, missing, worker, progress)
    return finish_cache(
        config,
        done.written,
        size_bytes=done.written_bytes,
        worker=worker,
        progress=progress,
        began_s=began_s,
    )


def finish_cache(
    config: Config,
    written: list[Group],
    *,
    size_bytes: int,
    worker: Worker,
    progress: Progress,
    began_s: float,
) -> BuildSummary:
    """Tell what is complete now, and score the teacher where this is to do it.

    Args:
        written: groups committed by this process. size_bytes: of their shard files. began_s: when, of `time.monotonic`.
    """
    root = config.cache.path
    manifest = complete_views(root)
    score = _score_once(config, manifest, worker, progress)
    num_samples = sum(group.stop - group.start for group in written)
    return BuildSummary(num_samples, size_bytes, time.monotonic() - began_s, score)


def make_plan(config: Config, progress: Progress) -> Plan:
    """Read weights and data set, check every file, and say what the cache of these settings is.

    Raises: SettingsError, DataError, TeacherError, CacheError.
    """
    root = config.cache.path
    check_changeable(root)
    there = find_manifest(root)
    if there:  # before a data set is read for nothing
        cure = "give what the cache was built with, or set cache.path to another folder"
        check_encodings(root, read_config(there), config, cure=cure)
    codecs = choose_codecs(config, there)
    device = choose_device(config.teacher.device, field="teacher.device")
    check_precision(config.teacher.precision, device, field="teacher.precision")
    teacher, weights = build_teacher(
        config.teacher,
        num_classes=config.dataset.num_classes,
        levels=config.cache.levels,
        device=device,
    )
    levels = teacher.probe_levels()
    ranks = choose_ranks(config.cache, levels)
    download_voc(config.dataset)
    splits = read_splits(config, progress)
    bases = find_bases(
        config,
        ranks,
        there=there,
        levels=levels,
        splits=splits,
        teacher=teacher,
        progress=progress,
    )
    manifest = build_manifest(
        config,
        splits=splits,
        weights_sha256=hash_weights(weights),
        levels=levels,
        encodings=choose_encodings(config.cache, bases),
        codecs=codecs,
        device=device,
    )
    return Plan(config, manifest, splits, teacher, bases)


def read_splits(config: Config, progress: Progress) -> dict[str, Split]:
    """Both splits, every file checked."""
    names = {"train": config.dataset.train_split, "val": config.dataset.val_split}
    splits = {}
    for role, name in names.items():
        with progress.start(f"checking {name}", total=None, unit="samples") as bar:
            splits[role] = read_split(config.dataset, name, advance=bar.advance)
    return splits


def open_plan(plan: Plan) -> tuple[Plan, list[Group]]:
    """Make the folder ready; returns the plan for what is on disk and the groups still to be written, validation first."""
    path = manifest_path(plan.config.cache.path)
    began = path.is_file()
    try:
        return _open_once(plan)
    except CacheMismatchError:
        if began or not path.is_file():
            raise
        return _open_once(plan)  # begun by another process after we had looked for its bases


def _open_once(plan: Plan) -> tuple[Plan, list[Group]]:
    plan = adopt_bases(plan)
    root, manifest = plan.config.cache.path, plan.manifest
    free_bytes = find_free_bytes(root)
    layouts = check_same_cache(root, manifest).layouts
    missing = [
        group for split in ("val", "train") for group in find_missing_groups(root, layouts[split])
    ]
    needed = sum(
        layouts[split].sum_bytes([group for group in missing if group.split == split])
        for split in layouts
    )
    coded = any(array.codec for layout in layouts.values() for array in layout.arrays)
    check_free_space(root, needed_bytes=needed, free_bytes=free_bytes, at_most=coded)
    if not missing:  # versions and device are those of the process that wrote
        manifest = replace(manifest, information={"settings": manifest.information["settings"]})
    return replace(plan, manifest=open_for_writing(root, manifest, plan.bases)), missing


def _write_missing(
    plan: Plan, missing: list[Group], worker: Worker, progress: Progress
) -> Pipeline:
    """Write a worker's stripe, then what others have left; the first also waits for those that others hold, last of all: where
    they die, their groups are written here. Returns what wrote them.
    """
    root = plan.config.cache.path
    total = sum(group.stop - group.start for group in missing)
    with (
        progress.start("asking the teacher", total=total, unit="samples") as bar,
        Pipeline(plan, bar) as pipeline,
    ):
        held = pipeline.write(worker.own(missing))
        others = worker.others(missing)
        committed = set(
            find_committed(root, others)
        )  # one look, where looking for each would take long
        pipeline.advance(committed)
        held += pipeline.write(group for group in others if group not in committed)
        held = pipeline.write(held)  # a holder may have died, or only looked
        for group in held if worker.leads else ():
            holder = read_holder(root, group.name)
            log.warning("waiting for shard group %s, which %s is writing", group.name, holder)
            pipeline.write([group], wait=True)
    warn_of_shrunk(pipeline.shrunk, plan.config)
    return pipeline


def _score_once(
    config: Config, manifest: Manifest, worker: Worker, progress: Progress
) -> TeacherScore | None:
    """How right the teacher is; of several workers found by one that sees all groups. None for the others."""
    root, complete = config.cache.path, manifest.complete_views
    if any(complete[split] < layout.num_views for split, layout in manifest.layouts.items()):
        return None
    with take_lease(root, SCORE, wait=True):
        if worker.count > 1 and read_manifest(root).information.get("scored_views") == complete:
            return None
        score = score_teacher(
            root, manifest, num_classes=config.dataset.num_classes, progress=progress
        )
        add_information(root, {**score.to_information(), "scored_views": complete})
    return score


def warn_of_shrunk(views: list[dict], config: Config) -> None:
    """Say once that validation images were scaled down."""
    if views:
        log.warning(
            "%d validation images are larger than dataset.val_size (%s pixels, height and width) and were scaled down "
            "with their labels, the first from %s to %s: mIoU is measured on the smaller images",
            len(views), list(config.dataset.val_hw), list(views[0]["image_hw"]), list(views[0]["image_box"][2:]),
        )  # fmt: skip
