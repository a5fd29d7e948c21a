"""The loss against a second implementation in float64 NumPy. Letters as in kdcache.losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcache.losses import (
    KnowledgeDistillationLoss,
    cross_entropy,
    feature_distance,
    features,
    kd_divergence,
    pixels,
    pseudo_cross_entropy,
)
from kdcache.training.loop import TermTotals
from tests.support.helpers import check_one_line

CHANNELS = {"low": (12, 5), "mid": (10, 6), "high": (9, 7)}
GRIDS = {"low": (8, 6), "mid": (4, 3), "high": (2, 2)}  # of the student
TEACHER_GRIDS = {"low": (8, 6), "mid": (5, 7), "high": (3, 1)}


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """float64, over axis 1."""
    shifted = scores.astype(np.float64) - scores.astype(np.float64).max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def resize_matrix(size_in: int, size_out: int) -> np.ndarray:
    """[out, in] weights of linear interpolation between pixel centres, edges repeated
    (align_corners off).
    """
    matrix = np.zeros((size_out, size_in))
    for place in range(size_out):
        centre = min(max((place + 0.5) * size_in / size_out - 0.5, 0.0), size_in - 1.0)
        left = int(centre)
        matrix[place, left] += 1 - (centre - left)
        matrix[place, min(left + 1, size_in - 1)] += centre - left
    return matrix


def resize(x_NCHW: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    rows, columns = resize_matrix(x_NCHW.shape[2], hw[0]), resize_matrix(x_NCHW.shape[3], hw[1])
    return np.einsum("yh,nchw,xw->ncyx", rows, x_NCHW.astype(np.float64), columns)


def reference_ce(scores: np.ndarray, label: np.ndarray) -> float:
    """Mean over pixels that are not 255, pixel by pixel."""
    logs = log_softmax(scores)
    costs = [-logs[n, label[n, y, x], y, x] for n, y, x in np.argwhere(label != 255)]
    return float(np.mean(costs)) if costs else 0.0


def reference_pseudo(
    scores: np.ndarray, teacher: np.ndarray, labelled: np.ndarray, threshold: float
) -> float:
    """Mean of -log q at the teacher's class over the pixels of images without a label where its
    share p is at least the threshold, pixel by pixel.
    """
    log_p, log_q = log_softmax(resize(teacher, scores.shape[2:])), log_softmax(scores)
    costs = []
    for n, y, x in np.ndindex(len(scores), *scores.shape[2:]):
        best = log_p[n, :, y, x].argmax()
        if not labelled[n] and np.exp(log_p[n, best, y, x]) >= threshold:
            costs.append(-log_q[n, best, y, x])
    return float(np.mean(costs)) if costs else 0.0


def reference_kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Mean over all pixels of T^2 sum_k p_k (log p_k - log q_k)."""
    log_p = log_softmax(resize(teacher, student.shape[2:]) / temperature)
    log_q = log_softmax(student.astype(np.float64) / temperature)
    return float(temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def reference_distance(student: np.ndarray, teacher: np.ndarray, weight_SC: np.ndarray) -> float:
    """Mean over positions of 1 - cosine(student, W teacher on the student's grid)."""
    target = np.einsum(
        "sc,nchw->nshw", weight_SC.astype(np.float64), resize(teacher, student.shape[2:])
    )
    student = student.astype(np.float64)
    dot, norms = (
        (student * target).sum(1),
        np.linalg.norm(student, axis=1) * np.linalg.norm(target, axis=1),
    )
    return float((1 - dot / norms).mean())


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def make_label(*shape: int, num_classes: int = 4, seed: int = 0) -> Tensor:
    """Classes with about a third of the pixels void."""
    drawn = torch.randint(0, num_classes + 2, shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(drawn < num_classes, drawn, 255)


def make_batch(num: int = 3, *, seed: int = 0) -> dict[str, Tensor | dict[str, Tensor]]:
    """Arguments of the loss: scores on 16x12, teacher's on 5x4, features on the grids above."""
    return {
        "student_NKHW": randn(num, 4, 16, 12, seed=seed),
        "student_features": {
            k: randn(num, CHANNELS[k][1], *hw, seed=seed + i)
            for i, (k, hw) in enumerate(GRIDS.items(), 1)
        },
        "label_NHW": make_label(num, 16, 12, seed=seed),
        "teacher_NKHW": randn(num, 4, 5, 4, seed=seed + 4, scale=3),
        "teacher_features": {
            k: randn(num, CHANNELS[k][0], *hw, seed=seed + i)
            for i, (k, hw) in enumerate(TEACHER_GRIDS.items(), 5)
        },
    }


def make_loss(**weights: float) -> KnowledgeDistillationLoss:
    torch.manual_seed(11)
    return KnowledgeDistillationLoss(
        **{"alpha": 1.0, "beta": 0.5, "gamma": 0.3, "temperature": 4.0, **weights},
        channels=CHANNELS,
    )


def cut(value: Tensor | dict[str, Tensor], part: slice) -> Tensor | dict[str, Tensor]:
    return {k: v[part] for k, v in value.items()} if isinstance(value, dict) else value[part]


# --- cross-entropy


def test_cross_entropy_equals_the_reference_and_ignores_void():
    scores, label = randn(2, 4, 7, 5, scale=3), make_label(2, 7, 5)
    term = cross_entropy(scores, label)
    assert 0 < term.count.item() == (label != 255).sum().item() < label.numel()
    assert term.mean.item() == pytest.approx(reference_ce(scores.numpy(), label.numpy()), rel=1e-5)


def test_cross_entropy_does_not_see_scores_of_void_pixels():
    scores, label = randn(2, 4, 7, 5), make_label(2, 7, 5)
    changed = scores + 100 * (label == 255).unsqueeze(1) * randn(2, 4, 7, 5, seed=3)
    assert cross_entropy(changed, label).sum.item() == pytest.approx(
        cross_entropy(scores, label).sum.item(), rel=1e-6
    )


def test_cross_entropy_of_a_batch_that_is_all_void_is_zero_with_zero_gradient():
    scores = randn(2, 4, 3, 3).requires_grad_()
    term = cross_entropy(scores, torch.full((2, 3, 3), 255))
    term.mean.backward()
    assert (term.sum.item(), term.count.item(), term.mean.item()) == (0, 0, 0)
    assert torch.equal(scores.grad, torch.zeros_like(scores))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_of_half_precision_scores_are_computed_in_float32(dtype: torch.dtype):
    scores, label, teacher = (
        randn(2, 4, 6, 6).to(dtype),
        make_label(2, 6, 6),
        randn(2, 4, 3, 3, seed=1).to(dtype),
    )
    ce, kd = cross_entropy(scores, label), kd_divergence(scores, teacher, temperature=4)
    assert {ce.sum.dtype, kd.sum.dtype, feature_distance(scores, scores).sum.dtype} == {
        torch.float32
    }
    assert ce.mean.item() == pytest.approx(
        reference_ce(scores.float().numpy(), label.numpy()), rel=1e-5
    )
    assert kd.mean.item() == pytest.approx(
        reference_kd(scores.float().numpy(), teacher.float().numpy(), 4), rel=1e-4
    )


# --- the teacher's class in images without a label


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("labelled", [(True, False, False), (False,) * 3, (True,) * 3])
def test_pseudo_cross_entropy_equals_the_reference(threshold: float, labelled: tuple):
    scores, teacher = randn(3, 4, 7, 5, scale=3), randn(3, 4, 4, 3, seed=1, scale=3).half()
    rows = torch.tensor(labelled)
    term = pseudo_cross_entropy(scores, teacher, labelled_N=rows, threshold=threshold)
    expected = reference_pseudo(scores.numpy(), teacher.numpy(), rows.numpy(), threshold)
    assert term.mean.item() == pytest.approx(expected, rel=1e-5)
    most = labelled.count(False) * 7 * 5
    assert (
        term.count.item() == most if threshold == 0 or most == 0 else 0 < term.count.item() < most
    )


def test_pseudo_cross_entropy_of_even_scores_is_log_k_and_a_sure_teacher_passes_any_threshold():
    teacher = torch.tensor([1000.0, 0, 0, 0, 0]).reshape(1, 5, 1, 1)
    rows = torch.tensor([False])
    term = pseudo_cross_entropy(torch.zeros(1, 5, 2, 2), teacher, labelled_N=rows, threshold=1.0)
    assert (term.count.item(), term.mean.item()) == (4, pytest.approx(math.log(5)))


# --- divergence


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 16.0])
@pytest.mark.parametrize("grid", [(16, 12), (8, 6), (5, 4), (2, 2)])
def test_divergence_equals_the_reference_on_any_teacher_grid(
    temperature: float, grid: tuple[int, int]
):
    student, teacher = randn(2, 4, 16, 12, scale=2), randn(2, 4, *grid, seed=1, scale=3)
    term = kd_divergence(student, teacher, temperature=temperature)
    assert term.count.item() == 2 * 16 * 12
    assert term.mean.item() == pytest.approx(
        reference_kd(student.numpy(), teacher.numpy(), temperature), rel=1e-4
    )


