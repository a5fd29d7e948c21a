"""The feature term in one pass over the teacher's features.

They are read once, as stored, and used while they are in the processor's cache.

Letters: N images, C teacher channels, R stored channels or coefficients, S student channels,
P positions of the student's grid, H, W its height and width, h, w those of the teacher's grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.losses.target import Target, as_target, sum_dtype
from kdcache.models.inputs import resize_to

SMALLEST_NORM = 1e-8  # as in torch.nn.functional.cosine_similarity
# how many of the teacher's numbers are float32 at the same time
TILE_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 28}


class _FeatureLoss(torch.autograd.Function):
    """Computes both gradients with the term: cheaper than reading the teacher's features twice."""

    @staticmethod
    def forward(ctx, student_NSHW, weight_SR, values_NRhw, scale_NR):
        hw = tuple(student_NSHW.shape[-2:])
        device = student_NSHW.device
        total = torch.zeros((), dtype=sum_dtype(device), device=device)
        by_student = torch.empty_like(student_NSHW, dtype=torch.float32)  # in its memory format
        by_weight = torch.zeros_like(weight_SR)
        most = TILE_NUMBERS.get(student_NSHW.device.type, TILE_NUMBERS["cuda"])
        images = max(1, most // (values_NRhw.shape[1] * hw[0] * hw[1]))
        for start in range(0, len(student_NSHW), images):
            tile = slice(start, start + images)
            x_NRP = resize_to(values_NRhw[tile].float(), hw).flatten(2)
            scale_N1R = x_NRP.new_ones(()) if scale_NR is None else scale_NR[tile][:, None]
            student_NSP = student_NSHW[tile].float().flatten(2)
            target_NSP = torch.bmm((weight_SR * scale_N1R).expand(len(x_NRP), -1, -1), x_NRP)
            distance, gradient, target_gradient = _distance(student_NSP, target_NSP)
            total += distance
            by_student[tile] = gradient.view_as(by_student[tile])
            by_weight += (torch.bmm(target_gradient, x_NRP.transpose(1, 2)) * scale_N1R).sum(0)
        ctx.save_for_backward(by_student, by_weight)
        ctx.dtype = student_NSHW.dtype
        return total.float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        by_student, by_weight = ctx.saved_tensors
        return (by_student * grad).to(ctx.dtype), by_weight * grad, None, None


def feature_loss(
    student_NSHW: Tensor, teacher_NChw: Tensor | Target, *, weight_SC: Tensor
) -> Tensor:
    """Sum over positions of `terms.feature_distance` between the student and the projected teacher.

    Args:
        student_NSHW: student features, any float dtype.
        teacher_NChw: teacher features, as a tensor or as stored, on any grid; resized to the
            student's.
        weight_SC: float32 weights of the 1x1 projection, trained with the student.

    Returns: float32 scalar, differentiable once, by student and weight.
    """
    target = as_target(teacher_NChw)
    return _FeatureLoss.apply(
        student_NSHW, target.project(weight_SC), target.values_NRHW.detach(), target.scale_NR
    )


def _distance(student_NSP: Tensor, target_NSP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Summed 1 - cosine over S, and its gradients by both arguments."""
    student_norm, target_norm = _norm(student_NSP), _norm(target_NSP)
    product = student_norm.clamp(min=SMALLEST_NORM) * target_norm.clamp(min=SMALLEST_NORM)
    cosine = (student_NSP * target_NSP).sum(1, keepdim=True) / product
    inverse = product.reciprocal()

    def slope(own: Tensor, other: Tensor, norm: Tensor) -> Tensor:
        # the cosine does not depend on a norm that is clamped
        bent = torch.where(norm > SMALLEST_NORM, cosine / norm.square(), 0.0)
        return (own * bent).addcmul_(other, inverse, value=-1)

    by_student = slope(student_NSP, target_NSP, student_norm)
    total = (1 - cosine).sum().to(sum_dtype(cosine.device))
    return total, by_student, slope(target_NSP, student_NSP, target_norm)


def _norm(x_NSP: Tensor) -> Tensor:
    """Norm over S, [N, 1, P]; on a CPU, torch's own over an inner dimension is 20 times slower."""
    return x_NSP.square().sum(1, keepdim=True).sqrt()
