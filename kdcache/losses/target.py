"""What the loss compares, in the form in which it compares it: the teacher's answers as they are
stored, scores upsampled a band of rows at a time, and the teacher's class as a pixel's label.

An answer is decoded where it is used. Upsampling is two matrix products, so nothing of full size is
ever in memory.

Letters: N images, C channels, K classes, R stored channels or coefficients, or rows of a band, S
student channels, h, w coarse grids, H, W full size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.config import VOID

# numbers of one band: few enough for the L2 cache of a CPU, many enough to keep a GPU busy
BAND_NUMBERS = {"cpu": 1 << 17, "cuda": 1 << 26}


@dataclass(frozen=True)
class Target:
    """A batch of one answer: x = basis (scale * values); factors that are absent are 1.

    A 1x1 projection A of x is the 1x1 projection A basis of scale * values, and resizing in between
    changes nothing, since both are linear: so the loss never builds the C channels.

    Args:
        values_NRHW: any dtype. scale_NR: float32. basis_CR: float32; without it R is C.
    """

    values_NRHW: Tensor
    scale_NR: Tensor | None = None
    basis_CR: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W) of x."""
        num, stored, *hw = self.values_NRHW.shape
        return (num, stored if self.basis_CR is None else self.basis_CR.shape[0], *hw)

    def decode(self) -> Tensor:
        """x, float32 [N, C, H, W]."""
        x = self.values_NRHW.float()
        x = x if self.scale_NR is None else x * self.scale_NR[:, :, None, None]
        return x if self.basis_CR is None else torch.einsum("cr,nrhw->nchw", self.basis_CR, x)

    def project(self, weight_SC: Tensor) -> Tensor:
        """The projection of `scale * values` that is the projection `weight_SC` of x: [S, R]."""
        return weight_SC if self.basis_CR is None else weight_SC @ self.basis_CR


@dataclass(frozen=True)
class PixelTargets:
    """What the student's scores are compared with at size `hw`; None if no term needs it.

    Args:
        label_NHW: uint8 or int64 classes or VOID.
        teacher_NKhw: raw scores on a grid of at most hw, without a gradient.
        labelled_N: bool, images with a label; the label of the others is VOID everywhere.
    """

    hw: tuple[int, int]
    label_NHW: Tensor | None
    teacher_NKhw: Tensor | None
    labelled_N: Tensor | None


def as_target(answer: Tensor | Target) -> Target:
    """`answer` as a target: a plain tensor is one without factors."""
    return answer if isinstance(answer, Target) else Target(answer)


def sum_dtype(device: torch.device) -> torch.dtype:
    """What sums over pixels are kept in: float64, or float32 on a device that lacks it (MPS).

    >>> sum_dtype(torch.device("cpu")), sum_dtype(torch.device("mps"))
    (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64


def split_bands(
    x_NKhw: Tensor, hw: tuple[int, int]
) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Slices of images, and the bands of rows of each slice, that are computed together.

    Args:
        x_NKhw: the coarse scores. hw: their full size.
    """
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


def find_classes(teacher: Tensor, *, temperature: float, threshold: float) -> Tensor:
    """The teacher's class of each pixel, VOID if its softmax (at T = 1) is below the threshold.

    Args:
        teacher: float32 scores [R, N, K, W], divided by `temperature`, with maximum 0.
        threshold: 0 to 1; with 0 every pixel has a class.

    Returns: int64 [R, N, 1, W]; of equal scores the first class.
    """
    num = teacher.shape[2]
    # argmax over an inner dimension is 30 times slower on a CPU than the largest of these codes:
    # 0 to K - 1 for a class with the maximum, the first one the largest, and less for the others
    codes = torch.arange(num - 1.0, -1.0, -1.0, device=teacher.device)[:, None]
    code = teacher.sign().mul_(num).add_(codes).amax(2, keepdim=True)
    classes = (num - 1) - code.long()
    if threshold > 0:
        confidence = (teacher * temperature).exp_().sum(2, keepdim=True).reciprocal_()
        classes = torch.where(confidence >= threshold, classes, VOID)
    return classes


def count_pixels(targets: PixelTargets, *, threshold: float) -> Tensor:
    """Number of pixels of images without a label that have a class, as a float32 scalar.

    It must be known before the gradient is scaled, so a threshold costs a pass of its own.

    Args:
        targets: with the teacher's scores, and which images have a label.
        threshold: see `find_classes`.
    """
    hw, teacher_NKhw, labelled_N = targets.hw, targets.teacher_NKhw, targets.labelled_N
    if threshold == 0:
        return (~labelled_N).sum().float() * float(hw[0] * hw[1])
    count = torch.zeros((), dtype=torch.int64, device=teacher_NKhw.device)
    for images, rows in split_bands(teacher_NKhw, hw):
        teacher = Upsampled(teacher_NKhw[images].float(), hw)
        used = ~labelled_N[images, None, None]
        for start, stop in rows:
            band = teacher.band(start, stop)
            band -= band.amax(2, keepdim=True)
            classes = find_classes(band, temperature=1.0, threshold=threshold)
            count += ((classes != VOID) & used).sum()
    return count.float()
