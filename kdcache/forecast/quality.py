"""How right the teacher is on a few samples, before a cache is built. K: classes."""

from __future__ import annotations

import torch

from kdcache.config import Config
from kdcache.forecast.encodings import Asked
from kdcache.forecast.probe import Probe
from kdcache.metrics import compute_miou, count_confusion
from kdcache.models.inputs import resize_to
from kdcache.precompute.score import find_warning


def estimate_score(config: Config, probe: Probe, train: Asked) -> dict:
    """mIoU (0 to 1) on the probe's val samples and on training views, and the warning they earn.

    Args:
        train: what was asked about training views.

    Returns: JSON values; "warning" is None if phase one would have none.
    """
    labels_NHW, num_classes = torch.from_numpy(train.views["label"]), config.dataset.num_classes
    confusion_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for logits, label_HW in zip(train.answers["logits"], labels_NHW, strict=True):
        classes = resize_to(logits[None], label_HW.shape).argmax(1)
        confusion_KK += count_confusion(classes, label_HW[None], num_classes=num_classes)
    val_miou, train_miou = compute_miou(probe.val_confusion_KK), compute_miou(confusion_KK)
    warning = find_warning(val_miou, train_miou, config=config, val_scale=probe.val_scale)
    counts = {"val": probe.num_samples["val"], "train": len(labels_NHW)}
    return {
        "val_miou": val_miou,
        "train_miou": train_miou,
        "num_samples": counts,
        "warning": warning,
    }
