"""Several processes train one student: the batches, losses and gradients are those of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.config.parser import merge
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.models.student import BATCHNORM_MOMENTUM, LightweightSegmentationModel
from kdcache.training.order import plan_epoch
from kdcache.training.processes import Alone, Processes
from tests.support import together
from tests.support.together import NUM_TRAIN, NUM_VAL, make_many

TOLERANCE = 1e-5  # of a step's loss, absolute


def test_parts_of_a_batch_with_the_counts_of_all_add_up_to_it():
    """Void pixels are not spread evenly: the mean of both means would be another number."""
    torch.manual_seed(0)
    scores, label = torch.randn(4, 5, 8, 8, requires_grad=True), torch.randint(0, 5, (4, 32, 32))
    label[1:] = 255
    label[1, 0, :3] = 2
    features = {"low": torch.randn(4, 6, 8, 8, requires_grad=True)}
    answers = {
        "teacher_NKHW": torch.randn(4, 5, 4, 4),
        "teacher_features": {"low": torch.randn(4, 7, 8, 8)},
    }
    loss = KnowledgeDistillationLoss(channels={"low": (7, 6)})

    def compute(rows: slice):
        targets = {"teacher_NKHW": answers["teacher_NKHW"][rows]}
        targets["teacher_features"] = {"low": answers["teacher_features"]["low"][rows]}
        return loss(scores[rows], {"low": features["low"][rows]}, label[rows], **targets)

    trained, counts = (scores, features["low"], loss.align["low"].weight), []
    loss.add_up = lambda own: counts.append(own) or own
    whole = compute(slice(0, 4))
    expected = torch.autograd.grad(whole.total, trained)
    loss.add_up = lambda own: counts[0]
    parts = [compute(rows) for rows in (slice(0, 1), slice(1, 4))]
    assert [part.ce.count.item() for part in parts] == [1024, 3] and whole.ce.count == 1027
    total = sum(part.total for part in parts)
    assert total.item() == pytest.approx(whole.total.item(), rel=1e-6)
    for found, gradient in zip(torch.autograd.grad(total, trained), expected, strict=True):
        assert torch.allclose(found, gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("count", "num_epochs", "loss"),
    [
        pytest.param(2, 10, {}, marks=pytest.mark.nightly),
        (2, 3, {}),
        pytest.param(4, 10, {}, marks=pytest.mark.nightly),
        (2, 2, {"alpha": 0.0, "beta": 0.0}),
        pytest.param(2, 2, {"beta": 0.0, "gamma": 0.0}, marks=pytest.mark.nightly),
    ],
)
def test_processes_have_the_losses_and_batches_of_one(given, count, num_epochs, loss):
    """Two steps an epoch; BatchNorm frozen, dropout off, float32. Of features alone the head has no
    gradient.
    """
    given = merge(given, {"loss": loss})
    alone = together.train_exactly(Alone(), given, num_epochs)
    many = together.run_together(count, together.train_exactly, given, num_epochs)
    assert len(alone["losses"]) == 2 * num_epochs
    assert [
        [i for process in many for i in process["ids"][step]] for step in range(2 * num_epochs)
    ] == alone["ids"]
    for process in many:
        assert np.abs(np.subtract(process["losses"], alone["losses"])).max() < TOLERANCE
        assert np.array_equal(process["weights"], many[0]["weights"])
        assert process["confusion"] == many[0]["confusion"]
        for found, expected in zip(process["terms"], alone["terms"], strict=True):
            assert found == pytest.approx(expected, abs=TOLERANCE)
    assert np.sum(many[0]["confusion"]) == np.sum(alone["confusion"])
    assert np.abs(np.subtract(many[0]["confusion"], alone["confusion"])).sum() <= 0.001 * np.sum(
        alone["confusion"]
    )


def test_the_batches_are_those_of_the_plan(given):
    """Of seed, epoch and step alone."""
    seen = together.train_exactly(Alone(), given, 2)
    plans = [
        plan_epoch(num_samples=NUM_TRAIN, num_views=2, batch_size=8, seed=0, epoch=epoch)
        for epoch in (0, 1)
    ]
    numbers = [[sample for _, sample in places] for plan in plans for places in plan]
    assert [[int(i[-4:]) for i in ids] for ids in seen["ids"]] == numbers


def test_a_process_reads_its_own_samples_only(given):
    one, two = together.run_together(2, together.train_exactly, given, 1)
    for process in (one, two):
        read = {sample for split, sample in process["read"] if split == "train"}
        assert read == {sample for ids in process["ids"] for sample in ids}
    assert not one["read"] & two["read"]
    assert len(one["read"] | two["read"]) == NUM_TRAIN + NUM_VAL


def test_dropout_differs_between_processes_and_epochs_and_can_be_drawn_again():
    one, two = together.run_together(2, together.draw)
    assert len({*one, *two}) == 4 and one[0] == one[2] and two[0] == two[2]


def test_on_gpus_batchnorm_is_synchronised_and_keeps_its_names_and_parameters():
    student = LightweightSegmentationModel(5, pretrained=False, aspp_channels=16)
    keys, parameters = student.state_dict().keys(), list(student.parameters())
    num_norms = sum(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    Processes.adopt(make_many(0, 2), student, torch.device("cpu"))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in student.modules())
    Processes.adopt(make_many(0, 2), student, torch.device("cuda"))
    norms = [module for module in student.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == num_norms and {module.momentum for module in norms} == {BATCHNORM_MOMENTUM}
    assert student.state_dict().keys() == keys
    assert all(a is b for a, b in zip(student.parameters(), parameters, strict=True))
