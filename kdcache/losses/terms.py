"""The terms by definition, written for reading.

Training computes the same numbers in fewer passes (`pixels`, `features`), and is tested against
these. Every term is a sum and a count, so that processes and batches can be added up before the
division.

Letters: N batch, K classes, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.config import VOID
from kdcache.models.inputs import resize_to


@dataclass(frozen=True)
class Term:
    """A sum over positions and their number; scalar float32 tensors on the device of the loss."""

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """sum / count, a float32 scalar; 0 if the count is 0."""
        return self.sum / self.count.clamp(min=1)


@dataclass(frozen=True)
class LossTerms:
    """The weighted total and the unweighted terms (None if the weight is 0)."""

    total: Tensor
    ce: Term | None
    kd: Term | None
    feature: Mapping[str, Term] | None
    pseudo: Term | None = None

    def means(self) -> dict[str, Tensor]:
        """Mean of each term in use, as float32 scalars: `on_scores`, feature, total."""
        means = {name: term.mean for name, term in self.on_scores().items()}
        if self.feature:
            means["feature"] = torch.stack([term.mean for term in self.feature.values()]).mean()
        return {**means, "total": self.total}

    def on_scores(self) -> dict[str, Term]:
        """The terms in use that compare scores: ce, pseudo, kd."""
        named = {"ce": self.ce, "pseudo": self.pseudo, "kd": self.kd}
        return {name: term for name, term in named.items() if term is not None}


def cross_entropy(student_NKHW: Tensor, label_NHW: Tensor) -> Term:
    """Cross-entropy with the labels, summed over pixels that are not VOID.

    Args:
        student_NKHW: raw scores, any float dtype. label_NHW: int64 classes or VOID.

    Returns: sum >= 0 and the number of pixels that are not VOID.
    """
    total = F.cross_entropy(student_NKHW.float(), label_NHW, ignore_index=VOID, reduction="sum")
    return Term(total, (label_NHW != VOID).sum().float())


def pseudo_cross_entropy(
    student_NKHW: Tensor, teacher_NKHW: Tensor, *, labelled_N: Tensor, threshold: float = 0.0
) -> Term:
    """Cross-entropy with the teacher's class, summed over pixels of images without a label.

    Lee 2013, "Pseudo-Label"; the threshold as in FixMatch, arXiv:2001.07685.

    Args:
        student_NKHW: raw scores, any float dtype.
        teacher_NKHW: raw scores on any grid; upsampled to the student's as FCN does it.
        labelled_N: bool, images with a label, which do not count.
        threshold: least softmax (at T = 1) of the teacher's class in a pixel that counts, 0 to 1.

    Returns: sum >= 0 and the number of pixels that count.
    """
    teacher = resize_to(teacher_NKHW.detach().float(), student_NKHW.shape[-2:])
    confidence, classes = teacher.softmax(1).max(1)
    counts = (confidence >= threshold) & ~labelled_N[:, None, None]
    return cross_entropy(student_NKHW, torch.where(counts, classes, VOID))


def kd_divergence(student_NKHW: Tensor, teacher_NKHW: Tensor, *, temperature: float) -> Term:
    """KL(teacher || student) of the softened classes, times T^2 (Hinton et al. 2015).

    arXiv:1503.02531. T^2 keeps the gradient's size when T changes. Summed over classes and over all
    pixels, padding included.

    Args:
        student_NKHW: raw scores, any float dtype.
        teacher_NKHW: raw scores on any grid; upsampled to the student's as FCN does it.
        temperature: T > 0, no unit.

    Returns: sum >= 0 and the number of pixels.
    """
    teacher = resize_to(teacher_NKHW.detach().float(), student_NKHW.shape[-2:])
    teacher_log = F.log_softmax(teacher / temperature, dim=1)
    student_log = F.log_softmax(student_NKHW.float() / temperature, dim=1)
    divergence = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return Term(divergence * temperature**2, count_positions(student_NKHW))


def feature_distance(student_NCHW: Tensor, teacher_NCHW: Tensor) -> Term:
    """1 - cosine over channels at each position, summed over positions; 0 to 2 each.

    Args:
        student_NCHW, teacher_NCHW: features of equal shape, any float dtype.

    Returns: sum >= 0 and the number of positions.
    """
    cosine = F.cosine_similarity(student_NCHW.float(), teacher_NCHW.float(), dim=1)
    return Term((1 - cosine).sum(), count_positions(student_NCHW))


def count_positions(x_NCHW: Tensor, hw: tuple[int, int] | None = None) -> Tensor:
    """Images times positions of a grid `hw` (default: the tensor's own), as a float32 scalar.

    It is created on the device of `x_NCHW`: a copy from the host would wait for the GPU's queue.
    """
    height, width = hw or x_NCHW.shape[-2:]
    return torch.full((), float(len(x_NCHW) * height * width), device=x_NCHW.device)
