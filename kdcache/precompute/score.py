"""How right the teacher is, from cached logits: on val and on the training views."""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.cache.index import read_group_record
from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader
from kdcache.config import Config
from kdcache.metrics import compute_iou_per_class, compute_miou, count_confusion
from kdcache.models.inputs import resize_to
from kdcache.progress import Progress
from kdcache.storage import Storage

log = logging.getLogger("kdcache")
MOST_TRAIN = 500  # training samples, evenly over the split: enough for a third digit
WORSE_BY = 0.05
# Sizes of views, as factors on how large val is shown, that a teacher fitted for val still bears:
# on CamVid 1 to 1.75 cost it 0.015, colour jitter and smaller views 0.1
SMALLEST, LARGEST = 0.95, 2.0


@dataclass(frozen=True)
class TeacherScore:
    """mIoU (0 to 1) on val and on the first training view, and val's IoU of each class.

    val_per_class: None for a class that no label holds.
    """

    val_miou: float
    train_miou: float
    val_per_class: list[float | None]

    def to_information(self) -> dict:
        """For the manifest."""
        return {
            "teacher_miou": self.val_miou,
            "teacher_train_miou": self.train_miou,
            "teacher_per_class_iou": self.val_per_class,
        }


def score_teacher(
    root: Storage, manifest: Manifest, *, config: Config, progress: Progress
) -> TeacherScore:
    """Compare cached logits with labels; warn of likely wrong weights or unsuitable views."""
    val, train = (
        count_answers(
            CacheReader(root, manifest, split, num_views=1),
            num_classes=config.dataset.num_classes,
            progress=progress,
        )
        for split in ("val", "train")
    )
    score = TeacherScore(compute_miou(val), compute_miou(train), compute_iou_per_class(val))
    scale = find_val_scale(root, manifest)
    warning = find_warning(score.val_miou, score.train_miou, config=config, val_scale=scale)
    if warning:
        log.warning("teacher: %s", warning)
    return score


def find_val_scale(root: Storage, manifest: Manifest) -> float:
    """How large val is shown, as a factor on its images: the median of the first shard group.

    1, or less if images had to shrink to `dataset.val_size`. Raises CacheError.
    """
    group = manifest.layouts["val"].group(0, 0)
    views = read_group_record(root, manifest, group).views
    scales = [view["image_box"][2] / view["image_hw"][0] for view in views if "image_hw" in view]
    return statistics.median(scales) if scales else 1.0


def find_warning(
    val_miou: float, train_miou: float, *, config: Config, val_scale: float
) -> str | None:
    """What is wrong with a teacher of these mIoUs (0 to 1), and what would mend it; else None.

    Args:
        val_miou, train_miou: on val and on the training views. val_scale: as `find_val_scale`.
    """
    num_classes = config.dataset.num_classes
    if val_miou < min(0.25, 2 / num_classes):
        return (
            f"mIoU on val is {val_miou:.3f}, close to chance for {num_classes} classes; "
            "check teacher.weights and the order of the classes"
        )
    if train_miou >= val_miou - WORSE_BY:
        return None
    changes = find_likenesses(config, val_scale=val_scale)
    likenesses = f"try {', '.join(changes)}, or " if changes else ""
    return (
        f"mIoU is {train_miou:.3f} on the training views, {val_miou:.3f} on val: it teaches worse "
        f"than it can; {likenesses}fit it on these views (`python -m cache_teacher fit`)"
    )


def find_likenesses(config: Config, *, val_scale: float) -> list[str]:
    """Settings that would make the training views more like val, each with what it is now.

    Together they are allowed: scale_max is at least scale_min.

    Args:
        val_scale: how large val is shown, as a factor on its images.
    """
    augment, size_hw, val_hw = config.augment, config.dataset.size_hw, config.dataset.val_hw
    wanted = []
    if augment.color_jitter > 0:
        wanted.append(("augment.color_jitter", 0, augment.color_jitter))
    low, high = augment.scale_min, augment.scale_max
    is_small, is_large = low < SMALLEST * val_scale, high > LARGEST * val_scale
    if is_small or low > LARGEST * val_scale:
        wanted.append(("augment.scale_min", val_scale, low))
    if is_large or is_small and high < val_scale:
        wanted.append(("augment.scale_max", LARGEST * val_scale, high))
    changes = [f"{name} {value:.2g} (is {now:g})" for name, value, now in wanted]
    if any(px < most for px, most in zip(size_hw, val_hw, strict=True)):
        changes.append(f"dataset.size {list(val_hw)} (is {list(size_hw)})")
    return changes


def choose_samples(split: str, count: int) -> range:
    """The samples of a split that are scored: all of val, up to MOST_TRAIN of train."""
    return range(0, count, 1 if split == "val" else -(-count // MOST_TRAIN))


def count_answers(reader: CacheReader, *, num_classes: int, progress: Progress) -> Tensor:
    """Confusion matrix int64 [K, K] of the teacher on the first view of a split."""
    layout = reader.layout
    samples, hw = choose_samples(layout.split, layout.num_samples), layout.array("label").item_shape
    confusion, title = torch.zeros(num_classes, num_classes, dtype=torch.int64), layout.split
    with progress.start(f"teacher's mIoU on {title}", total=len(samples), unit="samples") as bar:
        for sample in samples:
            logits = torch.from_numpy(reader.decode("logits", 0, sample))[None]
            label = torch.from_numpy(reader.read("label", 0, sample))[None]
            classes = resize_to(logits, hw).argmax(1)
            confusion += count_confusion(classes, label, num_classes=num_classes)
            bar.advance(1)
    return confusion
