"""Cross-entropy and softened divergence in one pass over the pixels, gradient included.

At full size the scores of a batch are tens of megabytes, and every step of the textbook formula
reads and writes them: a loss costs memory traffic, not arithmetic. Here scores stay on their coarse
grid. One band of rows at a time is upsampled, both terms and their gradient are computed while it
is in the processor's cache, and the gradient is brought back to the coarse grid. Upsampling is two
matrix products, so nothing of full size is ever in memory.

Letters: N images, K classes, h, w coarse grids, H, W the labels' size, R rows of a band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.config import VOID

# numbers of one band: few enough for the L2 cache of a CPU, many enough to keep a GPU busy
BAND_NUMBERS = {"cpu": 1 << 17, "cuda": 1 << 26}


@dataclass(frozen=True)
class PixelWeights:
    """Factors of each term's sum over pixels, and the temperature T > 0."""

    ce: Tensor | float
    kd: Tensor | float
    temperature: float


class _PixelLoss(torch.autograd.Function):
    """Computes the gradient with the loss, and keeps it on the coarse grid until backward."""

    @staticmethod
    def forward(ctx, student_NKhw, label_NHW, teacher_NKhw, hw, weights, compute):
        sums = torch.zeros(2, dtype=torch.float64, device=student_NKhw.device)
        gradient = torch.empty(student_NKhw.shape, device=student_NKhw.device)
        for images, rows in _bands(student_NKhw, hw):
            student = Upsampled(student_NKhw[images].float(), hw)
            teacher = (
                None
                if teacher_NKhw is None
                else Upsampled(teacher_NKhw[images].float() / weights.temperature, hw)
            )
            for start, stop in rows:
                label = (
                    None
                    if label_NHW is None
                    else label_NHW[images, start:stop].transpose(0, 1).unsqueeze(2)
                )
                answer = None if teacher is None else teacher.band(start, stop)
                band_sums, band_gradient = compute(
                    student.band(start, stop), label, answer, weights
                )
                sums += band_sums
                student.add_gradient(start, stop, band_gradient)
            gradient[images] = student.gradient()
        ctx.save_for_backward(gradient)
        ctx.dtype = student_NKhw.dtype
        total = (sums[0] * weights.ce + sums[1] * weights.kd).float()
        ce, kd = sums.float()
        ctx.mark_non_differentiable(ce, kd)
        return total, ce, kd

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total, *_):
        return (ctx.saved_tensors[0] * grad_total).to(ctx.dtype), None, None, None, None, None


