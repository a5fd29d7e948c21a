"""What docs/mathematics.md claims, in float64 or on numbers made for it. Letters as there; what
other files test is not repeated.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.losses import (
    KnowledgeDistillationLoss,
    cross_entropy,
    feature_distance,
    kd_divergence,
    pseudo_cross_entropy,
)
from kdcache.losses.target import Target
from kdcache.models.inputs import resize_to
from kdcache.models.student import STUDENT_CHANNELS

PAGE = Path(__file__).parents[2] / "docs/mathematics.md"
TEXT = " ".join(PAGE.read_text(encoding="utf-8").split())


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


def kd_gradient(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    """Of the term, by the student's scores."""
    leaf = z.clone().requires_grad_()
    return gradient(kd_divergence(leaf, v, temperature=temperature).mean, leaf)


# --- cross-entropy


def test_gradient_of_cross_entropy_is_probability_less_label_over_labelled_pixels():
    z, y = randn(2, 5, 3, 4, scale=2).requires_grad_(), torch.arange(24).reshape(2, 3, 4) % 5
    y[:, 0] = 255
    valid = (y != 255).unsqueeze(1)
    hot = F.one_hot(torch.where(y == 255, 0, y), 5).permute(0, 3, 1, 2)
    expected = (z.softmax(1) - hot) * valid / valid.sum()
    torch.testing.assert_close(
        gradient(cross_entropy(z, y).mean, z), expected, rtol=1e-5, atol=1e-8
    )


def test_cross_entropy_is_a_mean_over_pixels_and_not_over_images():
    z, y = randn(2, 3, 4, 4, scale=3), torch.zeros(2, 4, 4, dtype=torch.int64)
    y[0, 1:], y[0, 0, 1:] = 255, 255  # one labelled pixel against sixteen
    one, many = (cross_entropy(z[i : i + 1], y[i : i + 1]).mean.item() for i in (0, 1))
    assert cross_entropy(z, y).mean.item() == pytest.approx((one + 16 * many) / 17, rel=1e-5)
    assert abs((one + many) / 2 - (one + 16 * many) / 17) > 0.01


# --- divergence


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_gradient_of_divergence_is_t_times_the_difference_of_probabilities(temperature: float):
    z, v = randn(2, 6, 4, 5, scale=3), randn(2, 6, 4, 5, seed=1, scale=3)
    expected = (
        temperature * ((z / temperature).softmax(1) - (v / temperature).softmax(1)) / (2 * 4 * 5)
    )
    torch.testing.assert_close(kd_gradient(z, v, temperature), expected, rtol=1e-4, atol=1e-7)


def test_at_high_temperature_the_gradient_is_the_difference_of_centred_scores():
    z, v = randn(1, 6, 4, 4, scale=2), randn(1, 6, 4, 4, seed=1, scale=2)
    limit = ((z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))) / (6 * 16)
    errors = [(kd_gradient(z, v, T) - limit).norm() / limit.norm() for T in (10.0, 100.0)]
    assert (
        errors[1] < 0.02 and errors[0] > 3 * errors[1]
    )  # the next term of the series falls as 1/T


def test_without_t_squared_the_gradient_falls_as_one_over_t_squared():
    z, v = randn(1, 6, 4, 4, scale=0.3), randn(1, 6, 4, 4, seed=1, scale=0.3)
    bare = {T: kd_gradient(z, v, T).norm() / T**2 for T in (2.0, 4.0, 8.0)}
    assert (bare[2.0] / bare[4.0]).item() == pytest.approx(4, rel=0.1)
    assert (bare[4.0] / bare[8.0]).item() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_a_pixels_gradient_is_bounded_and_the_bound_is_reached(temperature: float):
    v, z = (
        torch.eye(3)[k].mul(1e3).reshape(1, 3, 1, 1) for k in (0, 1)
    )  # certain of different classes
    found = kd_gradient(z, v, temperature).norm().item()
    assert found == pytest.approx(math.sqrt(2) * temperature, rel=1e-4)
    drawn = kd_gradient(randn(1, 3, 8, 8, scale=9), randn(1, 3, 8, 8, seed=1, scale=9), temperature)
    assert (drawn * 64).norm(dim=1).max() <= math.sqrt(2) * temperature * (1 + 1e-5)


