"""The teacher's class as the label of pixels that have none.

Letters: N images, K classes, h, w the teacher's grid, H, W the labels' size, R rows of a band.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.config import VOID
from kdcache.losses.bands import Upsampled, split_bands
from kdcache.losses.target import PixelTargets


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