def test_divergence_of_cached_float16_scores_equals_the_reference_on_them():
    student, teacher = randn(2, 4, 16, 16), randn(2, 4, 2, 2, seed=1, scale=8).half()
    expected = reference_kd(student.numpy(), teacher.numpy(), 4.0)
    assert kd_divergence(student, teacher, temperature=4.0).mean.item() == pytest.approx(
        expected, rel=1e-4
    )


def test_divergence_is_from_teacher_to_student_and_not_the_reverse():
    student, teacher = randn(1, 4, 4, 4, scale=3), randn(1, 4, 4, 4, seed=1, scale=0.5)
    there = kd_divergence(student, teacher, temperature=1.0).mean.item()
    back = kd_divergence(teacher, student, temperature=1.0).mean.item()
    assert there == pytest.approx(reference_kd(student.numpy(), teacher.numpy(), 1.0), rel=1e-4)
    assert abs(there - back) > 0.1 * there


def gradient_norm(student: Tensor, teacher: Tensor, temperature: float) -> float:
    leaf = student.clone().requires_grad_()
    kd_divergence(leaf, teacher, temperature=temperature).mean.backward()
    return leaf.grad.norm().item()


@pytest.mark.parametrize("temperature", [4.0, 16.0])
def test_t_squared_keeps_the_gradients_size(temperature: float):
    """On small scores the gradient does not depend on T; without T^2 it would be 16 and 256 times
    smaller here.
    """
    student, teacher = randn(2, 6, 8, 8, scale=0.2), randn(2, 6, 8, 8, seed=1, scale=0.2)
    ratio = gradient_norm(student, teacher, temperature) / gradient_norm(student, teacher, 1.0)
    assert 1 / 1.1 < ratio < 1.1


