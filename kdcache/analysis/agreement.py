"""How far cached answers are from live ones: in values, in classes, in losses and gradients.

Letters: N samples, C channels, K classes, H, W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.cache.encodings import Encoding, Targets
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.models.inputs import normalize_images
from kdcache.training.batches import Batch
from kdcache.training.loop import Learner, compute_loss


class AnswerErrors:
    """Errors of one answer (logits or a level) over many batches.

    A lowrank encoding keeps only the direction at each position, so there both sides are scaled to
    length 1 first.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.worst, self.error_sum, self.size_sum, self.count = 0.0, 0.0, 0.0, 0
        self.cosine_sum, self.positions = 0.0, 0

    def add(self, cached_NCHW: Tensor, live_NCHW: Tensor) -> None:
        """Add a batch, both float32."""
        cosine_NHW = F.cosine_similarity(cached_NCHW.double(), live_NCHW.double(), dim=1)
        seen_NHW = live_NCHW.abs().amax(1) > 0  # a position of zeros has no direction
        self.cosine_sum += cosine_NHW[seen_NHW].sum().item()
        self.positions += int(seen_NHW.sum())
        if self.encoding.kind == "lowrank":
            cached_NCHW, live_NCHW = F.normalize(cached_NCHW, dim=1), F.normalize(live_NCHW, dim=1)
        error = (cached_NCHW - live_NCHW).abs()
        self.worst = float(np.maximum(self.worst, error.max().item()))  # keeps NaN
        self.error_sum += error.double().sum().item()
        self.size_sum += live_NCHW.abs().double().sum().item()
        self.count += error.numel()

    def to_dict(self) -> dict[str, float | str]:
        """Encoding, largest and mean absolute error, `relative`, `cosine`.

        relative: mean error over mean magnitude. cosine: of the channels, mean over positions.
        """
        return {
            "encoding": self.encoding.kind,
            "max_abs": self.worst,
            "mean_abs": self.error_sum / self.count,
            "relative": self.error_sum / self.size_sum if self.size_sum else 0.0,
            "cosine": self.cosine_sum / self.positions if self.positions else 1.0,
        }


class ScoreErrors:
    """Divergence of the softened logits, and how often the best class is another one."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.divergence_sum, self.agreed, self.positions = 0.0, 0, 0

    def add(self, cached_NKHW: Tensor, live_NKHW: Tensor) -> None:
        """Add a batch of logits, both float32."""
        cached, live = (
            torch.log_softmax(x.double() / self.temperature, 1) for x in (cached_NKHW, live_NKHW)
        )
        self.divergence_sum += F.kl_div(cached, live, reduction="sum", log_target=True).item()
        self.agreed += int((cached_NKHW.argmax(1) == live_NKHW.argmax(1)).sum())
        self.positions += live_NKHW[:, 0].numel()

    def to_dict(self) -> dict[str, float]:
        """KL(live || cached) in nats, mean over positions; share with the same best class."""
        return {
            "kl": max(self.divergence_sum / self.positions, 0.0),
            "temperature": self.temperature,
            "agreement": self.agreed / self.positions,
        }


@dataclass
class TermErrors:
    """One term of the loss for one student: sums over batches, and a cosine a batch of gradients.

    The cosines are between the gradients from cached and from live answers.
    """

    cached: float = 0.0
    live: float = 0.0
    student_cosines: list[float] = field(default_factory=list)
    align_cosines: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, float]:
        """Relative change of the loss; lowest cosines of student parameters and projections."""
        change = abs(self.cached - self.live)
        facts = {
            "loss_live": self.live / len(self.student_cosines),
            "loss_rel": change / abs(self.live) if self.live else abs(self.cached),
            "grad_cos": float(np.min(self.student_cosines)),  # keeps NaN
            "grad_cos_mean": sum(self.student_cosines) / len(self.student_cosines),
        }
        if self.align_cosines:
            facts["align_grad_cos"] = float(np.min(self.align_cosines))
        return facts


class GradientErrors:
    """Losses and gradients of one student from cached and from live answers; it never learns.

    Each term is taken alone with weight 1; dropout is off, BatchNorm works as in training.

    Attributes:
        terms: name -> its errors.
    """

    def __init__(self, learner: Learner, *, terms: list[str], temperature: float) -> None:
        self.learner, self.terms = learner, {term: TermErrors() for term in terms}
        self.losses = {term: _make_loss(learner, term, temperature) for term in terms}
        for module in learner.student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        learner.student.train()

    def add(self, cached: Batch, live: Batch, targets: Targets) -> None:
        """Add a batch: the same images with answers as stored, and as float32 tensors."""
        for term, errors in self.terms.items():
            ours = self._differentiate(term, cached, targets)
            theirs = self._differentiate(term, live, Targets())
            errors.cached += ours[0]
            errors.live += theirs[0]
            errors.student_cosines.append(_cosine(ours[1], theirs[1]))
            if term == "feature":
                errors.align_cosines.append(_cosine(ours[2], theirs[2]))

    def _differentiate(
        self, term: str, batch: Batch, targets: Targets
    ) -> tuple[float, Tensor, Tensor]:
        """Loss, gradient of all student parameters, gradient of all projections, both flat."""
        self.learner.student.zero_grad(set_to_none=True)
        self.learner.loss.zero_grad(set_to_none=True)
        logits, features = self.learner.student(
            normalize_images(batch.arrays["image"]), return_features=True, full_size=False
        )
        loss = compute_loss(self.losses[term], logits, features, batch, targets).total
        loss.backward()
        return loss.item(), _flatten(self.learner.student), _flatten(self.learner.loss.align)


def _make_loss(learner: Learner, term: str, temperature: float) -> KnowledgeDistillationLoss:
    """One term alone, with the learner's projections."""
    weights = {"kd": (0.0, 1.0, 0.0), "feature": (0.0, 0.0, 1.0)}[term]
    shapes = {
        level: (align.in_channels, align.out_channels)
        for level, align in learner.loss.align.items()
    }
    loss = KnowledgeDistillationLoss(*weights, temperature, shapes)
    if term == "feature":
        loss.align = learner.loss.align
    return loss


def _flatten(module: nn.Module) -> Tensor:
    """All gradients of a module, float64 [n]."""
    grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat(grads).double() if grads else torch.zeros(0, dtype=torch.float64)


def _cosine(a: Tensor, b: Tensor) -> float:
    """1 if both are zero, 0 if one is."""
    sizes = (a.norm() * b.norm()).item()
    return (a @ b).item() / sizes if sizes else float(torch.equal(a, b))
