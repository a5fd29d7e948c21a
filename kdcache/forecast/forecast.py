"""What phase one will take, from running it on a few samples."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from kdcache.analysis import students
from kdcache.cache.encodings import Targets
from kdcache.cache.layout import SPLITS, ArraySpec, Group, SplitLayout, find_role, index_bytes
from kdcache.cache.lifecycle import find_missing_groups
from kdcache.cache.manifest import Manifest
from kdcache.cache.merge import check_same_cache
from kdcache.config import Config
from kdcache.errors import Phrase, SettingsError, describe
from kdcache.forecast.answers import (
    MOST_KEPT,
    EncodingTable,
    ask_teacher,
    estimate_score,
    weigh_encodings,
)
from kdcache.forecast.probe import Probe, count_samples, probe_cache
from kdcache.precompute.build import ORDER, prepare_job
from kdcache.precompute.grow import follow_lists
from kdcache.precompute.pipeline import Job
from kdcache.precompute.score import choose_samples
from kdcache.progress import Progress, Silent
from kdcache.storage import Storage, open_storage
from kdcache.storage.local import find_folder
from kdcache.training.learner import build_learner
from kdcache.training.loop import train_step
from kdcache.training.run import make_trial_batch

NUM_STUDENTS, NUM_SOURCES = 2, 2  # of the comparison: fresh and trained; cached and live answers


@dataclass(frozen=True)
class _Measured:
    """What was measured.

    Seconds: teacher_s of a sample, comparison_s of the comparison that ends phase one, setup_s of
    reading weights and data set, rest_s of all other measuring. score: of the teacher, see
    `estimate_score`.
    """

    probe: Probe
    encodings: EncodingTable
    score: dict
    teacher_s: float
    comparison_s: float
    setup_s: float
    rest_s: float


def forecast_cache(
    config: Config, *, num_compared: int = 0, progress: Progress | None = None
) -> dict:
    """Bytes, seconds, free disk and break-even of the cache of these settings, as JSON values.

    Nothing stays on the disk, except a data set that the settings have downloaded.

    Args:
        num_compared: samples that are compared with the teacher once the cache is built.

    Raises: SettingsError, DataError, TeacherError or CacheError, as building would; CacheError if
        the disk is too small even for the few samples that are made; OSError if no folder can be
        made beside the cache.
    """
    progress, began_s, root = (
        progress or Silent(),
        time.monotonic(),
        open_storage(config.cache.path),
    )
    _refuse_bucket(root)
    root.check_changeable()
    folder = find_folder(Path(root.address))
    job, missing = _plan_for_disk(prepare_job(config, progress), progress)
    setup_s = time.monotonic() - began_s
    measured = _measure(job, num_compared=num_compared, setup_s=setup_s, progress=progress)
    return _describe(job, measured, missing, folder)


def _describe(
    job: Job, measured: _Measured, missing: Mapping[str, list[Group]], folder: Path
) -> dict:
    config, layouts, probe = job.config, job.manifest.layouts, measured.probe
    root, table = config.cache.path, measured.encodings
    splits = {
        split: _describe_split(layout, probe, missing[split]) for split, layout in layouts.items()
    }
    size, times = _add_bytes(splits, probe), _add_times(splits, measured, job.manifest)
    free, needed = shutil.disk_usage(folder).free, size["missing_bytes"]
    teacher_s = measured.teacher_s
    num_samples = sum(layout.num_samples for split, layout in layouts.items() if split != "val")
    epoch_s = num_samples * teacher_s  # of a teacher in every step
    compared, device = asdict(table), str(job.teacher.device)
    return {
        "path": str(root),
        "encoding": config.cache.kinds,
        "codec": config.cache.codec_name,
        "splits": splits,
        "size": size,
        "disk": {"folder": str(folder), "free_bytes": free, "fits": needed <= free},
        "time": times,
        "break_even": {
            "teacher_s": teacher_s,
            "saved_s_per_epoch": epoch_s,
            "epochs": times["all_s"] / epoch_s,
        },
        "teacher": measured.score,
        "others": compared.pop("others"),
        "compared": compared,
        "probe": {
            "num_samples": probe.num_samples,
            "device": device,
            "time_s": measured.rest_s,
        },
    }


def _refuse_bucket(root: Storage) -> None:
    if root.is_remote:
        expected = Phrase("a folder, where plan makes a few samples")
        cure = "give a local --cache.path, and with --bandwidth what the bucket takes"
        raise SettingsError(
            describe("settings", field="cache.path", found=str(root), expected=expected, cure=cure)
        )


def _plan_for_disk(job: Job, progress: Progress) -> tuple[Job, dict[str, list[Group]]]:
    """The job with the views of the cache that is there, if they are more than the settings'.

    Returns: also split -> the shard groups that are missing, those of new samples included.
    Raises: CacheMismatchError if another cache is there.
    """
    root = job.storage
    manifest = check_same_cache(root, follow_lists(job, progress).manifest)
    missing: dict[str, list[Group]] = {split: [] for split in manifest.identity}
    for part in manifest.layouts:
        missing[find_role(part)] += find_missing_groups(root, manifest, part)
    views = manifest.layouts["train"].num_views
    if manifest.parts:  # as a cache of today's lists, in one part each
        grids = {
            split: replace(layout, num_views=manifest.layouts[split].num_views)
            for split, layout in job.manifest.layouts.items()
        }
        manifest = replace(job.manifest, layouts=grids)
    augment = replace(job.config.augment, views=views)
    job = replace(job, config=replace(job.config, augment=augment), manifest=manifest)
    return job, missing


def _measure(job: Job, *, num_compared: int, setup_s: float, progress: Progress) -> _Measured:
    """Everything that takes time; the first questions warm the teacher up."""
    began_s = time.monotonic()
    asked = {"val": ask_teacher(job, "val", least=1, progress=progress)}
    probe = probe_cache(job, progress=progress)
    asked["train"] = ask_teacher(job, "train", least=MOST_KEPT, progress=progress)
    score = estimate_score(job.config, probe, asked["train"])
    table, teacher_s = weigh_encodings(job, asked, progress=progress), asked["train"].sample_s
    comparison_s = _expect_comparison(job, num_samples=num_compared, teacher_s=teacher_s)
    rest_s = time.monotonic() - began_s
    return _Measured(probe, table, score, teacher_s, comparison_s, setup_s, rest_s)


def _describe_split(layout: SplitLayout, probe: Probe, missing: list[Group]) -> dict:
    """Arrays and bytes of a split; num_missing counts samples of all views."""
    chunk_bytes = probe.chunk_bytes[layout.split]
    return {
        "num_samples": layout.num_samples,
        "num_views": layout.num_views,
        "shard_samples": layout.shard_samples,
        "groups": layout.num_groups,
        "groups_committed": layout.num_groups - len(missing),
        "num_missing": sum(count_samples(missing)),
        "arrays": {
            spec.name: _describe_array(spec, layout, missing, chunk_bytes[spec.name])
            for spec in layout.arrays
        },
    }


def _describe_array(
    spec: ArraySpec, layout: SplitLayout, missing: list[Group], chunk_bytes: float
) -> dict:
    """Bytes of an array's shard files with checksums and indices; exact without a codec."""
    index, num_all = index_bytes(layout.shard_samples), layout.num_views * layout.num_samples
    missing_bytes = round(sum(count_samples(missing)) * chunk_bytes) + len(missing) * index
    return {
        "dtype": spec.dtype,
        "item_shape": list(spec.item_shape),
        "codec": spec.codec.to_dict() if spec.codec else None,
        "exact": spec.codec is None,
        "sample_bytes": round(chunk_bytes),
        "bytes": round(num_all * chunk_bytes) + layout.num_groups * index,
        "missing_bytes": missing_bytes,
    }


