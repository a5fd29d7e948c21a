"""Cached answers against live ones. Letters: N samples, C channels, H, W height and width."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.cache.encodings import Encoding
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.models.inputs import normalize_images
from kdcache.training.batches import Batch
from kdcache.training.loop import Learner, compute_loss
from kdcache.training.targets import Targets


class AnswerErrors:
    """Errors of one answer (logits or a level) over many batches.

    Of lowrank the direction at each position is compared, as nothing else is kept: both sides are brought to length 1.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.worst, self.error_sum, self.size_sum, self.count = 0.0, 0.0, 0.0, 0
        self.cosine_sum, self.positions = 0.0, 0

    def add(self, cached_NCHW: Tensor, live_NCHW: Tensor) -> None:
        """Compare a batch, both float32."""
        cosine_NHW = F.cosine_similarity(cached_NCHW.double(), live_NCHW.double(), dim=1)
        seen_NHW = live_NCHW.abs().amax(1) > 0  # a position of zeros has no direction
        self.cosine_sum += cosine_NHW[seen_NHW].sum().item()
        self.positions += int(seen_NHW.sum())
        if self.encoding.kind == "lowrank":
            cached_NCHW, live_NCHW = F.normalize(cached_NCHW, dim=1), F.normalize(live_NCHW, dim=1)
        error = (cached_NCHW - live_NCHW).abs()
        self.worst = float(np.maximum(self.worst, error.max().item()))  # NaN, too
        self.error_sum += error.double().sum().item()
        self.size_sum += live_NCHW.abs().double().sum().item()
        self.count += error.numel()

    def to_dict(self) -> dict[str, float | str]:
        """encoding, largest and mean absolute error, mean error over mean magnitude, mean cosine of a position's channels."""
        return {
            "encoding": self.encoding.kind,
            "max_abs": self.worst,
            "mean_abs": self.error_sum / self.count,
            "relative": self.error_sum / self.size_sum if self.size_sum else 0.0,
            "cosine": self.cosine_sum / self.positions if self.positions else 1.0,
        }


class ScoreErrors:
    """What the teacher's classes lose: divergence at a temperature, and how often the best class is another one."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.divergence_sum, self.agreed, self.positions = 0.0, 0, 0

    def add(self, cached_NKHW: Tensor, live_NKHW: Tensor) -> None:
        """Compare a batch of scores, both float32."""
        cached, live = (
            torch.log_softmax(x.double() / self.temperature, 1) for x in (cached_NKHW, live_NKHW)
        )
        self.divergence_sum += F.kl_div(cached, live, reduction="sum", log_target=True).item()
        self.agreed += int((cached_NKHW.argmax(1) == live_NKHW.argmax(1)).sum())
        self.positions += live_NKHW[:, 0].numel()

    def to_dict(self) -> dict[str, float]:
        """KL(live || cached) in nats, mean over positions, and the share of positions with the same best class."""
        return {
            "kl": max(self.divergence_sum / self.positions, 0.0),
            "temperature": self.temperature,
            "agreement": self.agreed / self.positions,
        }


@dataclass
class Felt:
    """Of one term and one student: loss from cached and live answers, and a cosine a batch of the gradients each gives."""

    cached: float = 0.0
    live: float = 0.0
    student_cosines: list[float] = field(default_factory=list)
    align_cosines: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, float]:
        """Relative change of the loss, and the lowest cosines: over all student parameters, over all projections."""
        facts = {
            "loss_live": self.live / len(self.student_cosines),
            "loss_rel": abs(self.cached - self.live) / abs(self.live)
            if self.live
            else abs(self.cached),
            "grad_cos": float(np.min(self.student_cosines)),  # NaN, too
            "grad_cos_mean": sum(self.student_cosines) / len(self.student_cosines),
        }
        return facts | (
            {"align_grad_cos": float(np.min(self.align_cosines))} if self.align_cosines else {}
        )


class Probe:
    """One student that is asked for its gradients, again and again; it never learns from them.

    Each term alone, weight 1; dropout off, BatchNorm as in training.
    """

    def __init__(self, learner: Learner, *, terms: list[str], temperature: float) -> None:
        self.learner, self.felt = learner, {term: Felt() for term in terms}
        self.losses = {term: _make_loss(learner, term, temperature) for term in terms}
        for module in learner.student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        learner.student.train()

    def add(self, cached: Batch, live: Batch, targets: Targets) -> None:
        """Take a batch into account: the same images, with answers as stored and as float32 tensors."""
        for term, felt in self.felt.items():
            ours, theirs = self._ask(term, cached, targets), self._ask(term, live, Targets())
            felt.cached += ours[0]
            felt.live += theirs[0]
            felt.student_cosines.append(_cosine(ours[1], theirs[1]))
            if term == "feature":
                felt.align_cosines.append(_cosine(ours[2], theirs[2]))

    def _ask(self, term: str, batch: Batch, targets: Targets) -> tuple[float, Tensor, Tensor]:
        """Loss, gradient by all student parameters, gradient by all projections."""
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
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return (
        torch.cat([grad.flatten() for grad in grads]).double()
        if grads
        else torch.zeros(0, dtype=torch.float64)
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    """1 where both are zero; else 0 where one is."""
    sizes = (a.norm() * b.norm()).item()
    return (a @ b).item() / sizes if sizes else float(torch.equal(a, b))
