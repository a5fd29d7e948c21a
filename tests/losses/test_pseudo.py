"""Images without a label in one pass: the loss against its definition with autograd in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kdcache.losses import (
    KnowledgeDistillationLoss,
    Term,
    cross_entropy,
    kd_divergence,
    pseudo_cross_entropy,
    target,
)
from kdcache.losses.target import find_classes
from kdcache.models.inputs import resize_to
from tests.support.helpers import check_one_line

HW, CLASSES = (24, 20), 5
ROWS = {
    "mixed": (True, False, False), "all labelled": (True,) * 3, "none labelled": (False,) * 3
}  # fmt: skip


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def make_case(rows: str = "mixed", *, answer: tuple[int, int] = (3, 2)) -> dict:
    """Arguments of the loss: images without a label are VOID throughout."""
    labelled_N = torch.tensor(ROWS[rows])
    drawn = torch.randint(0, 7, (3, *HW), generator=torch.Generator().manual_seed(3))
    known = (drawn < CLASSES) & labelled_N[:, None, None]
    return {
        "student_NKHW": randn(3, CLASSES, 6, 5, scale=3).requires_grad_(),
        "student_features": {},
        "label_NHW": torch.where(known, drawn, 255).to(torch.uint8),
        "teacher_NKHW": randn(3, CLASSES, *answer, seed=2, scale=3).half(),
        "labelled_N": labelled_N,
    }


def make_loss(**weights: float) -> KnowledgeDistillationLoss:
    weights = {"alpha": 0.9, "beta": 0.5, "temperature": 1.0, "pseudo": 0.7, **weights}
    return KnowledgeDistillationLoss(gamma=0.0, **weights)


def define(loss: KnowledgeDistillationLoss, case: dict) -> dict[str, Term]:
    """The terms by their definitions in float64, differentiable by the student's coarse scores."""
    full = resize_to(case["student_NKHW"].double(), HW)
    teacher = case["teacher_NKHW"].double()
    pseudo = partial(pseudo_cross_entropy, full, teacher, labelled_N=case["labelled_N"])
    return {
        "ce": cross_entropy(full, case["label_NHW"].long()),
        "pseudo": pseudo(threshold=loss.pseudo_threshold),
        "kd": kd_divergence(full, teacher, temperature=loss.temperature),
    }


def check_equal(loss: KnowledgeDistillationLoss, case: dict, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        expected = define(loss, case)
    weights = {"ce": loss.alpha, "pseudo": loss.pseudo, "kd": loss.beta}
    total = sum(weights[name] * term.mean for name, term in expected.items())
    terms = loss(**case)
    assert terms.total.item() == pytest.approx(total.item(), rel=1e-5)
    for name, term in expected.items():
        found = getattr(terms, name)
        assert (found is None) == (weights[name] == 0), name
        if found is not None:
            assert found.sum.item() == pytest.approx(term.sum.item(), rel=1e-5, abs=1e-6), name
            assert found.count.item() == term.count.item(), name
    ours, theirs = (torch.autograd.grad(x, case["student_NKHW"])[0] for x in (terms.total, total))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("rows", list(ROWS))
@pytest.mark.parametrize("threshold", [0.0, 0.7])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("weights", [{}, {"beta": 0.0}, {"alpha": 0.0}], ids=str)
def test_value_and_gradient_are_those_of_the_definitions(
    monkeypatch, rows: str, threshold: float, temperature: float, weights: dict
):
    loss = make_loss(temperature=temperature, pseudo_threshold=threshold, **weights)
    check_equal(loss, make_case(rows), monkeypatch)


@pytest.mark.parametrize("band_numbers", [1, CLASSES * 20 * 7, CLASSES * 20 * 24 * 2, 1 << 26])
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_bands_do_not_matter(monkeypatch, band_numbers: int, threshold: float):
    """Of one row, of seven rows, of two of three images, of everything."""
    monkeypatch.setitem(target.BAND_NUMBERS, "cpu", band_numbers)
    check_equal(make_loss(temperature=4.0, pseudo_threshold=threshold), make_case(), monkeypatch)


def test_images_without_a_label_alone_teach_the_teachers_class(monkeypatch):
    """No other term: neither labels nor the divergence is computed."""
    loss = make_loss(alpha=0.0, beta=0.0)
    case = make_case(answer=HW)
    check_equal(loss, case, monkeypatch)
    (gradient,) = torch.autograd.grad(loss(**{**case, "label_NHW": None}, hw=HW).total,
                                      case["student_NKHW"])  # fmt: skip
    assert not gradient[0].any() and gradient[1:].any(dim=(1, 2, 3)).all()


def test_a_batch_in_which_all_have_labels_has_a_term_of_zero():
    """None means all: the term is there, so that processes with and without add up."""
    case = make_case("all labelled")
    with_pseudo = make_loss()(**{**case, "labelled_N": None})
    without = make_loss(pseudo=0.0)(**case)
    assert (with_pseudo.pseudo.sum.item(), with_pseudo.pseudo.count.item()) == (0, 0)
    assert without.pseudo is None and "pseudo" not in without.means()
    assert with_pseudo.total.item() == pytest.approx(without.total.item(), rel=1e-6)
    assert list(with_pseudo.means()) == ["ce", "pseudo", "kd", "total"]


def test_a_threshold_that_no_pixel_reaches_gives_zero_and_no_nan():
    case = make_case("none labelled")
    case["teacher_NKHW"] = torch.zeros_like(case["teacher_NKHW"])
    terms = make_loss(beta=0.0, pseudo_threshold=0.9)(**case)
    (gradient,) = torch.autograd.grad(terms.total, case["student_NKHW"])
    assert (terms.total.item(), terms.pseudo.count.item()) == (0, 0) and not gradient.any()


def test_a_large_temperature_does_not_lower_the_confidence():
    case = make_case()
    counts = {
        T: make_loss(temperature=T, pseudo_threshold=0.7)(**case).pseudo.count.item()
        for T in (0.25, 1.0, 20.0)
    }
    assert len(set(counts.values())) == 1 and 0 < counts[1.0] < 2 * 24 * 20


@pytest.mark.parametrize("given", [{"teacher_NKHW": None}, {"labelled_N": torch.ones(2).bool()}])
def test_what_the_term_needs_is_asked_for_by_name(given: dict):
    with pytest.raises(ValueError) as error:
        make_loss(beta=0.0)(**{**make_case(), **given})
    check_one_line(error, f"loss: {[*given][0]} has shape", "give the targets of this batch")


def test_the_class_is_torchs_argmax_and_the_first_of_equal_ones():
    scores = randn(4, 3, 21, 8).round()  # many are equal
    scores -= scores.amax(2, keepdim=True)
    found = find_classes(scores, temperature=1.0, threshold=0.0)
    first = (scores == 0).int().argmax(2, keepdim=True)
    assert torch.equal(found, first) and ((scores == 0).sum(2) > 1).any()


def test_counts_of_processes_are_added_up_before_the_division():
    """As the other terms: here the others have three times as many pixels of each term."""
    case, alone, together = make_case(), make_loss(), make_loss()
    together.add_up = lambda counts: counts * 4
    ours, theirs = alone(**case), together(**case)
    assert theirs.total.item() == pytest.approx(ours.total.item() / 4, rel=1e-6)
    assert theirs.pseudo.count.item() == ours.pseudo.count.item()