def pixel_loss(
    student_NKhw: Tensor,
    *,
    label_NHW: Tensor | None,
    teacher_NKhw: Tensor | None,
    hw: tuple[int, int],
    weights: PixelWeights,
    compute: Callable,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of `terms.cross_entropy` and `terms.kd_divergence` at size `hw`, in one pass.

    Args:
        student_NKhw, teacher_NKhw: raw scores on grids of at most hw; None: no divergence.
        label_NHW: uint8 or int64 classes or VOID; None: no cross-entropy.
        weights: factors of both sums, and the temperature.
        compute: `compute_band`, perhaps compiled.

    Returns: the weighted sum (differentiable once, by student_NKhw), and both unweighted sums, as
    float32 scalars.
    """
    teacher = None if teacher_NKhw is None else teacher_NKhw.detach()
    return _PixelLoss.apply(student_NKhw, label_NHW, teacher, tuple(hw), weights, compute)


def compute_band(
    student: Tensor, label: Tensor | None, teacher: Tensor | None, weights: PixelWeights
) -> tuple[Tensor, Tensor]:
    """Both sums (float64 [2]) and the gradient of their weighted sum by the student's scores.

    Args:
        student, teacher: float32 [R, N, K, W], the teacher's divided by T; both are overwritten.
        label: [R, N, 1, W].
        weights: factors of both sums, and the temperature.
    """
    student -= student.amax(2, keepdim=True)
    ce = kd = None
    gradient = torch.zeros_like(student) if label is None else None
    if label is not None:
        ce, gradient = _cross_entropy_band(student, label, weights.ce)
    if teacher is not None:
        kd = _divergence_band(student, teacher, weights, gradient)
    zero = torch.zeros((), dtype=torch.float64, device=student.device)
    return torch.stack([zero if term is None else term.double() for term in (ce, kd)]), gradient


def _cross_entropy_band(
    scores: Tensor, label: Tensor, weight: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax at the label, and weight times its gradient; `scores` have maximum 0."""
    valid = label != VOID
    known = torch.where(valid, label, 0).long()
    share = scores.exp()
    total = share.sum(2, keepdim=True)
    cost = ((total.log() - scores.gather(2, known)) * valid).sum()
    scale = valid * weight
    share *= scale / total
    return cost, share.scatter_add_(2, known, -scale)


def _divergence_band(
    student: Tensor, teacher: Tensor, weights: PixelWeights, gradient: Tensor
) -> Tensor:
    """T^2 times the summed KL(teacher || student), as a float32 scalar.

    Adds its weighted gradient to `gradient`, and overwrites both scores.
    """
    student *= 1 / weights.temperature  # maximum 0
    teacher -= teacher.amax(2, keepdim=True)  # divided by T already, on its coarse grid
    p = teacher.exp()
    p_total = p.sum(2, keepdim=True)
    teacher -= student
    q = student.exp_()
    q_total = q.sum(2, keepdim=True)
    distance = teacher.mul_(p).sum(2, keepdim=True) / p_total
    divergence = (distance + q_total.log() - p_total.log()).sum()
    scale = weights.kd * weights.temperature
    gradient.addcmul_(q, scale / q_total).addcmul_(p, -scale / p_total)
    return divergence * weights.temperature**2


def _bands(x_NKhw: Tensor, hw: tuple[int, int]) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Slices of images, and the bands of rows of each slice, that are computed together."""
    num, classes = x_NKhw.shape[:2]
    row_numbers = classes * hw[1]
    most_rows = max(1, BAND_NUMBERS.get(x_NKhw.device.type, BAND_NUMBERS["cuda"]) // row_numbers)
    images = max(1, most_rows // hw[0])
    step = min(most_rows, hw[0])
    rows = [(start, min(start + step, hw[0])) for start in range(0, hw[0], step)]
    return ((slice(n, n + images), rows) for n in range(0, num, images))


class Upsampled:
    """Coarse scores upsampled a band of rows at a time, and the way back for their gradient.

    Args:
        x_NKhw: float32 scores.
        hw: full size; values equal those of `kdcache.models.inputs.resize_to`.
    """

    def __init__(self, x_NKhw: Tensor, hw: tuple[int, int]) -> None:
        self.num, self.classes, height, width = x_NKhw.shape
        self.rows = _matrix(height, hw[0], x_NKhw.device)
        self.columns = _matrix(width, hw[1], x_NKhw.device)
        x_hNKw = x_NKhw.permute(2, 0, 1, 3)
        wide = x_hNKw.contiguous() if width == hw[1] else x_hNKw @ self.columns.T
        self.wide = wide.reshape(height, -1)
        self.gradient_wide: Tensor | None = None

    def band(self, start: int, stop: int) -> Tensor:
        """Rows start to stop at full size, [R, N, K, W], a new tensor."""
        weights, used = self._weights(start, stop)
        return (weights @ self.wide[used]).view(stop - start, self.num, self.classes, -1)

    def add_gradient(self, start: int, stop: int, gradient_RNKW: Tensor) -> None:
        """Add the gradient of `band(start, stop)`, `gradient_RNKW`, to that of the whole."""
        if self.gradient_wide is None:
            self.gradient_wide = torch.zeros_like(self.wide)
        weights, used = self._weights(start, stop)
        self.gradient_wide[used].addmm_(weights.T, gradient_RNKW.reshape(stop - start, -1))

    def gradient(self) -> Tensor:
        """The gradient of the coarse scores, [N, K, h, w], from all bands."""
        wide = self.gradient_wide.view(len(self.wide), self.num, self.classes, -1)
        narrow = wide if wide.shape[-1] == self.columns.shape[1] else wide @ self.columns
        return narrow.permute(1, 2, 0, 3)

    def _weights(self, start: int, stop: int) -> tuple[Tensor, slice]:
        """Weights of the rows, and the slice of coarse rows whose weights are not 0."""
        size_out, size_in = self.rows.shape
        first, last = ((row + 0.5) * size_in / size_out - 0.5 for row in (start, stop - 1))
        used = slice(max(int(first), 0), min(int(last) + 2, size_in))
        return self.rows[start:stop, used], used


@lru_cache(maxsize=64)
def _matrix(size_in: int, size_out: int, device: torch.device) -> Tensor:
    """Weights [size_out, size_in] of torch's linear interpolation without align_corners."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(size_in)[None]
        return (
            F.interpolate(unit, size=size_out, mode="linear", align_corners=False)[0]
            .T.contiguous()
            .to(device)
        )
