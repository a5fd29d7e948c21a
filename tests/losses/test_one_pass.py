"""The loss in one pass against the terms as they are defined: values and gradients, bands, tiles,
odd grids, extremes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdcache.losses import (
    KnowledgeDistillationLoss,
    cross_entropy,
    feature_distance,
    features,
    kd_divergence,
    target,
)
from kdcache.losses.target import Upsampled
from kdcache.models.inputs import resize_to

WEIGHTS = {"alpha": 0.9, "beta": 0.5, "gamma": 0.3, "temperature": 4.0}


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def make_label(*shape: int, num_classes: int) -> Tensor:
    drawn = torch.randint(0, num_classes + 2, shape, generator=torch.Generator().manual_seed(3))
    return torch.where(drawn < num_classes, drawn, 255).to(torch.uint8)


def textbook(
    loss: KnowledgeDistillationLoss,
    logits: Tensor,
    taps: dict,
    label: Tensor,
    answer: Tensor,
    targets: dict,
):
    """alpha CE + beta KL + gamma distance by the definitions, with autograd's own gradients."""
    full = resize_to(logits.float(), label.shape[-2:])
    total = loss.alpha * cross_entropy(full, label.long()).mean
    total = total + loss.beta * kd_divergence(full, answer, temperature=loss.temperature).mean
    distances = [
        feature_distance(
            taps[level], align(resize_to(targets[level].float(), taps[level].shape[-2:]))
        ).mean
        for level, align in loss.align.items()
    ]
    return total + loss.gamma * torch.stack(distances).mean()


def make_case(
    *,
    num: int = 3,
    classes: int = 5,
    coarse=(6, 5),
    hw=(24, 20),
    answer=(3, 2),
    grid=(6, 5),
    target=(6, 5),
):
    """Arguments of the loss, leaves with gradients; answers in float16 as the cache has them."""
    logits = randn(num, classes, *coarse, scale=3).requires_grad_()
    taps = {
        "low": randn(num, 4, *grid, seed=1)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    }
    label = make_label(num, *hw, num_classes=classes)
    return (
        logits,
        taps,
        label,
        randn(num, classes, *answer, seed=2, scale=5).half(),
        {"low": randn(num, 7, *target, seed=4).half()},
    )


def make_loss(**changes: float) -> KnowledgeDistillationLoss:
    torch.manual_seed(5)
    return KnowledgeDistillationLoss(**{**WEIGHTS, **changes}, channels={"low": (7, 4)})


def gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total, leaves))


def check_equal(case: tuple, loss: KnowledgeDistillationLoss) -> None:
    logits, taps, label, answer, targets = case
    leaves = [logits, *taps.values(), *loss.parameters()]
    expected = textbook(loss, logits, taps, label, answer, targets)
    found = loss(logits, taps, label, teacher_NKHW=answer, teacher_features=targets).total
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("band_numbers", [1, 5 * 20 * 7, 5 * 20 * 24, 5 * 20 * 24 * 2, 1 << 26])
@pytest.mark.parametrize("tile_numbers", [1, 7 * 30 * 2, 1 << 28])
def test_value_and_gradients_are_those_of_the_definitions(
    monkeypatch, band_numbers: int, tile_numbers: int
):
    """Bands of one row, of seven rows (the last one short), of an image, of two of three images, of
    everything.
    """
    monkeypatch.setitem(target.BAND_NUMBERS, "cpu", band_numbers)
    monkeypatch.setitem(features.TILE_NUMBERS, "cpu", tile_numbers)
    check_equal(make_case(), make_loss())


@pytest.mark.parametrize(
    "grids",
    [
        {"coarse": (24, 20)},  # a student that gives scores at full size
        {"coarse": (24, 5)},
        {"coarse": (6, 20)},
        {"coarse": (5, 3)},
        {"coarse": (1, 1)},
        {"answer": (24, 20)},
        {"answer": (1, 1)},
        {"answer": (7, 11)},
        {"target": (3, 2)},
        {"target": (12, 9)},
        {"num": 1},
        {"classes": 2},
        {"hw": (1, 1), "coarse": (1, 1)},
        {"hw": (13, 31), "coarse": (4, 8)},
    ],
    ids=str,
)
def test_any_grids(grids: dict):
    check_equal(make_case(**grids), make_loss())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_the_memory_format_of_what_they_belong_to(layout: torch.memory_format):
    """A convolution whose output is in channels_last would copy a gradient in another format."""
    logits, taps, label, answer, targets = make_case()
    leaves = [
        leaf.detach().contiguous(memory_format=layout).requires_grad_()
        for leaf in (logits, taps["low"])
    ]
    total = make_loss()(
        leaves[0], {"low": leaves[1]}, label, teacher_NKHW=answer, teacher_features=targets
    ).total
    for gradient in gradients(total, leaves):
        assert gradient.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 20.0])
def test_any_temperature(temperature: float):
    check_equal(make_case(), make_loss(temperature=temperature))


