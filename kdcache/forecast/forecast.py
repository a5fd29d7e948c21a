"""What phase one will take, before it is run: bytes by arithmetic and coded samples, time by running it on a few samples."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kdcache.cache.folder import (
    check_changeable,
    check_same_cache,
    find_folder,
    find_missing_groups,
)
from kdcache.cache.layout import ArraySpec, Group, SplitLayout, index_bytes
from kdcache.cache.manifest import Manifest
from kdcache.config import Config
from kdcache.errors import Phrase, SettingsError, describe
from kdcache.forecast.asking import MOST_KEPT, ask_teacher
from kdcache.forecast.comparison import expect_comparison
from kdcache.forecast.estimate import expect_chunk
from kdcache.forecast.probe import Probe, probe_cache
from kdcache.forecast.variants import CODECS, Variants, measure_variants
from kdcache.forecast.views import DRAWN, ViewBytes, measure_views
from kdcache.precompute.build import prepare_job
from kdcache.precompute.pipeline import Job
from kdcache.precompute.score import choose_samples
from kdcache.progress import Progress, Silent
from kdcache.storage.place import Place, is_far


@dataclass(frozen=True)
class _Measured:
    """What was measured, and seconds: of the teacher a sample, of the comparison at the end, of preparing, of all the rest."""

    probe: Probe
    views: ViewBytes
    variants: Variants
    teacher_s: float
    comparison_s: float
    setup_s: float
    rest_s: float


def forecast_cache(
    config: Config, *, num_compared: int = 0, progress: Progress | None = None
) -> dict:
    """Bytes, seconds, free disk and worth of the cache of these settings, as JSON values; nothing stays on the disk but what
    the settings let it download.

    Args:
        num_compared: samples that are compared with the teacher once the cache is built; that takes time, too.

    Raises: SettingsError, DataError, TeacherError or CacheError, as building it would; CacheError where the disk is too small
        even for the few samples that are made; OSError where no folder can be made beside the cache.
    """
    progress, began_s, root = progress or Silent(), time.monotonic(), config.cache.path
    _refuse_bucket(root)
    check_changeable(root)
    folder = find_folder(root)
    job = _plan_for_disk(prepare_job(config, progress))
    setup_s = time.monotonic() - began_s
    measured = _measure(job, num_compared=num_compared, setup_s=setup_s, progress=progress)
    layouts, probe, variants = job.manifest.layouts, measured.probe, measured.variants
    splits = {split: _describe_split(root, layout, measured) for split, layout in layouts.items()}
    size, times = _add_bytes(splits, probe), _add_times(splits, measured, job.manifest)
    device = str(job.teacher.device)
    return {
        "path": str(root),
        "encoding": config.cache.kinds,
        "codec": config.cache.codec_name,
        "splits": splits,
        "size": size,
        "disk": _describe_disk(folder, size["missing_bytes"]),
        "time": times,
        "break_even": _break_even(
            layouts["train"], teacher_s=measured.teacher_s, build_s=times["all_s"]
        ),
        "others": [asdict(variant) for variant in variants.others],
        "compared": {
            "num_samples": variants.num_samples,
            "here_bytes": variants.here_bytes,
            "left_out": variants.left_out,
        },
        "probe": {
            "num_samples": probe.num_samples,
            "num_views": measured.views.num_views,
            "device": device,
            "time_s": measured.rest_s,
        },
    }


def _refuse_bucket(root: Place) -> None:
    if is_far(root):
        expected = Phrase("a folder, where plan makes a few samples")
        cure = "give a local --cache.path, and with --bandwidth what the bucket takes"
        raise SettingsError(
            describe("settings", field="cache.path", found=str(root), expected=expected, cure=cure)
        )


def _measure(job: Job, *, num_compared: int, setup_s: float, progress: Progress) -> _Measured:
    """Everything that takes time; the first questions warm the teacher up."""
    began_s = time.monotonic()
    asked = {"val": ask_teacher(job, "val", least=1, progress=progress)}
    probe = probe_cache(job, progress=progress)
    asked["train"] = ask_teacher(job, "train", least=MOST_KEPT, progress=progress)
    views = measure_views(job, CODECS, progress=progress)
    variants = measure_variants(job, asked, views, progress=progress)
    teacher_s = asked["train"].sample_s
    comparison_s = expect_comparison(job, num_samples=num_compared, teacher_s=teacher_s)
    return _Measured(
        probe, views, variants, teacher_s, comparison_s, setup_s, time.monotonic() - began_s
    )


def _plan_for_disk(job: Job) -> Job:
    """The job with the views that the cache would have: those there, if they are more. Raises CacheError for another cache."""
    manifest = check_same_cache(job.config.cache.path, job.manifest)
    augment = replace(job.config.augment, views=manifest.layouts["train"].num_views)
    return replace(job, config=replace(job.config, augment=augment), manifest=manifest)


def _describe_split(root: Path, layout: SplitLayout, measured: _Measured) -> dict:
    """Grid and bytes of a split, array by array; num_missing counts samples of all views."""
    missing, chunks = find_missing_groups(root, layout), _expect_chunks(layout, measured)
    return {
        "num_samples": layout.num_samples,
        "num_views": layout.num_views,
        "shard_samples": layout.shard_samples,
        "groups": layout.num_groups,
        "groups_committed": layout.num_groups - len(missing),
        "num_missing": _count(missing),
        "arrays": {
            spec.name: _describe_array(spec, layout, missing, chunks[spec.name])
            for spec in layout.arrays
        },
    }


def _expect_chunks(layout: SplitLayout, measured: _Measured) -> dict[str, float]:
    """array -> mean bytes of a chunk and its checksum over the whole split: images and labels as the many that were coded
    without the teacher, answers as the probe's."""
    views, found = measured.views.chunk_bytes, measured.probe.chunk_bytes[layout.split]
    image_mean = views[layout.split, layout.array("image")]
    return {
        spec.name: views[layout.split, spec]
        if spec.name in DRAWN
        else expect_chunk(spec, found[spec.name], images=found["image"], image_mean=image_mean)
        for spec in layout.arrays
    }