def _add_bytes(splits: Mapping[str, dict], probe: Probe) -> dict:
    """Bytes of all arrays and documents; `missing_bytes`: of those still to be written."""
    arrays = [array for split in splits.values() for array in split["arrays"].values()]
    records = missing_records = 0.0
    for name, split in splits.items():
        records += probe.record_bytes[name] * split["num_samples"] * split["num_views"]
        missing_records += probe.record_bytes[name] * split["num_missing"]
    begun = any(split["groups_committed"] for split in splits.values())
    array_bytes = sum(array["bytes"] for array in arrays)
    document_bytes = probe.document_bytes + round(records)
    missing_bytes = sum(array["missing_bytes"] for array in arrays) + round(missing_records)
    return {
        "array_bytes": array_bytes,
        "document_bytes": document_bytes,
        "bytes": array_bytes + document_bytes,
        "missing_bytes": missing_bytes + (0 if begun else probe.document_bytes),
        "exact": all(array["exact"] for array in arrays),
    }


def _add_times(splits: Mapping[str, dict], measured: _Measured, manifest: Manifest) -> dict:
    """Seconds of each part of phase one for what is missing, their sum, and of the whole cache."""
    score_s, sample_s = _expect_score(manifest, measured.probe), measured.probe.sample_s
    order = [split for split in ORDER if split in splits]

    def list_parts(counts: Mapping[str, int], comparison_s: float) -> dict[str, float]:
        return {
            "setup_s": measured.setup_s,
            **{f"{split}_s": counts[split] * sample_s[split] for split in order},
            "score_s": score_s,
            "comparison_s": comparison_s,
        }

    missing = {split: facts["num_missing"] for split, facts in splits.items()}
    whole = {split: facts["num_samples"] * facts["num_views"] for split, facts in splits.items()}
    # a complete cache is not compared again
    parts = list_parts(missing, measured.comparison_s if any(missing.values()) else 0.0)
    all_s = sum(list_parts(whole, measured.comparison_s).values())
    return {**parts, "missing_s": sum(parts.values()), "all_s": all_s}


