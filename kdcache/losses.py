"""The three terms and their weighted sum. Letters: N batch, K classes, C channels, H, W height and width.

Every term is made of a sum and a count, so that processes and batches can be added up before the one division.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.config import VOID
from kdcache.models.inputs import resize_to


@dataclass(frozen=True)
class Term:
    """A sum over positions and how many positions it has; scalar float32 tensors on the loss's device."""

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """sum / count, 0 where nothing was counted."""
        return self.sum / self.count.clamp(min=1)


@dataclass(frozen=True)
class LossTerms:
    """The weighted total and the unweighted terms (None where the weight is 0)."""

    total: Tensor
    ce: Term | None
    kd: Term | None
    feature: Mapping[str, Term] | None

    def means(self) -> dict[str, Tensor]:
        """Scalar of each term in use: ce, kd, feature (the mean over levels), and total."""
        values = {"ce": self.ce, "kd": self.kd}
        means = {name: term.mean for name, term in values.items() if term is not None}
        if self.feature:
            means["feature"] = torch.stack([term.mean for term in self.feature.values()]).mean()
        return {**means, "total": self.total}


def cross_entropy(student_NKHW: Tensor, label_NHW: Tensor) -> Term:
    """Cross-entropy with the labels, summed over pixels that are not VOID.

    Args:
        student_NKHW: raw scores, any float dtype. label_NHW: int64 classes or VOID.
    """
    total = F.cross_entropy(student_NKHW.float(), label_NHW, ignore_index=VOID, reduction="sum")
    return Term(total, (label_NHW != VOID).sum().float())


def kd_divergence(student_NKHW: Tensor, teacher_NKHW: Tensor, *, temperature: float) -> Term:
    """KL(teacher || student) of the softened classes, times T^2 (Hinton et al. 2015, arXiv:1503.02531).

    T^2 keeps the gradient's size when the softening changes. Summed over classes and over all pixels, padding included.

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
    return Term(divergence * temperature**2, _count_positions(student_NKHW))


def feature_distance(student_NCHW: Tensor, teacher_NCHW: Tensor) -> Term:
    """1 - cosine over channels at each position, summed over positions; 0 to 2 each.

    Args:
        student_NCHW: student features. teacher_NCHW: teacher features on the same grid with as many channels.
    """
    cosine = F.cosine_similarity(student_NCHW.float(), teacher_NCHW.float(), dim=1)
    return Term((1 - cosine).sum(), _count_positions(student_NCHW))


class KnowledgeDistillationLoss(nn.Module):
    """L = alpha CE + beta T^2 KL(teacher || student) + gamma mean over levels of (1 - cosine).

    Teacher features are resized to the student's grid and projected to its channels by a 1x1 convolution without bias,
    trained with the student. A term of weight 0 is not computed and needs no target.

    Args:
        alpha, beta, gamma: weights >= 0.
        temperature: T > 0.
        channels: level -> (teacher channels, student channels); only used with gamma > 0.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.3,
        temperature: float = 4.0,
        channels: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        if gamma and not channels:
            raise ValueError(
                f"loss: channels is {channels!r}, expected level -> (teacher, student) with gamma > 0; set gamma=0"
            )
        self.alpha, self.beta, self.gamma, self.temperature = alpha, beta, gamma, temperature
        pairs = channels.items() if channels and gamma else ()
        self.align = nn.ModuleDict({level: nn.Conv2d(t, s, 1, bias=False) for level, (t, s) in pairs})

    def forward(
        self,
        student_NKHW: Tensor,
        student_features: Mapping[str, Tensor],
        label_NHW: Tensor | None,
        *,
        teacher_NKHW: Tensor | None = None,
        teacher_features: Mapping[str, Tensor] | None = None,
    ) -> LossTerms:
        """The total and each term.

        Args:
            student_NKHW, student_features: what the student returned with return_features=True.
            label_NHW: int64 classes or VOID; needed with alpha > 0.
            teacher_NKHW: needed with beta > 0. teacher_features: needed with gamma > 0.
        """
        ce = cross_entropy(student_NKHW, label_NHW) if self.alpha else None
        kd = kd_divergence(student_NKHW, teacher_NKHW, temperature=self.temperature) if self.beta else None
        feature = self._feature_terms(student_features, teacher_features) if self.align else None
        total = student_NKHW.new_zeros((), dtype=torch.float32)
        for weight, term in ((self.alpha, ce), (self.beta, kd)):
            total = total + weight * term.mean if term else total
        if feature:
            total = total + self.gamma * torch.stack([term.mean for term in feature.values()]).mean()
        return LossTerms(total, ce, kd, feature)

    def _feature_terms(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Term]:
        return {
            level: feature_distance(
                student[level], align(resize_to(teacher[level].detach().float(), student[level].shape[-2:]))
            )
            for level, align in self.align.items()
        }


def _count_positions(x_NCHW: Tensor) -> Tensor:
    return torch.tensor(float(x_NCHW.shape[0] * x_NCHW.shape[2] * x_NCHW.shape[3]), device=x_NCHW.device)
