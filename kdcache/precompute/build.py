"""Phase one: ask the teacher about every view once and store its answers, shard group by group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from kdcache.cache.layout import MANIFEST, SPLITS, UNLABELLED, Group, find_role
from kdcache.cache.lifecycle import (
    SCORE,
    add_information,
    complete_views,
    find_missing_groups,
    open_for_writing,
)
from kdcache.cache.manifest import read_manifest
from kdcache.cache.merge import GrownMeanwhileError, check_same_cache, find_begun
from kdcache.cache.records import find_committed
from kdcache.cache.settings import build_manifest, check_encodings, choose_codecs, read_config
from kdcache.config import Config
from kdcache.data.labels import check_classes
from kdcache.data.pictures import Split
from kdcache.data.voc import check_apart, download_voc, read_split, read_unlabelled
from kdcache.errors import CacheError, CacheMismatchError, Phrase, describe
from kdcache.machine.process import Worker, find_worker
from kdcache.models.networks import hash_network
from kdcache.models.teacher import Teacher, build_teacher, choose_teacher_device
from kdcache.models.weights import hash_weights
from kdcache.precompute.bases import adopt_bases, choose_encodings, choose_ranks, find_bases
from kdcache.precompute.grow import follow_lists
from kdcache.precompute.pipeline import Job, Pipeline
from kdcache.precompute.score import TeacherScore, score_teacher
from kdcache.progress import Bar, Progress, Silent
from kdcache.storage import Storage, open_storage

MOST_RACES = 5  # with processes that add other samples at the same time
ORDER = ("val", "train", UNLABELLED)  # in which splits are written
log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class BuildSummary:
    """What this process of phase one did.

    num_samples, size_bytes: written now. time_s: seconds. score: of the teacher; None if another
    worker finds it, the one that ends last.
    """

    num_samples: int
    size_bytes: int
    time_s: float
    score: TeacherScore | None


def build_cache(config: Config, *, progress: Progress | None = None) -> BuildSummary:
    """Build the cache of these settings, or finish one; committed groups are not touched.

    Several processes may do so at once: each group is written by one of them. As workers (torchrun,
    SLURM) they start at different groups and end when no group is left that nobody has begun; the
    first worker also waits for the others' last groups.

    Raises: SettingsError, DataError, TeacherError or CacheError, before or between shard groups.
    """
    progress, began_s, worker = progress or Silent(), time.monotonic(), find_worker()
    job, missing = open_job(prepare_job(config, progress), progress)
    total = sum(group.stop - group.start for group in missing)
    with progress.start("asking the teacher", total=total, unit="samples") as bar:
        done = write_missing(job, missing, worker, advance_by_group(bar))
    warn_of_shrunk(done.shrunk, config)
    score = finish_cache(config, worker, progress)
    num_samples = sum(group.stop - group.start for group in done.written)
    return BuildSummary(num_samples, done.written_bytes, time.monotonic() - began_s, score)


def prepare_job(config: Config, progress: Progress) -> Job:
    """Read weights and data set, check every file, and find out what the cache of `config` is.

    Raises: SettingsError, DataError, TeacherError, CacheError.
    """
    root = open_storage(config.cache.path)
    root.check_changeable()
    there = find_begun(root)
    if there:  # before a data set is read for nothing
        cure = "give what the cache was built with, or set cache.path to another folder"
        check_encodings(root, read_config(there), config, cure=cure)
    codecs = choose_codecs(config, there)
    teacher, weights = _load_teacher(config)
    targets = teacher.probe_targets(config.dataset.size_hw, config.dataset.val_hw)
    ranks = choose_ranks(config.cache, targets)
    download_voc(config.dataset)
    splits = read_splits(config, progress)
    bases = find_bases(
        config,
        ranks,
        there=there,
        targets=targets,
        splits=splits,
        teacher=teacher,
        progress=progress,
    )
    manifest = build_manifest(
        config,
        splits=splits,
        weights_sha256=hash_weights(weights),
        source=hash_network(config.teacher),
        targets=targets,
        encodings=choose_encodings(config.cache, bases),
        codecs=codecs,
        device=teacher.device,
    )
    return Job(config, manifest, splits, teacher, bases)


def _load_teacher(config: Config) -> tuple[Teacher, dict[str, Tensor]]:
    """The teacher on its device, and its weights."""
    device = choose_teacher_device(config.teacher)
    classes, levels = config.dataset.num_classes, config.cache.levels
    return build_teacher(config.teacher, num_classes=classes, levels=levels, device=device)


def read_splits(config: Config, progress: Progress) -> dict[str, Split]:
    """All splits that are asked for, checked; no two share an image. Raises DataError."""
    names = {"train": config.dataset.train_split, "val": config.dataset.val_split}
    splits = {}
    for role, name in names.items():
        with progress.start(f"checking {name}", total=None, unit="samples") as bar:
            splits[role] = read_split(config.dataset, name, advance=bar.advance)
    check_apart(splits)
    for line in check_classes(config.dataset, {role: s.pixels for role, s in splits.items()}):
        log.warning("%s", line)
    if config.dataset.unlabelled is not None:
        with progress.start(f"checking {UNLABELLED}", total=None, unit="samples") as bar:
            splits[UNLABELLED] = read_unlabelled(config.dataset, splits, advance=bar.advance)
    return splits


def open_job(job: Job, progress: Progress | None = None) -> tuple[Job, list[Group]]:
    """Make the cache ready to be written.

    Returns: the job with the manifest that is stored now, and the groups that are missing,
        validation first.
    Raises: CacheError.
    """
    storage, progress = open_storage(job.config.cache.path), progress or Silent()
    there = storage.exists(MANIFEST)
    for _ in range(MOST_RACES):
        try:
            return _open_once(job, progress)
        except GrownMeanwhileError:
            continue  # planned anew, beside what the other process has added
        except CacheMismatchError:
            if there or not storage.exists(MANIFEST):
                raise
            there = True  # another process began it after we had looked for its bases
    return _open_once(job, progress)


def _open_once(job: Job, progress: Progress) -> tuple[Job, list[Group]]:
    job = follow_lists(adopt_bases(job), progress)
    root, manifest = open_storage(job.config.cache.path), job.manifest
    free_bytes = root.find_free_bytes()
    merged, missing, needed = check_same_cache(root, manifest), [], 0
    for part in sorted(job.stored, key=lambda part: ORDER.index(find_role(part))):
        groups = find_missing_groups(root, merged, part)
        missing += groups
        needed += merged.layouts[part].sum_bytes(groups)
    coded = any(array.codec for layout in merged.layouts.values() for array in layout.arrays)
    check_free_space(root, needed_bytes=needed, free_bytes=free_bytes, at_most=coded)
    if not missing:  # versions and device stay those of the process that wrote
        manifest = replace(manifest, information={"settings": manifest.information["settings"]})
    return replace(job, manifest=open_for_writing(root, manifest, job.bases)), missing


def check_free_space(
    storage: Storage, *, needed_bytes: int, free_bytes: int, at_most: bool
) -> None:
    """Raise CacheError if the disk cannot hold what is still to be written.

    Args:
        at_most: whether a codec may make less of `needed_bytes`; then it only warns.
    """
    if needed_bytes > free_bytes and at_most:
        log.warning(
            "%s: up to %.2f GB are still to be written, as far as the codec gains nothing, and "
            "%.2f GB are free; a full disk ends in a line, and what is committed by then is kept",
            storage, needed_bytes / 1e9, free_bytes / 1e9,
        )  # fmt: skip
    elif needed_bytes > free_bytes:
        found, expected = (
            Phrase(f"{free_bytes / 1e9:.2f} GB"),
            Phrase(f"{needed_bytes / 1e9:.2f} GB or more"),
        )
        cure = (
            "make room, set cache.path to another disk or cache.encoding compact, "
            "or lower augment.views or cache.levels"
        )
        raise CacheError(
            describe(storage, field="free disk space", found=found, expected=expected, cure=cure)
        )


def advance_by_group(bar: Bar) -> Callable[[Group, int], None]:
    """For a `Pipeline`: advances the bar by the samples of each group."""

    def advance(group: Group, size_bytes: int) -> None:
        bar.advance(group.stop - group.start, size_bytes=size_bytes)

    return advance


def write_missing(
    job: Job, missing: list[Group], worker: Worker, done: Callable[[Group, int], None]
) -> Pipeline:
    """Write a worker's share of the missing groups, then what the others have left.

    The first worker also waits for groups that others hold, last of all: it writes them if the
    others die.

    Args:
        done: see `Pipeline`.

    Returns: the pipeline, which has ended and says what was written.
    """
    root, others = open_storage(job.config.cache.path), worker.others(missing)
    with Pipeline(job, done) as pipeline:
        held = pipeline.write(worker.own(missing))
        there = set(find_committed(root, others))  # one look: one for each group takes long
        pipeline.skip(there)
        held += pipeline.write(group for group in others if group not in there)
        held = pipeline.write(held)  # a holder may have died, or only looked
        for group in held if worker.leads else ():
            holder = root.read_holder(group.name)
            log.warning("waiting for shard group %s, which %s is writing", group.name, holder)
            pipeline.write([group], wait=True)
    return pipeline


def finish_cache(config: Config, worker: Worker, progress: Progress) -> TeacherScore | None:
    """Record which views are complete and, once all are, score the teacher.

    Of several workers the one that sees all groups scores; the others return None.
    """
    root = open_storage(config.cache.path)
    manifest = complete_views(root)
    wanted = SPLITS if config.dataset.unlabelled is None else manifest.identity
    complete = {split: manifest.count_complete(split) for split in wanted}
    if any(
        split in manifest.growing or complete[split] < manifest.listed[split].num_views
        for split in wanted
    ):
        return None
    scored = {split: complete[split] for split in SPLITS}
    with root.take_lease(SCORE, wait=True):
        if worker.count > 1 and read_manifest(root).information.get("scored_views") == scored:
            return None
        score = score_teacher(root, manifest, config=config, progress=progress)
        add_information(root, {**score.to_information(), "scored_views": scored})
    return score


def warn_of_shrunk(views: list[dict], config: Config) -> None:
    """Warn once that validation images were scaled down; `views` are their parameters."""
    if views:
        log.warning(
            "%d validation images are larger than dataset.val_size (%s pixels, height and width) "
            "and were scaled down with their labels, the first from %s to %s: "
            "mIoU is measured on the smaller images",
            len(views),
            list(config.dataset.val_hw),
            list(views[0]["image_hw"]),
            list(views[0]["image_box"][2:]),
        )
