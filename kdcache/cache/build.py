"""Phase one: ask the teacher about every view once, keep what it said, shard group by shard group."""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.layout import Group, SplitLayout
from kdcache.cache.manifest import Manifest, read_manifest, write_manifest
from kdcache.cache.plan import plan_cache
from kdcache.cache.reader import open_split
from kdcache.cache.records import has_record
from kdcache.cache.writer import check_free_space, check_same_cache, find_missing_groups, open_for_writing, write_group
from kdcache.config import Config
from kdcache.data.augment import apply, draw, fit_inside
from kdcache.data.voc import Sample, Split, download_voc, read_sample, read_split
from kdcache.devices import check_precision, choose_device
from kdcache.errors import TeacherError
from kdcache.lock import hold_folder
from kdcache.metrics import compute_iou_per_class, compute_miou, count_confusion
from kdcache.models.inputs import resize_to
from kdcache.models.teacher import Teacher, build_teacher
from kdcache.models.weights import hash_weights
from kdcache.report.progress import Progress, Silent

log = logging.getLogger("kdcache")
FLOAT16_MAX = 65_504.0


@dataclass(frozen=True)
class BuildSummary:
    """What phase one did: samples and bytes written now, seconds, and the teacher's mIoU (0 to 1) on val."""

    num_samples: int
    size_bytes: int
    time_s: float
    teacher_miou: float


def build_cache(config: Config, *, progress: Progress | None = None) -> BuildSummary:
    """Build the cache of the settings, or finish one that was interrupted; committed groups are not touched.

    Raises: SettingsError, DataError, TeacherError or CacheError, each before or between shard groups.
    """
    progress, began_s = progress or Silent(), time.monotonic()
    device = choose_device(config.teacher.device, field="teacher.device")
    check_precision(config.teacher.precision, device, field="teacher.precision")
    teacher, weights = build_teacher(
        config.teacher, num_classes=config.dataset.num_classes, levels=config.cache.levels, device=device
    )
    download_voc(config.dataset)
    splits = read_splits(config, progress)
    plan = plan_cache(
        config, splits=splits, weights_sha256=hash_weights(weights), levels=teacher.probe_levels(), device=device
    )
    missing = _open(config.cache.path, plan)
    with hold_folder(config.cache.path):
        missing = [group for group in missing if not has_record(config.cache.path, group)]  # written before we held it
        _write_missing(config, plan, missing, splits=splits, teacher=teacher, progress=progress)
    confusion = _score_teacher(config.cache.path, plan.layouts["val"], config.dataset.num_classes, progress)
    miou = _keep_score(config.cache.path, confusion)
    num_samples = sum(group.stop - group.start for group in missing)
    size_bytes = sum((group.stop - group.start) * plan.layouts[group.split].item_bytes for group in missing)
    return BuildSummary(num_samples, size_bytes, time.monotonic() - began_s, miou)


def read_splits(config: Config, progress: Progress) -> dict[str, Split]:
    """Both splits, every file checked."""
    names = {"train": config.dataset.train_split, "val": config.dataset.val_split}
    splits = {}
    for role, name in names.items():
        with progress.start(f"checking {name}", total=None, unit="samples") as bar:
            splits[role] = read_split(config.dataset, name, advance=bar.advance)
    return splits


def _open(root: Path, plan: Manifest) -> list[Group]:
    """Make the folder ready; returns the groups still to be written, validation first."""
    check_same_cache(root, plan)
    missing = [g for split in ("val", "train") for g in find_missing_groups(root, plan.layouts[split])]
    needed = sum(_group_bytes(plan.layouts[g.split]) for g in missing)
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    check_free_space(root, needed_bytes=needed, free_bytes=shutil.disk_usage(existing).free)
    if not missing:  # versions and device are those of the process that wrote
        plan = replace(plan, information={"settings": plan.information["settings"]})
    open_for_writing(root, plan)
    return missing