def _expect_score(manifest: Manifest, probe: Probe) -> float:
    """Seconds to compare cached logits with labels, in proportion to their pixels."""
    val_pixels, total_s = manifest.layouts["val"].array("label").item_bytes, 0.0
    for split in SPLITS:
        layout = manifest.layouts[split]
        count = len(choose_samples(split, layout.num_samples))
        total_s += probe.score_s * count * layout.array("label").item_bytes / val_pixels
    return total_s


def _expect_comparison(job: Job, *, num_samples: int, teacher_s: float) -> float:
    """Seconds to compare `num_samples` with the teacher, without reading it and the cache.

    The gradients of one term are taken to cost as much as a training step.
    """
    if num_samples == 0:
        return 0.0
    count = max(min(job.config.train.batch_size, job.manifest.layouts["train"].num_samples), 2)
    sample_s, num_terms = _time_step(job, count) / count, 2 if job.config.cache.levels else 1
    gradients_s = NUM_STUDENTS * NUM_SOURCES * num_terms * sample_s
    return students.STEPS * count * sample_s + num_samples * (teacher_s + gradients_s)


def _time_step(job: Job, batch_size: int) -> float:
    """Seconds of a training step as the comparison does it, on zeros; one before it warms up."""
    device, levels = job.teacher.device, job.config.cache.levels
    config = students.plan_students(students.use_built_in(job.config), levels=levels, device=device)
    channels = {name: shape[0] for name, shape in job.targets.items()}
    learner = build_learner(config, teacher_channels=channels)
    bases = {level: torch.from_numpy(basis).to(device) for level, basis in job.bases.items()}
    learner.targets = Targets(job.manifest.encodings, bases)
    learner.student.train()
    arrays = job.manifest.layouts["train"].arrays
    batch = make_trial_batch(arrays, batch_size=batch_size, device=device)
    for step in range(2):
        began_s = time.monotonic()
        train_step(learner, batch, where=f"step {step} of a trial")
        if device.type == "cuda":  # in each: the next clock starts once the backward pass is over
            torch.cuda.synchronize(device)
    return time.monotonic() - began_s
