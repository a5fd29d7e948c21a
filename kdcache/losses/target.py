"""What the loss compares the student with: a teacher's answer as it is stored, decoded where it is
used.

Letters: N images, C channels, R stored channels or coefficients, S student channels, H, W height
    and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A batch of one answer: x = basis (scale * values); factors that are absent are 1.

    A 1x1 projection A of x is the 1x1 projection A basis of scale * values, and resizing in between
    changes nothing, since
    both are linear: so the loss never builds the C channels.

    Args:
        values_NRHW: any dtype. scale_NR: float32. basis_CR: float32; without it R is C.
    """

    values_NRHW: Tensor
    scale_NR: Tensor | None = None
    basis_CR: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
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
