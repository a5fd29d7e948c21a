"""Confusion matrices and the mIoU computed from them. N: batch, H, W: size, K: classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcache.config import VOID
from kdcache.errors import refuse
from kdcache.models.inputs import resize_to


def count_confusion(prediction_NHW: Tensor, label_NHW: Tensor, *, num_classes: int) -> Tensor:
    """The confusion matrix of a batch: rows are labels, columns are predictions.

    Args:
        prediction_NHW, label_NHW: classes from 0 to K - 1, which are not looked at: that would wait
            for a GPU; pixels whose label is VOID do not count.
        num_classes: K.

    Returns: int64 [K, K].

    >>> count_confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), num_classes=2)
    tensor([[1, 1],
            [0, 1]])
    """
    pairs = label_NHW.long() * num_classes + prediction_NHW.long()
    void = num_classes**2  # counted behind the matrix: leaving pixels out would wait for a GPU
    pairs = torch.where(label_NHW != VOID, pairs, void).reshape(-1)
    counts = pairs.new_zeros(void + 1).scatter_add_(0, pairs, pairs.new_ones(1).expand_as(pairs))
    return counts[:-1].reshape(num_classes, num_classes)


def compute_iou_per_class(confusion_KK: Tensor) -> list[float | None]:
    """IoU of each class, 0 to 1; None for a class that no label holds.

    Where such a class is predicted the class of the label misses a pixel, so it costs there.

    Args:
        confusion_KK: counts, as `count_confusion` gives them.

    >>> prediction, label = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    >>> compute_iou_per_class(count_confusion(prediction, label, num_classes=3))
    [0.5, 0.5, None]
    """
    hits, labelled = confusion_KK.diagonal(), confusion_KK.sum(1)
    union = confusion_KK.sum(0) + labelled - hits
    rows = zip(hits.tolist(), union.tolist(), labelled.tolist(), strict=True)
    return [h / u if n else None for h, u, n in rows]


def compute_miou(confusion_KK: Tensor) -> float:
    """Mean IoU over the classes that occur in the labels, 0 to 1; 0.0 if none does.

    So it has one denominator for teacher, baseline and student, whatever they predict.

    Args:
        confusion_KK: counts, as `count_confusion` gives them.

    >>> prediction, label = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    >>> compute_miou(count_confusion(prediction, label, num_classes=3))  # class 2 does not count
    0.5
    """
    known = [iou for iou in compute_iou_per_class(confusion_KK) if iou is not None]
    return sum(known) / len(known) if known else 0.0


@dataclass(frozen=True)
class Evaluation:
    """Segmentation quality of a student on a split.

    confusion_KK: int64, rows are labels, columns predictions. miou, per_class_iou: 0 to 1; the IoU
    of a class that no label holds is None.
    """

    confusion_KK: Tensor
    miou: float
    per_class_iou: list[float | None]


@torch.inference_mode()
def evaluate_segmentation(student: Callable, batches: Iterable, *, num_classes: int) -> Evaluation:
    """mIoU of a student over all batches; every labelled pixel counts once.

    Args:
        student: images [N, 3, H, W] -> scores [N, num_classes, h, w] on any grid, or a tuple that
            begins with them. A module is evaluated in eval mode; then it and its parts return to
            their modes.
        batches: of (images, labels [N, H, W]), or objects with attributes `images` and `labels`,
            as those of `kdcache.open_cache(PATH).val.batches()`.

    Raises: SettingsError if the scores do not have `num_classes` channels, or a label is no class.

    >>> images, labels = torch.eye(3).reshape(1, 3, 1, 3), torch.tensor([[[0, 1, 0]]])
    >>> batches = [(images, labels)]  # the student below predicts 0, 1, 2
    >>> evaluate_segmentation(lambda images: images, batches, num_classes=3).per_class_iou
    [0.5, 1.0, None]
    """
    modes = (
        {module: module.training for module in student.modules()}
        if isinstance(student, nn.Module)
        else {}
    )
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    try:
        if isinstance(student, nn.Module):
            student.eval()
        for batch in batches:
            images, labels = (
                batch if isinstance(batch, (tuple, list)) else (batch.images, batch.labels)
            )
            scores = student(images)
            scores = scores if isinstance(scores, Tensor) else scores[0]
            if scores.shape[1] != num_classes:
                raise refuse(
                    "num_classes",
                    num_classes,
                    f"{scores.shape[1]}, the channels of the student's scores",
                )
            _check_labels(labels, num_classes)
            classes = resize_to(scores.float(), labels.shape[-2:]).argmax(1)
            confusion += count_confusion(classes, labels, num_classes=num_classes).cpu()
    finally:
        for module, training in modes.items():
            module.training = training
    return Evaluation(confusion, compute_miou(confusion), compute_iou_per_class(confusion))


def _check_labels(label_NHW: Tensor, num_classes: int) -> None:
    odd = label_NHW[(label_NHW != VOID) & ((label_NHW < 0) | (label_NHW >= num_classes))]
    if len(odd):
        expected = f"0 to {num_classes - 1}, or {VOID} for pixels that do not count"
        raise refuse("labels", int(odd[0]), expected)