def test_the_softmax_that_both_terms_share_at_t_1_changes_no_number():
    """At a T that differs from 1 in the last digits each term computes its own."""
    case = make_case()
    logits, taps, label, answer, targets = case
    shared, own = (
        make_loss(temperature=T)(logits, taps, label, teacher_NKHW=answer, teacher_features=targets)
        for T in (1.0, 1.0 + 1e-7)
    )
    assert shared.kd.sum.item() == pytest.approx(own.kd.sum.item(), rel=1e-5)
    for ours, theirs in zip(
        *(gradients(terms.total, [logits]) for terms in (shared, own)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_confident_and_hopeless_scores_are_as_exact_as_the_definition():
    """Differences of hundreds: exp underflows to 0, which must give neither NaN nor infinity."""
    logits, taps, label, answer, targets = make_case()
    far = (logits.detach() * 200).requires_grad_()
    check_equal((far, taps, label, answer * 200, targets), make_loss())


def test_a_batch_that_is_all_void_has_no_cross_entropy_and_no_nan():
    logits, taps, label, answer, targets = make_case()
    terms = make_loss()(
        logits, taps, torch.full_like(label, 255), teacher_NKHW=answer, teacher_features=targets
    )
    assert (terms.ce.sum.item(), terms.ce.count.item()) == (0.0, 0.0)
    assert all(torch.isfinite(g).all() for g in gradients(terms.total, [logits]))


def test_features_without_length_are_as_in_the_definition():
    """Rows of zeros: the norm is clamped, and torch's gradient of a clamped norm is 0."""
    logits, taps, label, answer, targets = make_case()
    taps = {"low": (taps["low"].detach() * (torch.arange(5) > 1)).requires_grad_()}
    targets = {"low": targets["low"] * (torch.arange(6) > 2)[:, None]}
    check_equal((logits, taps, label, answer, targets), make_loss())


def test_scores_of_the_student_keep_their_type_and_their_values():
    """bfloat16 from autocast: float32 inside, and the argument is not written to."""
    logits, taps, label, answer, targets = make_case(coarse=(24, 20))
    half = logits.detach().bfloat16().requires_grad_()
    before, answer_before = half.detach().clone(), answer.clone()
    terms = make_loss()(half, taps, label, teacher_NKHW=answer, teacher_features=targets)
    (found,) = gradients(terms.total, [half])
    assert found.dtype == torch.bfloat16
    assert torch.equal(half, before) and torch.equal(answer, answer_before)


def test_autocast_around_the_loss_changes_nothing():
    """Student and loss under one autocast is what many loops do."""
    logits, taps, label, answer, targets = make_case()
    loss = make_loss()
    plain = loss(logits, taps, label, teacher_NKHW=answer, teacher_features=targets).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits, taps, label, teacher_NKHW=answer, teacher_features=targets).total
    assert inside.item() == plain.item()
    for ours, theirs in zip(gradients(inside, [logits]), gradients(plain, [logits]), strict=True):
        assert torch.equal(ours, theirs)


def test_terms_are_those_of_the_definitions():
    logits, taps, label, answer, targets = make_case()
    loss = make_loss()
    terms = loss(logits, taps, label, teacher_NKHW=answer, teacher_features=targets)
    full = resize_to(logits, label.shape[-2:])
    for found, expected in (
        (terms.ce, cross_entropy(full, label.long())),
        (terms.kd, kd_divergence(full, answer, temperature=4.0)),
        (
            terms.feature["low"],
            feature_distance(taps["low"], loss.align["low"](targets["low"].float())),
        ),
    ):
        assert found.sum.item() == pytest.approx(expected.sum.item(), rel=1e-5)
        assert found.count.item() == expected.count.item()
        assert not found.sum.requires_grad


def test_without_labels_the_size_is_said():
    """Features and divergence alone: scores are compared at the size of the images."""
    logits, taps, _, answer, targets = make_case()
    loss = make_loss(alpha=0.0)
    terms = loss(logits, taps, None, teacher_NKHW=answer, teacher_features=targets, hw=(24, 20))
    full = resize_to(logits, (24, 20))
    assert terms.ce is None and terms.kd.count.item() == 3 * 24 * 20
    assert terms.kd.sum.item() == pytest.approx(
        kd_divergence(full, answer, temperature=4.0).sum.item(), rel=1e-5
    )


@pytest.mark.parametrize("name", ["label_NHW", "teacher_NKHW", "low"])
def test_targets_of_another_batch_are_refused(name: str):
    """A smaller one would be broadcast."""
    logits, taps, label, answer, targets = make_case()
    wrong = {"label_NHW": label, "teacher_NKHW": answer, "low": targets["low"]}
    for bad in (wrong[name][:1], None):
        given = {**wrong, name: bad}
        with pytest.raises(
            ValueError, match=f"loss: {name} has shape .*; give the targets of this batch"
        ):
            make_loss()(logits, taps, given["label_NHW"], teacher_NKHW=given["teacher_NKHW"],
                        teacher_features={"low": given["low"]}, hw=(24, 20))  # fmt: skip
    if name == "low":
        with pytest.raises(ValueError, match="loss: low has shape None"):
            make_loss()(logits, taps, label, teacher_NKHW=answer)


def test_gradient_scales_with_what_comes_from_above():
    logits, taps, label, answer, targets = make_case()
    total = make_loss()(logits, taps, label, teacher_NKHW=answer, teacher_features=targets).total
    (once,) = torch.autograd.grad(total, [logits], retain_graph=True)
    (half,) = torch.autograd.grad(total / 2, [logits])
    torch.testing.assert_close(half * 2, once)


@pytest.mark.parametrize(
    "sizes", [((3, 4), (24, 32)), ((7, 5), (9, 31)), ((1, 1), (4, 4)), ((8, 8), (8, 8))]
)
def test_bands_are_rows_of_torchs_upsampling(sizes: tuple):
    coarse, hw = sizes
    x = randn(2, 3, *coarse)
    expected = resize_to(x, hw).permute(2, 0, 1, 3)
    seen = Upsampled(x, hw)
    for start in range(0, hw[0], 3):
        stop = min(start + 3, hw[0])
        torch.testing.assert_close(
            seen.band(start, stop), expected[start:stop], rtol=1e-5, atol=1e-6
        )
