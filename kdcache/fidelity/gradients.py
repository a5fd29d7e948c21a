"""What a student feels of the difference: loss terms and gradients from cached and from live answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.losses import KnowledgeDistillationLoss
from kdcache.models.inputs import normalize_images
from kdcache.training.batches import Batch
from kdcache.training.loop import Learner, compute_loss
from kdcache.training.targets import Targets


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