def _write_missing(
    config: Config,
    plan: Manifest,
    missing: list[Group],
    *,
    splits: dict[str, Split],
    teacher: Teacher,
    progress: Progress,
) -> None:
    total, shrunk = sum(g.stop - g.start for g in missing), []
    with progress.start("asking the teacher", total=total, unit="samples") as bar, ThreadPoolExecutor(4) as pool:
        for group in missing:
            samples = splits[group.split].samples[group.start : group.stop]
            made = list(pool.map(lambda sample, g=group: _make_view(config, sample, g), samples))
            images, labels, views = (list(part) for part in zip(*made, strict=True))
            arrays = {"image": np.stack(images), "label": np.stack(labels)}
            ids = [sample.id for sample in samples]
            arrays |= _ask(teacher, arrays["image"], ids=ids, batch_size=config.teacher.batch_size, split=group.split)
            layout = plan.layouts[group.split]
            write_group(config.cache.path, layout, group, arrays=arrays, ids=ids, views=views)
            shrunk += [view for view in views if group.split == "val" and view["image_box"][2:] != view["image_hw"]]
            bar.advance(len(ids), size_bytes=len(ids) * layout.item_bytes)
    if shrunk:
        log.warning(
            "%d validation images are larger than dataset.val_size (%s pixels, height and width) and were scaled down with "
            "their labels, the first from %s to %s: mIoU is measured on the smaller images",
            len(shrunk), list(config.dataset.val_hw), list(shrunk[0]["image_hw"]), list(shrunk[0]["image_box"][2:]),
        )  # fmt: skip


def _make_view(config: Config, sample: Sample, group: Group) -> tuple[np.ndarray, np.ndarray, dict]:
    """Image, label and parameters of one stored sample."""
    image, label = read_sample(config.dataset, sample)
    if group.split == "train":
        view = draw(
            config.augment, sample_id=sample.id, view=group.view, image_hw=label.shape, size_hw=config.dataset.size_hw
        )
        return *apply(view, image, label), {**view.to_dict(), "image_box": view.image_box}
    padded_image, padded_label, shrunk_hw = fit_inside(image, label, size_hw=config.dataset.val_hw)
    return padded_image, padded_label, {"image_box": (0, 0, *shrunk_hw), "image_hw": label.shape}


def _ask(teacher: Teacher, images: np.ndarray, *, ids: list[str], batch_size: int, split: str) -> dict[str, np.ndarray]:
    """The teacher's answers for one shard group as float16."""
    answers: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), batch_size):
        answer = teacher(torch.from_numpy(images[start : start + batch_size]))
        names = ids[start : start + batch_size]
        for name in answer if split == "train" else ("logits",):
            _check_float16(answer[name], name=name, ids=names)
            answers.setdefault(name, []).append(answer[name].half().contiguous().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in answers.items()}


def _check_float16(values: Tensor, *, name: str, ids: list[str]) -> None:
    """Raises TeacherError naming the sample whose answer float16 cannot hold."""
    peak = values.abs().amax(dim=(1, 2, 3))
    bad = ~(peak <= FLOAT16_MAX)  # NaN, too
    if bad.any():
        row = int(bad.nonzero()[0])
        raise TeacherError(
            f"sample {ids[row]!r}: teacher's {name} reaches {peak[row].item():g}, expected finite values up to {FLOAT16_MAX:g}; "
            "float16 cannot hold it: check the weights, teacher.precision and teacher.layers"
        )


def _score_teacher(root: Path, layout: SplitLayout, num_classes: int, progress: Progress) -> Tensor:
    """Confusion of the teacher on val, from what was cached."""
    reader, hw = open_split(root, layout), layout.array("label").item_shape
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    with progress.start("teacher's mIoU on val", total=layout.num_samples, unit="samples") as bar:
        for sample in range(layout.num_samples):
            logits = torch.from_numpy(reader.read("logits", 0, sample))[None].float()
            label = torch.from_numpy(reader.read("label", 0, sample))[None]
            confusion += count_confusion(resize_to(logits, hw).argmax(1), label, num_classes=num_classes)
            bar.advance(1)
    return confusion


def _keep_score(root: Path, confusion: Tensor) -> float:
    """Write the teacher's IoUs (0 to 1) into the manifest; warns where they are near chance."""
    miou, num_classes, manifest = compute_miou(confusion), len(confusion), read_manifest(root)
    score = {"teacher_miou": miou, "teacher_per_class_iou": compute_iou_per_class(confusion)}
    write_manifest(root, replace(manifest, information={**manifest.information, **score}))
    if miou < min(0.25, 2 / num_classes):
        log.warning(
            "teacher: mIoU on val is %.3f, close to chance for %d classes; check teacher.weights and the order of the classes",
            miou, num_classes,
        )  # fmt: skip
    return miou


def _group_bytes(layout: SplitLayout) -> int:
    return -(-layout.file_bytes // layout.num_groups)
