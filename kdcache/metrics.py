"""Confusion counts, and the mIoU they give: integers are added up, one division at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.config import VOID


def count_confusion(prediction_NHW: Tensor, label_NHW: Tensor, *, num_classes: int) -> Tensor:
    """How often each class (row: label) was called each class (column: prediction).

    Args:
        prediction_NHW, label_NHW: integer classes; pixels whose label is VOID do not count.
        num_classes: K.

    Returns: int64 [K, K].
    """
    counted = label_NHW != VOID
    pairs = label_NHW[counted].long() * num_classes + prediction_NHW[counted].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def compute_iou_per_class(confusion_KK: Tensor) -> list[float | None]:
    """Intersection over union of each class, 0 to 1; None for a class in neither labels nor predictions."""
    hits = confusion_KK.diagonal()
    union = confusion_KK.sum(0) + confusion_KK.sum(1) - hits
    return [int(h) / int(u) if u else None for h, u in zip(hits, union, strict=True)]


def compute_miou(confusion_KK: Tensor) -> float:
    """Mean IoU over the classes that occur in labels or predictions, 0 to 1; 0.0 where none does."""
    known = [iou for iou in compute_iou_per_class(confusion_KK) if iou is not None]
    return sum(known) / len(known) if known else 0.0