@pytest.mark.parametrize("temperature", [1.0, 4.0, 16.0])
def test_divergence_of_equal_scores_is_zero_with_zero_gradient(temperature: float):
    student = randn(2, 5, 4, 4, scale=4).requires_grad_()
    term = kd_divergence(student, student.detach().clone(), temperature=temperature)
    term.mean.backward()
    assert term.mean.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.abs().max().item() < 1e-6


def test_divergence_ignores_a_constant_added_to_all_classes():
    student, teacher = randn(1, 4, 5, 5), randn(1, 4, 5, 5, seed=1)
    moved = kd_divergence(student + 7, teacher - 3, temperature=4.0).mean.item()
    assert moved == pytest.approx(
        kd_divergence(student, teacher, temperature=4.0).mean.item(), rel=1e-3
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_of_an_even_student_from_a_certain_teacher_is_t_squared_log_k(
    temperature: float,
):
    teacher = torch.zeros(1, 5, 3, 3)
    teacher[:, 2] = 1000.0
    found = kd_divergence(torch.zeros(1, 5, 3, 3), teacher, temperature=temperature).mean.item()
    assert found == pytest.approx(temperature**2 * math.log(5), rel=1e-5)


def test_divergence_at_high_temperature_is_half_the_variance_of_the_difference():
    """Hinton et al. 2015, section 2.1: matching logits is the limit."""
    student, teacher = randn(1, 6, 4, 4, scale=0.5), randn(1, 6, 4, 4, seed=1, scale=0.5)
    limit = 0.5 * (student - teacher).var(1, correction=0).mean().item()
    assert kd_divergence(student, teacher, temperature=20.0).mean.item() == pytest.approx(
        limit, rel=0.05
    )


def test_divergence_of_extreme_float16_scores_is_finite():
    teacher = torch.tensor([65_504.0, -65_504.0, 0.0]).half().reshape(1, 3, 1, 1)
    student = torch.tensor([-50.0, 50.0, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
    value = kd_divergence(student, teacher, temperature=1.0).mean
    value.backward()
    assert value.item() == pytest.approx(100, rel=1e-5)
    assert torch.isfinite(student.grad).all()


# --- feature distance


@pytest.mark.parametrize("level", list(CHANNELS))
def test_feature_term_equals_the_reference_after_alignment_and_projection(level: str):
    batch, loss = make_batch(), make_loss()
    terms = loss(**batch)
    weight = loss.align[level].weight.detach().numpy()[:, :, 0, 0]
    expected = reference_distance(
        batch["student_features"][level].numpy(), batch["teacher_features"][level].numpy(), weight
    )
    assert terms.feature[level].count.item() == 3 * math.prod(GRIDS[level])
    assert terms.feature[level].mean.item() == pytest.approx(expected, rel=1e-5)


def test_projection_is_one_by_one_from_teacher_to_student_channels_without_bias():
    loss = make_loss()
    shapes = {name: tuple(value.shape) for name, value in loss.state_dict().items()}
    assert shapes == {f"align.{level}.weight": (s, t, 1, 1) for level, (t, s) in CHANNELS.items()}


@pytest.mark.parametrize(("factor", "expected"), [(3.0, 0.0), (1.0, 0.0), (-0.5, 2.0)])
def test_feature_distance_of_parallel_features_is_zero_and_of_opposed_ones_two(
    factor: float, expected: float
):
    features = randn(2, 8, 3, 3)
    assert feature_distance(features, factor * features).mean.item() == pytest.approx(
        expected, abs=1e-6
    )


def test_feature_distance_of_orthogonal_features_is_one():
    student, teacher = torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    student[:, 0], teacher[:, 1] = 2.0, 5.0
    assert feature_distance(student, teacher).mean.item() == pytest.approx(1.0, abs=1e-6)


def test_feature_distance_from_features_that_are_zero_is_one_with_finite_gradient():
    student = torch.zeros(1, 4, 2, 2, requires_grad=True)
    value = feature_distance(student, torch.ones(1, 4, 2, 2)).mean
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert torch.isfinite(student.grad).all()


# --- the weighted sum


@pytest.mark.parametrize(
    "weights", [(1.0, 0.5, 0.3), (0.0, 2.0, 0.0), (0.7, 0.0, 5.0), (0.0, 0.0, 1.0)]
)
def test_total_is_the_weighted_sum_of_the_reference_terms(weights: tuple[float, float, float]):
    alpha, beta, gamma = weights
    batch, loss = make_batch(), make_loss(alpha=alpha, beta=beta, gamma=gamma, temperature=3.0)
    total = alpha * reference_ce(batch["student_NKHW"].numpy(), batch["label_NHW"].numpy())
    total += beta * reference_kd(batch["student_NKHW"].numpy(), batch["teacher_NKHW"].numpy(), 3.0)
    distances = [
        reference_distance(
            batch["student_features"][level].numpy(),
            batch["teacher_features"][level].numpy(),
            projection.weight.detach().numpy()[:, :, 0, 0],
        )
        for level, projection in loss.align.items()
    ]
    total += gamma * (np.mean(distances) if distances else 0.0)
    assert loss(**batch).total.item() == pytest.approx(total, rel=1e-5)


def test_means_name_the_terms_in_use_and_weigh_up_to_the_total():
    means = make_loss()(**make_batch()).means()
    assert list(means) == ["ce", "kd", "feature", "total"]
    assert means["total"].item() == pytest.approx(
        (means["ce"] + 0.5 * means["kd"] + 0.3 * means["feature"]).item(), rel=1e-6
    )
    assert list(make_loss(beta=0, gamma=0)(**make_batch()).means()) == ["ce", "total"]


@pytest.mark.parametrize(
    ("weight", "room", "function", "field", "targets"),
    [
        ("alpha", pixels, "_cross_entropy_band", "ce", ["label_NHW"]),
        ("beta", pixels, "_divergence_band", "kd", ["teacher_NKHW"]),
        ("gamma", features, "_distance", "feature", ["teacher_features", "student_features"]),
    ],
)
def test_weight_of_zero_computes_nothing_and_needs_no_target(
    monkeypatch, weight, room, function, field, targets
):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"{function} was called")

    loss, batch = make_loss(**{weight: 0.0}), make_batch()
    monkeypatch.setattr(room, function, refuse)
    terms = loss(**{**batch, **dict.fromkeys(targets)})
    assert getattr(terms, field) is None
    assert terms.total.item() > 0
    with pytest.raises(
        AssertionError, match=f"{function} was called"
    ):  # it would have been, with a weight
        make_loss()(**batch)


def test_loss_without_feature_weight_has_no_parameters():
    assert list(make_loss(gamma=0.0).parameters()) == []


def test_gradients_reach_student_and_projections():
    batch, loss = make_batch(), make_loss()
    leaves = [batch["student_NKHW"], *batch["student_features"].values()]
    for leaf in leaves:
        leaf.requires_grad_()
    loss(**batch).total.backward()
    gradients = [leaf.grad for leaf in [*leaves, *loss.parameters()]]
    assert len(gradients) == 7
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_teacher_gets_no_gradient_even_where_it_could():
    """A caller with a live teacher trains the student, not the teacher."""
    batch, loss = make_batch(), make_loss()
    leaves = [batch["teacher_NKHW"], *batch["teacher_features"].values()]
    for leaf in leaves:
        leaf.requires_grad_()
    loss(**batch).total.backward()
    assert [leaf.grad for leaf in leaves] == [None] * 4


def test_sums_and_counts_of_parts_add_up_to_those_of_the_whole():
    """Parts of unequal size, so that a mean of means would be wrong."""
    batch, loss = make_batch(6), make_loss()
    whole, parts = TermTotals(), TermTotals()
    whole.add(loss(**batch))
    for part in (slice(0, 1), slice(1, 3), slice(3, 6)):
        parts.add(loss(**{name: cut(value, part) for name, value in batch.items()}))
    assert set(whole.counts) == {"ce", "kd", "feature/low", "feature/mid", "feature/high"}
    for name in whole.counts:
        assert float(parts.counts[name]) == float(whole.counts[name])
        assert float(parts.sums[name]) == pytest.approx(float(whole.sums[name]), rel=1e-5)
    means = parts.means(loss)
    assert means == pytest.approx({k: v.item() for k, v in loss(**batch).means().items()}, rel=1e-5)


def test_a_loss_without_any_weight_is_refused():
    with pytest.raises(ValueError) as error:
        KnowledgeDistillationLoss(0.0, 0.0, 0.0)
    check_one_line(error, "loss: alpha, beta, gamma and pseudo are 0, expected one of them above 0")