def test_sure_of_the_same_class_the_gradient_vanishes_with_the_temperature():
    z, v = (
        torch.tensor([3.0, 0, 0]).reshape(1, 3, 1, 1),
        torch.tensor([5.0, 0, 1]).reshape(1, 3, 1, 1),
    )
    sizes = [kd_gradient(z, v, T).norm().item() for T in (4.0, 1.0, 0.25)]
    assert sizes[0] > 5 * sizes[1] and sizes[1] > 100 * sizes[2]


def test_void_pixels_count_in_the_divergence_and_not_in_cross_entropy():
    z, v, y = randn(1, 4, 6, 6), randn(1, 4, 6, 6, seed=1), torch.zeros(1, 6, 6, dtype=torch.int64)
    y[:, :3] = 255
    terms = KnowledgeDistillationLoss(gamma=0.0)(z, {}, y, teacher_NKHW=v)
    assert (terms.ce.count.item(), terms.kd.count.item()) == (18, 36)


def test_what_t_chooses_is_as_the_text_says():
    """A swap of two unlikely classes against a swap of the upper two, of a teacher's three."""
    teacher, low, high = (
        torch.tensor(scores).reshape(1, 3, 1, 1)
        for scores in ([8.0, 2, -2], [8.0, -2, 2], [2.0, 8, -2])
    )
    for temperature, digits in ((1.0, 4), (4.0, 2)):
        sizes = [kd_gradient(z, teacher, temperature).norm() for z in (low, high)]
        share = f"{(sizes[0] / sizes[1]).item():.{digits}f}"
        assert f"has {share} of the gradient" in TEXT or f"at T = 4 it has {share}." in TEXT


def test_a_class_that_neither_side_believes_in_has_no_more_gradient_than_its_probability():
    z, v = randn(1, 9, 8, 8, scale=4), randn(1, 9, 8, 8, seed=1, scale=4)
    unlikely = torch.maximum(z.softmax(1), v.softmax(1)) < 0.01
    found = {T: (kd_gradient(z, v, T) * 64).abs()[unlikely].max().item() for T in (1.0, 4.0)}
    assert unlikely.sum() > 50 and found[1.0] < 0.01 and found[4.0] > 0.1


def test_at_t_1_label_and_divergence_are_one_smoothed_label():
    z, v, y = randn(2, 5, 4, 4), randn(2, 5, 4, 4, seed=1, scale=2), torch.arange(32) % 5
    y, leaf, beta = y.reshape(2, 4, 4), z.requires_grad_(), 0.7
    both = cross_entropy(leaf, y).mean + beta * kd_divergence(leaf, v, temperature=1.0).mean
    hot = F.one_hot(y, 5).permute(0, 3, 1, 2)
    expected = (1 + beta) / 32 * (z.softmax(1) - (hot + beta * v.softmax(1)) / (1 + beta))
    torch.testing.assert_close(gradient(both, leaf), expected, rtol=1e-4, atol=1e-7)


# --- the teacher's class


