"""Cross-entropies and softened divergence in one pass over the pixels, gradient included.

At full size the scores of a batch are tens of megabytes, and every step of the textbook formula
reads and writes them: a loss costs memory traffic, not arithmetic. Here scores stay on their coarse
grid. One band of rows at a time is upsampled (`target`), all terms and their gradient are computed
while it is in the processor's cache, and the gradient is brought back to the coarse grid.

A pixel has one class to learn: its label, or the teacher's class in images without labels. So both
cross-entropies share one softmax, and differ in the weight of the pixel.

Letters: N images, K classes, h, w coarse grids, H, W the labels' size, R rows of a band.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.config import VOID
from kdcache.losses.target import (
    PixelTargets,
    Upsampled,
    find_classes,
    split_bands,
    sum_dtype,
)


@dataclass(frozen=True)
class PixelWeights:
    """Factor of each term's sum over pixels, None for a term that is not computed.

    temperature: T > 0 of the divergence. threshold: least confidence of a teacher's class, 0 to 1.
    """

    ce: Tensor | None
    pseudo: Tensor | None
    kd: Tensor | None
    temperature: float
    threshold: float = 0.0

    def sum_up(self, sums: Tensor) -> Tensor:
        """The weighted sum of the three `sums`, a scalar of their dtype."""
        factors = zip(sums, (self.ce, self.pseudo, self.kd), strict=True)
        return sum(sum_ * factor for sum_, factor in factors if factor is not None)


class _PixelLoss(torch.autograd.Function):
    """Computes the gradient with the loss, and keeps it on the coarse grid until backward."""

    @staticmethod
    def forward(ctx, student_NKhw, targets, weights, compute):
        hw, teacher_NKhw = targets.hw, targets.teacher_NKhw
        label_NHW, labelled_N = targets.label_NHW, targets.labelled_N
        sums = torch.zeros(3, dtype=sum_dtype(student_NKhw.device), device=student_NKhw.device)
        gradient = torch.empty_like(student_NKhw, dtype=torch.float32)  # in its memory format
        for images, rows in split_bands(student_NKhw, hw):
            student = Upsampled(student_NKhw[images].float(), hw)
            teacher = (
                None
                if teacher_NKhw is None
                else Upsampled(teacher_NKhw[images].float() / weights.temperature, hw)
            )
            labelled = None if labelled_N is None else labelled_N[images, None, None]
            for start, stop in rows:
                label = (
                    None
                    if label_NHW is None
                    else label_NHW[images, start:stop].transpose(0, 1).unsqueeze(2)
                )
                answer = None if teacher is None else teacher.band(start, stop)
                band_sums, band_gradient = compute(
                    student.band(start, stop), label, answer, labelled, weights
                )
                sums += band_sums
                student.add_gradient(start, stop, band_gradient)
            gradient[images] = student.gradient()
        ctx.save_for_backward(gradient)
        ctx.dtype = student_NKhw.dtype
        parts = sums.float().unbind()
        ctx.mark_non_differentiable(*parts)
        return weights.sum_up(sums).float(), *parts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total, *_):
        return (ctx.saved_tensors[0] * grad_total).to(ctx.dtype), None, None, None


def pixel_loss(
    student_NKhw: Tensor, *, targets: PixelTargets, weights: PixelWeights, compute: Callable
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted sum of `terms.cross_entropy`, `pseudo_cross_entropy` and `kd_divergence`.

    All are computed in one pass.

    Args:
        student_NKhw: raw scores on a grid of at most the targets' size.
        targets: labels, teacher and size.
        weights: factors of the three sums, and the temperature.
        compute: `compute_band`, perhaps compiled.

    Returns: the weighted sum (differentiable once, by student_NKhw), and the three unweighted sums
        in this order, as float32 scalars.
    """
    return _PixelLoss.apply(student_NKhw, targets, weights, compute)