def _describe_array(
    spec: ArraySpec, layout: SplitLayout, missing: list[Group], chunk_bytes: float
) -> dict:
    """Bytes of an array's shard files, checksums and indices included: exact without a codec, else as samples were coded."""
    index, num_all = index_bytes(layout.shard_samples), layout.num_views * layout.num_samples
    return {
        "dtype": spec.dtype,
        "item_shape": list(spec.item_shape),
        "codec": spec.codec.to_dict() if spec.codec else None,
        "exact": spec.codec is None,
        "sample_bytes": round(chunk_bytes),
        "bytes": round(num_all * chunk_bytes) + layout.num_groups * index,
        "missing_bytes": round(_count(missing) * chunk_bytes) + len(missing) * index,
    }


def _add_bytes(splits: Mapping[str, dict], probe: Probe) -> dict:
    """Of all arrays and documents; `missing_bytes`: of those that are still to be written."""
    arrays = [array for split in splits.values() for array in split["arrays"].values()]
    records = sum(
        probe.record_bytes[name] * split["num_samples"] * split["num_views"]
        for name, split in splits.items()
    )
    missing = sum(probe.record_bytes[name] * split["num_missing"] for name, split in splits.items())
    begun = any(split["groups_committed"] for split in splits.values())
    array_bytes, document_bytes = (
        sum(array["bytes"] for array in arrays),
        probe.document_bytes + round(records),
    )
    missing_bytes = (
        sum(array["missing_bytes"] for array in arrays)
        + round(missing)
        + (0 if begun else probe.document_bytes)
    )
    return {
        "array_bytes": array_bytes,
        "document_bytes": document_bytes,
        "bytes": array_bytes + document_bytes,
        "missing_bytes": missing_bytes,
        "exact": all(array["exact"] for array in arrays),
    }


def _add_times(splits: Mapping[str, dict], measured: _Measured, manifest: Manifest) -> dict:
    """Seconds of each part of phase one for what is missing, their sum, and that of the whole cache."""
    sample_s, setup_s, comparison_s = (
        measured.probe.sample_s,
        measured.setup_s,
        measured.comparison_s,
    )
    whole_s = sum(
        facts["num_samples"] * facts["num_views"] * sample_s[split]
        for split, facts in splits.items()
    )
    score_s = _expect_score(manifest, measured.probe)
    missing = any(facts["num_missing"] for facts in splits.values())
    parts = {
        "setup_s": setup_s,
        "val_s": splits["val"]["num_missing"] * sample_s["val"],
        "train_s": splits["train"]["num_missing"] * sample_s["train"],
        "score_s": score_s,
        "comparison_s": comparison_s if missing else 0.0,  # once built, a cache is compared once
    }
    return {
        **parts,
        "missing_s": sum(parts.values()),
        "all_s": setup_s + whole_s + score_s + comparison_s,
    }


def _expect_score(manifest: Manifest, probe: Probe) -> float:
    """Seconds to compare what was cached with labels, in proportion to their pixels."""
    pixels = {split: layout.array("label").item_bytes for split, layout in manifest.layouts.items()}
    looked = {
        split: len(choose_samples(split, layout.num_samples))
        for split, layout in manifest.layouts.items()
    }
    return sum(probe.score_s * looked[split] * pixels[split] / pixels["val"] for split in pixels)


def _break_even(layout: SplitLayout, *, teacher_s: float, build_s: float) -> dict:
    """A teacher in every step is asked about each training image once an epoch."""
    epoch_s = layout.num_samples * teacher_s
    return {"teacher_s": teacher_s, "saved_s_per_epoch": epoch_s, "epochs": build_s / epoch_s}


def _describe_disk(folder: Path, missing_bytes: int) -> dict:
    free = shutil.disk_usage(folder).free
    return {"folder": str(folder), "free_bytes": free, "fits": missing_bytes <= free}


def _count(groups: list[Group]) -> int:
    return sum(group.stop - group.start for group in groups)