def pseudo_gradient(z: Tensor, v: Tensor, labelled_N: Tensor, threshold: float = 0.0) -> Tensor:
    leaf = z.clone().requires_grad_()
    term = pseudo_cross_entropy(leaf, v, labelled_N=labelled_N, threshold=threshold)
    return gradient(term.mean, leaf)


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_gradient_of_the_teachers_class_is_that_of_a_label_in_the_pixels_used(threshold: float):
    z, v, labelled_N = randn(3, 5, 4, 4), randn(3, 5, 4, 4, seed=1), torch.arange(3) == 1
    used = ((v.softmax(1).amax(1) >= threshold) & ~labelled_N[:, None, None]).unsqueeze(1)
    hot = F.one_hot(v.argmax(1), 5).permute(0, 3, 1, 2)
    expected = (z.softmax(1) - hot) * used / used.sum()
    found = pseudo_gradient(z, v, labelled_N, threshold)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_the_hard_label_is_the_teachers_answer_as_t_goes_to_zero():
    z, v, none = randn(1, 5, 4, 4), randn(1, 5, 4, 4, seed=1), torch.tensor([False])
    leaf = z.requires_grad_()
    soft = -((v / 1e-4).softmax(1) * leaf.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(pseudo_gradient(z, v, none), gradient(soft, leaf))


def test_class_and_divergence_together_ask_for_a_sharper_teacher():
    z, v, none = randn(1, 5, 4, 4), randn(1, 5, 4, 4, seed=1), torch.tensor([False])
    hot = F.one_hot(v.argmax(1), 5).permute(0, 3, 1, 2)
    expected = 2 / 16 * (z.softmax(1) - (hot + v.softmax(1)) / 2)
    found = pseudo_gradient(z, v, none) + kd_gradient(z, v, 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert (1 + 0.6) / 2 == 0.8  # of the text


def test_a_threshold_does_not_lower_the_weight():
    """Half of the pixels are used, each with twice the gradient."""
    z, none = randn(1, 3, 4, 4), torch.tensor([False])
    v = torch.zeros(1, 3, 4, 4)
    v[:, 1, :, :2], v[:, 1, :, 2:] = 0.1, 9.0  # in doubt, and sure
    all_, half = (pseudo_gradient(z, v, none, threshold) for threshold in (0.0, 0.7))
    assert not half[..., :2].any()
    torch.testing.assert_close(half[..., 2:], 2 * all_[..., 2:])


# --- features


def test_gradient_of_the_feature_term_turns_and_does_not_lengthen():
    s, u = randn(1, 8, 3, 3).requires_grad_(), randn(1, 8, 3, 3, seed=1)
    found = gradient(feature_distance(s, u).sum, s)
    cosine, length = F.cosine_similarity(s, u, dim=1)[:, None], s.norm(dim=1, keepdim=True)
    expected = -(F.normalize(u, dim=1) - cosine * F.normalize(s, dim=1)) / length
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (found * s).sum(1).abs().max() < 1e-5
    torch.testing.assert_close(
        found.norm(dim=1, keepdim=True), (1 - cosine**2).sqrt() / length, rtol=1e-4, atol=1e-6
    )


def feature_gradients(
    loss: KnowledgeDistillationLoss, s: Tensor, x: Tensor
) -> tuple[float, Tensor, Tensor]:
    """The feature term through the loss, and its gradients by student and projection."""
    leaf = s.clone().requires_grad_()
    total = loss(
        torch.zeros(len(s), 2, 4, 4), {"low": leaf}, None, teacher_features={"low": x}
    ).total
    return total.item(), *torch.autograd.grad(total, [leaf, loss.align["low"].weight])


def feature_loss_alone(channels: tuple[int, int] = (12, 5)) -> KnowledgeDistillationLoss:
    torch.manual_seed(3)
    return KnowledgeDistillationLoss(0.0, 0.0, 1.0, channels={"low": channels})


def test_lengths_of_the_teachers_features_change_neither_term_nor_gradients():
    loss, s, x = feature_loss_alone(), randn(2, 5, 4, 4), randn(2, 12, 4, 4, seed=1).relu()
    factors = randn(2, 1, 4, 4, seed=2).exp() * 30  # one for each position
    plain, scaled = (feature_gradients(loss, s, values) for values in (x, x * factors))
    for before, after in zip(plain, scaled, strict=True):
        torch.testing.assert_close(
            torch.as_tensor(before), torch.as_tensor(after), rtol=1e-4, atol=1e-6
        )


def test_a_squared_distance_has_a_gradient_as_large_as_the_teachers_features():
    s, u = randn(1, 8, 3, 3).requires_grad_(), randn(1, 8, 3, 3, seed=1)
    sizes = [gradient((s - c * u).square().sum(), s).norm() for c in (100, 1000)]
    assert (sizes[1] / sizes[0]).item() == pytest.approx(10, rel=0.01)


def test_a_basis_goes_into_the_projection():
    """A (V c) = (A V) c, on another grid, too; the gradient by A as well."""
    loss, s, V = feature_loss_alone(), randn(2, 5, 4, 4), torch.linalg.qr(randn(12, 7, seed=4))[0]
    coefficients = (randn(2, 7, 3, 2, seed=1) * 30).to(torch.int8)
    target = Target(coefficients, torch.full((2, 7), 0.05), V)
    stored, built = (feature_gradients(loss, s, x) for x in (target, target.decode()))
    for ours, theirs in zip(stored, built, strict=True):
        torch.testing.assert_close(
            torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-4, atol=1e-6
        )


def test_resized_directions_are_not_the_directions_of_resized_features():
    loss, s, x = feature_loss_alone(), randn(2, 5, 4, 4), randn(2, 12, 8, 8, seed=1)
    lengths = x * randn(2, 1, 8, 8, seed=2).exp()
    whole, directions = (
        feature_gradients(loss, s, values)[0] for values in (lengths, F.normalize(lengths, dim=1))
    )
    assert abs(whole - directions) > 1e-4


def test_a_projection_of_rank_one_and_a_constant_student_cheat():
    """Features behind a ReLU: the term is 0 though nothing is known of the image. A random
    projection has full rank.
    """
    loss, x = feature_loss_alone(), randn(2, 12, 4, 4, seed=1).relu()
    a = randn(5, seed=6)
    assert torch.linalg.matrix_rank(loss.align["low"].weight[:, :, 0, 0]) == 5
    constant = a.reshape(1, 5, 1, 1).repeat(2, 1, 4, 4)
    before = feature_gradients(loss, constant, x)[0]
    loss.align["low"].weight.data = a.reshape(5, 1, 1, 1).repeat(1, 12, 1, 1)
    after = feature_gradients(loss, constant, x)[0]
    assert before > 0.1 and after == pytest.approx(0, abs=1e-6)


def test_a_constant_student_cannot_cheat_a_projection_on_its_own_side():
    """Whatever B is, B s is one vector: at best the mean direction of the teacher's features."""
    x = randn(2, 12, 4, 4, seed=1)
    directions = F.normalize(x, dim=1).permute(1, 0, 2, 3).flatten(1)
    best = directions.mean(1)[None, :, None, None].expand_as(x)
    found = feature_distance(best, x).mean.item()
    assert found == pytest.approx(1 - directions.mean(1).norm().item(), rel=1e-4) and found > 0.5


# --- grids


def test_upsampling_is_a_matrix_whose_rows_are_weights():
    R = resize_to(torch.eye(6).reshape(6, 1, 2, 3), (16, 24)).reshape(6, -1).T
    x = randn(2, 4, 2, 3)
    torch.testing.assert_close(resize_to(x, (16, 24)).flatten(2), x.flatten(2) @ R.T)
    assert R.min() >= 0 and torch.allclose(R.sum(1), torch.ones(16 * 24))
    assert 16 * 24 / 6 == 64  # stride 8


def up(x_NCHW: Tensor) -> Tensor:
    return resize_to(x_NCHW, (24, 40))


def test_upsampling_commutes_with_what_is_linear_and_not_with_softmax():
    x, A = randn(2, 4, 3, 5, scale=3), randn(7, 4, 1, 1, seed=1)
    torch.testing.assert_close(up(x / 4), up(x) / 4)
    torch.testing.assert_close(up(x - 7), up(x) - 7, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(up(F.conv2d(x, A)), F.conv2d(up(x), A), rtol=1e-4, atol=1e-5)
    assert (up(x.softmax(1)) - up(x).softmax(1)).abs().max() > 0.1


def test_the_two_cells_of_the_text():
    cells = torch.tensor([[8.0, 0.0], [0.0, 2.0]])  # cell, class
    by_scores = cells.mean(0).softmax(0)[0].item()
    by_probabilities = cells.softmax(1).mean(0)[0].item()
    words = f"has {by_scores:.3f} by upsampled scores and {by_probabilities:.3f} by upsampled"
    assert f"{words} probabilities" in TEXT


# --- precision


def test_float16_changes_softened_probabilities_by_the_factor_of_the_text():
    v = randn(1, 21, 64, 64, scale=4).clamp(-15.9, 15.9)
    error = (v.half().float() - v).abs().max().item()
    ratio = ((v.half().float() / 4).log_softmax(1) - (v / 4).log_softmax(1)).abs().max().item()
    assert 0.5 / 256 < error <= 1 / 256 and ratio <= 2 * error / 4
    assert f"{(math.exp(2 / 256 / 4) - 1) * 100:.1f} % at T = 4" in TEXT


def test_the_student_has_the_channels_of_the_page():
    assert f"({', '.join(map(str, STUDENT_CHANNELS.values()))} against 256, 512, 1024)" in TEXT
