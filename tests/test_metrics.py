"""Confusion, IoU and mIoU against torchmetrics and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from kdcache.config import VOID
from kdcache.errors import SettingsError
from kdcache.metrics import (
    compute_iou_per_class,
    compute_miou,
    count_confusion,
    evaluate_segmentation,
)
from tests.support.helpers import check_one_line
from tests.support.waits import Waits


def draw_pair(
    num_classes: int, *, seed: int, absent: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Predictions and labels [4, 9, 11]; labels have void pixels, `absent` classes occur in
    neither.
    """
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor([k for k in range(num_classes) if k not in absent])
    label = present[torch.randint(0, len(present), (4, 9, 11), generator=generator)]
    other = present[torch.randint(0, len(present), (4, 9, 11), generator=generator)]
    prediction = torch.where(torch.rand(4, 9, 11, generator=generator) < 0.6, label, other)
    label = torch.where(torch.rand(4, 9, 11, generator=generator) < 0.2, 255, label)
    return prediction, label


@pytest.mark.parametrize("num_classes", [2, 5, 21])
@pytest.mark.parametrize("seed", [0, 1])
def test_confusion_equals_torchmetrics(num_classes: int, seed: int):
    prediction, label = draw_pair(num_classes, seed=seed)
    expected = MulticlassConfusionMatrix(num_classes, ignore_index=255)(prediction, label)
    found = count_confusion(prediction, label, num_classes=num_classes)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


@pytest.mark.parametrize("num_classes", [2, 5, 21])
@pytest.mark.parametrize("seed", [0, 1])
def test_iou_of_each_class_and_their_mean_equal_torchmetrics(num_classes: int, seed: int):
    prediction, label = draw_pair(num_classes, seed=seed)
    confusion = count_confusion(prediction, label, num_classes=num_classes)
    each = MulticlassJaccardIndex(num_classes, average=None, ignore_index=255)(prediction, label)
    assert compute_iou_per_class(confusion) == pytest.approx(each.tolist(), rel=1e-6)
    mean = MulticlassJaccardIndex(num_classes, average="macro", ignore_index=255)(prediction, label)
    assert compute_miou(confusion) == pytest.approx(mean.item(), rel=1e-6)


def test_classes_in_neither_labels_nor_predictions_are_left_out_of_the_mean():
    """torchmetrics calls an absent class's IoU 0 but leaves it out of its macro mean, too."""
    prediction, label = draw_pair(6, seed=3, absent=(1, 4))
    confusion = count_confusion(prediction, label, num_classes=6)
    ious = compute_iou_per_class(confusion)
    assert [k for k, iou in enumerate(ious) if iou is None] == [1, 4]
    assert compute_miou(confusion) == pytest.approx(sum(iou for iou in ious if iou is not None) / 4)
    mean = MulticlassJaccardIndex(6, average="macro", ignore_index=255)(prediction, label)
    assert compute_miou(confusion) == pytest.approx(mean.item(), rel=1e-6)


def test_mean_has_one_denominator_whatever_is_predicted():
    """Of the classes that labels hold; another one costs where it stands in place of theirs."""
    label = torch.tensor([0, 0, 1])
    for prediction, ious in (([0, 0, 2], [1, 0]), ([0, 3, 1], [1 / 2, 1]), ([0, 0, 1], [1, 1])):
        confusion = count_confusion(torch.tensor(prediction), label, num_classes=4)
        assert compute_iou_per_class(confusion) == [*ious, None, None]
        assert compute_miou(confusion) == pytest.approx(sum(ious) / 2)


def test_example_by_hand():
    prediction = torch.tensor([[[0, 0, 1], [1, 1, 2]]])
    label = torch.tensor([[[0, 1, 1], [1, 255, 0]]])
    confusion = count_confusion(prediction, label, num_classes=3)
    assert confusion.tolist() == [[1, 0, 1], [1, 2, 0], [0, 0, 0]]  # row: label, column: prediction
    assert compute_iou_per_class(confusion) == [1 / 3, 2 / 3, None]
    assert compute_miou(confusion) == pytest.approx(1 / 2)


def test_perfect_prediction_is_one():
    label = torch.tensor([[0, 1], [2, 255]])
    assert (
        compute_miou(count_confusion(torch.tensor([[0, 1], [2, 0]]), label, num_classes=3)) == 1.0
    )


def test_all_void_counts_nothing_and_has_no_iou():
    confusion = count_confusion(
        torch.ones(2, 3, 3, dtype=torch.int64), torch.full((2, 3, 3), 255), num_classes=3
    )
    assert confusion.tolist() == [[0] * 3] * 3
    assert compute_iou_per_class(confusion) == [None] * 3
    assert compute_miou(confusion) == 0.0


def test_uint8_labels_of_many_classes_do_not_wrap_around():
    label = torch.tensor([199, 0, 255], dtype=torch.uint8)
    confusion = count_confusion(
        torch.tensor([198, 0, 7], dtype=torch.uint8), label, num_classes=200
    )
    assert confusion[199, 198] == 1 and confusion[0, 0] == 1 and confusion.sum() == 2


def test_confusions_of_parts_add_up_and_give_one_miou():
    """The mean of the parts' mIoUs is another number."""
    prediction, label = draw_pair(5, seed=7)
    parts = [count_confusion(p, y, num_classes=5) for p, y in zip(prediction, label, strict=True)]
    whole = count_confusion(prediction, label, num_classes=5)
    assert torch.equal(sum(parts), whole)
    assert abs(sum(map(compute_miou, parts)) / 4 - compute_miou(whole)) > 1e-4


def test_iou_of_huge_counts_is_exact():
    """float32 has 24 bits; a validation set has more pixels."""
    confusion = torch.tensor([[2**40, 1], [0, 3]])
    assert compute_iou_per_class(confusion) == [2**40 / (2**40 + 1), 0.75]


def test_counting_a_batch_does_not_wait_for_a_gpu():
    label = torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8)
    label[0, 0] = VOID
    with Waits() as waits:
        found = count_confusion(torch.randint(0, 4, (2, 8, 8)), label, num_classes=4)
    assert not waits.seen and found.sum() == 120 and found.dtype == torch.int64


@pytest.mark.parametrize("odd", [3, 254, -1])
@pytest.mark.parametrize("predicted", [0, 1])
def test_a_label_that_is_no_class_is_refused_whatever_is_predicted(odd: int, predicted: int):
    scores = torch.eye(3)[predicted].reshape(1, 3, 1, 1)
    batches = [(torch.zeros(1, 3, 1, 1), torch.tensor([[[0, 255, odd]]]))]
    with pytest.raises(SettingsError) as error:
        evaluate_segmentation(lambda images: scores, batches, num_classes=3)
    check_one_line(error, f"labels is {odd}, expected 0 to 2, or 255")
