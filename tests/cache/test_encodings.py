"""Encodings: what is stored of an answer, what comes back of it, and that the loss works on the
stored numbers.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache.basis import BasisLearner, choose_samples, hash_basis
from kdcache.cache.encodings import LARGEST, Encoding, encode, make_target
from kdcache.config import KINDS
from kdcache.config.names import as_preset
from kdcache.config.parser import make_config
from kdcache.errors import SettingsError
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.losses.target import Target


def make_features(seed: int = 0, shape: tuple = (3, 8, 6, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu() * 3


def learn(values: torch.Tensor, rank: int) -> np.ndarray:
    learner = BasisLearner()
    for sample in values.split(1):
        learner.add("low", sample)
    return learner.finish({"low": rank})["low"]


def test_int8_is_within_half_a_step_of_each_channel():
    x = make_features() * torch.logspace(-3, 4, 8)[None, :, None, None]
    stored = encode("low", x, Encoding("int8"), None)
    assert stored["low"].dtype == torch.int8 and stored["low_scale"].shape == (3, 8)
    decoded = make_target("low", stored, None).decode()
    assert ((decoded - x).abs() <= 0.5001 * stored["low_scale"][:, :, None, None]).all()
    assert torch.allclose(stored["low_scale"] * 127, x.abs().amax((2, 3)))


def test_int8_of_zeros_is_zeros_and_a_huge_value_costs_its_own_channel_only():
    x = make_features()
    x[1, 2] = 0
    x[0, 3, 1, 1] = 3e38
    decoded = make_target("low", encode("low", x, Encoding("int8"), None), None).decode()
    assert (decoded[1, 2] == 0).all() and torch.isfinite(decoded).all()
    others = torch.ones_like(x, dtype=torch.bool)
    others[0, 3] = False
    assert (decoded - x)[others].abs().max() < 0.06 and decoded[0, 3, 1, 1] == pytest.approx(
        3e38, rel=1e-3
    )


def test_full_rank_lowrank_keeps_every_direction():
    x = make_features(shape=(4, 8, 16, 16))
    basis = learn(x, 8)
    assert np.allclose(basis.T @ basis, np.eye(8), atol=1e-6)
    encoding = Encoding("lowrank", 8, 8, 1 / 127, hash_basis(basis))
    decoded = make_target(
        "low", encode("low", x, encoding, torch.from_numpy(basis)), torch.from_numpy(basis)
    ).decode()
    seen = x.abs().amax(1) > 0
    assert F.cosine_similarity(decoded, x)[seen].min() > 0.999


def test_lowrank_never_overflows_and_zeros_stay_zeros():
    x = make_features() * 1e30
    x[:, :, 0] = 0
    basis = learn(make_features(1), 5)
    stored = encode("low", x, Encoding("lowrank", 8, 5, 1 / 127, ""), torch.from_numpy(basis))[
        "low"
    ]
    assert stored.abs().max() <= 127 and (stored[:, :, 0] == 0).all() and stored.abs().max() > 60


def test_the_basis_is_the_leading_eigenvectors_of_the_directions_moments():
    x = make_features(shape=(5, 8, 7, 3))
    directions = F.normalize(x, dim=1).permute(0, 2, 3, 1).reshape(-1, 8).double().numpy()
    values, vectors = np.linalg.eigh(directions.T @ directions)
    ours, theirs = learn(x, 3), vectors[:, ::-1][:, :3]
    assert np.allclose(np.abs(ours.T @ theirs), np.eye(3), atol=1e-5)
    kept = np.square(directions @ ours).sum()
    assert kept == pytest.approx(values[-3:].sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0, 1]), (48, list(range(48))), (95, list(range(0, 95, 2)))],
)
def test_a_basis_is_learned_from_samples_spread_evenly(count, expected):
    assert choose_samples(count) == expected


@pytest.mark.parametrize("hw", [(6, 5), (12, 10), (3, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_stored_target_is_that_of_the_decoded_one(kind, hw):
    x = make_features()
    basis = torch.from_numpy(learn(x, 4)) if kind == "lowrank" else None
    encoding = Encoding(kind) if kind != "lowrank" else Encoding(kind, 8, 4, 0.05, "")
    target = make_target("low", encode("low", x, encoding, basis), basis)
    student = torch.randn(3, 5, *hw, generator=torch.Generator().manual_seed(2))
    found, expected = (feel(student, answer) for answer in (target, target.decode()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def feel(student: torch.Tensor, answer: torch.Tensor | Target) -> tuple[torch.Tensor, ...]:
    """The feature term, and its gradients by student and projection."""
    torch.manual_seed(3)
    loss = KnowledgeDistillationLoss(0.0, 0.0, 1.0, 4.0, {"low": (8, 5)})
    student = student.clone().requires_grad_()
    scores = torch.zeros(3, 2, 4, 4)
    total = loss(scores, {"low": student}, None, teacher_features={"low": answer}).total
    total.backward()
    return total.detach(), student.grad, loss.align["low"].weight.grad


def test_int8_scores_are_decoded_for_the_divergence():
    scores = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    stored = encode("logits", scores, Encoding("int8"), None)
    by_hand = stored["logits"].float() * stored["logits_scale"].reshape(2, 4, 1, 1)
    loss, student = KnowledgeDistillationLoss(0.0, 1.0, 0.0), torch.zeros(2, 4, 6, 6)
    answers_ = (make_target("logits", stored, None), by_hand, scores)
    ours, theirs, exact = (
        loss(student, {}, None, teacher_NKHW=answer).total for answer in answers_
    )
    assert ours == theirs == pytest.approx(exact.item(), rel=0.02) and exact > 0


def test_a_target_of_another_shape_is_refused():
    loss = KnowledgeDistillationLoss(0.0, 0.0, 1.0, 4.0, {"low": (8, 5)})
    short = Target(torch.zeros(3, 4, 6, 5, dtype=torch.int8), None, torch.zeros(7, 4))
    with pytest.raises(
        ValueError, match=r"low has shape \(3, 7, 6, 5\), expected \(3, 8, any grid\)"
    ):
        loss(
            torch.zeros(3, 2, 4, 4),
            {"low": torch.zeros(3, 5, 6, 5)},
            None,
            teacher_features={"low": short},
        )


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30), st.sampled_from(KINDS[1:]))
def test_any_finite_answer_comes_back_finite(seed, size, kind):
    x = make_features(seed, (1, 8, 3, 2)) * size
    basis = torch.eye(8)[:, :4].contiguous() if kind == "lowrank" else None
    encoding = Encoding("lowrank", 8, 4, 0.03, "") if kind == "lowrank" else Encoding(kind)
    decoded = make_target("low", encode("low", x, encoding, basis), basis).decode()
    assert torch.isfinite(decoded).all()


def test_every_encoding_has_a_largest_answer():
    assert set(LARGEST) == set(KINDS)


def test_a_kind_that_no_preset_gives_features_stands_for_all_answers():
    assert as_preset("new") == {"logits": "new", "features": "new"}


@pytest.mark.parametrize("encoding", [{"low": ["int8"]}, {"low": {}}, 3])
def test_an_encoding_that_is_no_word_is_refused(encoding):
    with pytest.raises(SettingsError, match="cache.encoding is"):
        make_config({"cache": {"encoding": encoding}})
