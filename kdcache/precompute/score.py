"""How right the teacher is, from cached logits: on val and on the training views."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader
from kdcache.metrics import compute_iou_per_class, compute_miou, count_confusion
from kdcache.models.inputs import resize_to
from kdcache.progress import Progress
from kdcache.storage import Storage

log = logging.getLogger("kdcache")
MOST_TRAIN = 500  # training samples, evenly over the split: enough for a third digit
WORSE_BY = 0.05


@dataclass(frozen=True)
class TeacherScore:
    """mIoU (0 to 1) on val and on the first training view, and val's IoU of each class.

    val_per_class: None for a class that does not occur.
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
    root: Storage, manifest: Manifest, *, num_classes: int, progress: Progress
) -> TeacherScore:
    """Compare cached logits with labels; warn of likely wrong weights or unsuitable views."""
    val, train = (
        count_answers(
            CacheReader(root, manifest, split, num_views=1),
            num_classes=num_classes,
            progress=progress,
        )
        for split in ("val", "train")
    )
    score = TeacherScore(compute_miou(val), compute_miou(train), compute_iou_per_class(val))
    if score.val_miou < min(0.25, 2 / num_classes):
        log.warning(
            "teacher: mIoU on val is %.3f, close to chance for %d classes; "
            "check teacher.weights and the order of the classes",
            score.val_miou, num_classes,
        )  # fmt: skip
    elif score.train_miou < score.val_miou - WORSE_BY:
        log.warning(
            "teacher: mIoU is %.3f on the training views, %.3f on val: it teaches worse than it "
            "can; views like those it was fitted on (augment.scale_min, scale_max, color_jitter, "
            "dataset.size) would help",
            score.train_miou, score.val_miou,
        )  # fmt: skip
    return score


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