def compute_band(
    student: Tensor,
    label: Tensor | None,
    teacher: Tensor | None,
    labelled: Tensor | None,
    weights: PixelWeights,
) -> tuple[Tensor, Tensor]:
    """The three sums (`sum_dtype` [3]), and the gradient of their weighted sum by the scores.

    Args:
        student, teacher: float32 [R, N, K, W], the teacher's divided by T; both are overwritten.
        label: [R, N, 1, W]. labelled: bool [N, 1, 1], None without teacher's classes.
        weights: factors of the three sums, and the temperature.
    """
    student -= student.amax(2, keepdim=True)
    ce = pseudo = kd = log_total = None
    gradient = torch.zeros_like(student) if label is None and labelled is None else None
    # softmax at T = 1 is that of the cross-entropy, too
    shared = weights.kd if weights.temperature == 1 and weights.kd is not None else 0.0
    if teacher is not None:
        teacher -= teacher.amax(2, keepdim=True)
    if labelled is not None:
        target, weight = _choose_target(label, teacher, labelled, weights)
        cost, log_total, gradient = _cross_entropy_band(student, target, weight, shared)
        cost_N = cost.sum((0, 2, 3))
        ce, pseudo = ((cost_N * rows.flatten()).sum() for rows in (labelled, ~labelled))
    elif label is not None:
        cost, log_total, gradient = _cross_entropy_band(student, label, weights.ce, shared)
        ce = cost.sum()
    if weights.kd is not None:
        known = log_total if weights.temperature == 1 else None
        kd = _divergence_band(student, teacher, weights, gradient, log_total=known)
    zero = torch.zeros((), dtype=sum_dtype(student.device), device=student.device)
    sums = [zero if term is None else term.to(zero.dtype) for term in (ce, pseudo, kd)]
    return torch.stack(sums), gradient


def _choose_target(
    label: Tensor | None, teacher: Tensor, labelled: Tensor, weights: PixelWeights
) -> tuple[Tensor, Tensor]:
    """Class or VOID of each pixel, [R, N, 1, W], and the weight of each image, [N, 1, 1].

    Args:
        teacher: scores divided by T, with maximum 0.
    """
    classes = find_classes(teacher, temperature=weights.temperature, threshold=weights.threshold)
    target = torch.where(labelled, VOID if label is None else label, classes)
    own = 0.0 if weights.ce is None else weights.ce
    return target, torch.where(labelled, own, weights.pseudo)


def _cross_entropy_band(
    scores: Tensor, label: Tensor, weight: Tensor, shared: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """-log softmax at the label, log of the summed exponentials, gradient; scores have maximum 0.

    Args:
        weight: of the gradient. shared: weight of the softmax in another term's gradient, which is
            added.
    """
    valid = label != VOID
    known = torch.where(valid, label, 0).long()
    share = scores.exp()
    total = share.sum(2, keepdim=True)
    log_total = total.log()
    cost = (log_total - scores.gather(2, known)) * valid
    scale = valid * weight
    share *= (scale + shared) / total
    return cost, log_total, share.scatter_add_(2, known, -scale)


def _divergence_band(
    student: Tensor,
    teacher: Tensor,
    weights: PixelWeights,
    gradient: Tensor,
    *,
    log_total: Tensor | None,
) -> Tensor:
    """T^2 times the summed KL(teacher || student), as a float32 scalar.

    Adds its weighted gradient to `gradient`, and overwrites both scores, which have maximum 0.

    Args:
        log_total: log of the student's summed exponentials, if T is 1 and `gradient` has the
            student's part; else None.
    """
    if log_total is None:
        student *= 1 / weights.temperature
    p = teacher.exp()  # divided by T already, on its coarse grid
    p_total = p.sum(2, keepdim=True)
    teacher -= student
    scale = weights.kd * weights.temperature
    if log_total is None:
        q = student.exp_()
        q_total = q.sum(2, keepdim=True)
        log_total = q_total.log()
        gradient.addcmul_(q, scale / q_total)
    distance = teacher.mul_(p).sum(2, keepdim=True) / p_total
    divergence = (distance + log_total - p_total.log()).sum()
    gradient.addcmul_(p, -scale / p_total)
    return divergence * weights.temperature**2
