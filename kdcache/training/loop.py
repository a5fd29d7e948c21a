"""The inner loop: one step, one epoch, one evaluation. No files, no printing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdcache.errors import TrainingError
from kdcache.losses import KnowledgeDistillationLoss, LossTerms, Term
from kdcache.metrics import count_confusion
from kdcache.models.inputs import normalize_images
from kdcache.progress import Bar
from kdcache.training.augment import Augmentation
from kdcache.training.batches import Batch, BatchReader, split_batches
from kdcache.training.processes import Alone
from kdcache.training.targets import Targets
from kdcache.training.turn import Turn


@dataclass
class Learner:
    """What one training changes: student, projections (inside the loss), optimiser, schedule.

    Learners that share batches take turns: each has its own random state, and an error ends one alone.
    """

    student: nn.Module
    loss: KnowledgeDistillationLoss
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    device: torch.device
    autocast: torch.dtype | None  # None: float32
    forward: Callable  # the student in training, perhaps compiled
    targets: Targets = field(default_factory=Targets)
    augmentation: Augmentation | None = None  # None: batches are trained on as they are
    processes: Alone = field(default_factory=Alone)  # that train this student together
    turn: Turn = field(default_factory=Turn)


class _Coming:
    """A number on its way from the device: waiting for it does not wait for what was asked of the device later."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.event = value, None
        if value.device.type == "cuda":
            self.value = torch.empty((), pin_memory=True, dtype=value.dtype).copy_(
                value, non_blocking=True
            )
            self.event = torch.cuda.current_stream(value.device).record_event()

    def wait(self) -> float:
        if self.event is not None:
            self.event.synchronize()
        return self.value.item()


@dataclass
class TermTotals:
    """Sums and counts of the loss terms over an epoch, float64 scalars on the loss's device: adding does not wait for it."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, Tensor | float] = field(default_factory=dict)

    def add(self, terms: LossTerms) -> None:
        """Add one batch."""
        for name, term in _named_terms(terms).items():
            self.sums[name] = self.sums.get(name, 0.0) + term.sum.detach().double()
            self.counts[name] = self.counts.get(name, 0.0) + term.count.double()

    def add_up(self, processes: Alone) -> TermTotals:
        """Those of all processes."""
        sums, counts = (
            {name: processes.add_up(value) for name, value in own.items()}
            for own in (self.sums, self.counts)
        )
        return TermTotals(sums, counts)

    def means(self, *, alpha: float, beta: float, gamma: float) -> dict[str, float]:
        """ce, kd, feature (mean over levels) and their weighted total; absent terms are left out."""
        mean = {
            name: float(self.sums[name]) / max(float(self.counts[name]), 1.0) for name in self.sums
        }
        levels = [value for name, value in mean.items() if name.startswith("feature/")]
        means = {name: mean[name] for name in ("ce", "kd") if name in mean}
        if levels:
            means["feature"] = sum(levels) / len(levels)
        weights = {"ce": alpha, "kd": beta, "feature": gamma}
        return {**means, "total": sum(weights[name] * value for name, value in means.items())}


def train_epoch(
    learners: Sequence[Learner], reader: BatchReader, batches: list, *, epoch: int, bar: Bar
) -> list[TermTotals]:
    """One pass over `batches`, each learned by all; of several processes each takes its rows, and the totals are those of all.

    Args:
        learners: one, or several of this process alone whose augmentations are equal.

    Raises: TrainingError at a non-finite loss, before it reaches the weights of the process that has it.
    """
    first = learners[0]
    totals = [TermTotals() for _ in learners]
    for learner in learners:
        learner.student.train()
    for step, batch in enumerate(
        reader.read([first.processes.share(places) for places in batches])
    ):
        batch = first.augmentation.apply(batch, epoch=epoch) if first.augmentation else batch
        for learner, own in zip(learners, totals, strict=True):
            learner.turn.take(_learn, learner, own, batch, where=f"epoch {epoch} step {step}")
        bar.advance(len(batches[step]))
        if all(learner.turn.error for learner in learners):
            break
    return [own.add_up(learner.processes) for learner, own in zip(learners, totals, strict=True)]


def _learn(learner: Learner, totals: TermTotals, batch: Batch, *, where: str) -> None:
    totals.add(train_step(learner, batch, where=where))


def train_step(learner: Learner, batch: Batch, *, where: str) -> LossTerms:
    """Forward, loss, backward, update. `where` names the step in an error.

    Of several processes each has its rows, and the update is that of the whole batch. Whether the loss is finite is asked
    after the backward pass is under way, so that a GPU does not stand still for the answer.
    """
    terms = compute_step(learner, batch)
    loss = _Coming(terms.total.detach())
    learner.optimizer.zero_grad(set_to_none=True)
    terms.total.backward()
    if not math.isfinite(loss.wait()):
        raise TrainingError(
            f"{where}: loss is {loss.wait()}, expected a finite number; samples {', '.join(batch.sample_ids)}; "
            "lower train.lr or look at these samples"
        )
    learner.processes.add_up_gradients(learner.optimizer)
    learner.optimizer.step()
    return terms


def compute_step(learner: Learner, batch: Batch) -> LossTerms:
    """Forward and loss of one batch."""
    images = normalize_images(batch.arrays["image"])
    with torch.autocast(
        learner.device.type, dtype=learner.autocast, enabled=learner.autocast is not None
    ):
        logits, features = learner.forward(images, return_features=True, full_size=False)
    return compute_loss(learner.loss, logits, features, batch, learner.targets)


def compute_loss(
    loss: KnowledgeDistillationLoss,
    logits: Tensor,
    features: Mapping[str, Tensor],
    batch: Batch,
    targets: Targets,
) -> LossTerms:
    """The loss of one batch at the images' size; autocast is left behind here, every term is float32."""
    arrays, hw = batch.arrays, batch.arrays["image"].shape[1:3]
    levels = {level: targets.make(level, arrays) for level in loss.align}
    scores = targets.make("logits", arrays)
    return loss(
        logits, features, arrays.get("label"), teacher_NKHW=scores, teacher_features=levels, hw=hw
    )


@torch.inference_mode()
def evaluate(
    learners: Sequence[Learner], reader: BatchReader, *, num_classes: int, batch_size: int
) -> list[Tensor]:
    """Confusion [K, K] (int64, host) of each student over a whole split; each labelled pixel counts once.

    Args:
        learners: whose processes share the split's samples; the confusion is that of all.
        batch_size: of this process.
    """
    processes = learners[0].processes
    zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=learners[0].device)
    confusions = [zeros.clone() for _ in learners]
    for learner in learners:
        learner.student.eval()
    places = processes.share([(0, sample) for sample in range(reader.reader.layout.num_samples)])
    for batch in reader.read(split_batches(places, batch_size)):
        for learner, confusion in zip(learners, confusions, strict=True):
            learner.turn.take(_count_batch, learner, confusion, batch)
    return [processes.add_up(confusion).cpu() for confusion in confusions]


def _count_batch(learner: Learner, confusion_KK: Tensor, batch: Batch) -> None:
    with torch.autocast(
        learner.device.type, dtype=learner.autocast, enabled=learner.autocast is not None
    ):
        logits = learner.student(normalize_images(batch.arrays["image"]))
    confusion_KK += count_confusion(
        logits.argmax(1), batch.arrays["label"], num_classes=len(confusion_KK)
    )


def _named_terms(terms: LossTerms) -> dict[str, Term]:
    named = {"ce": terms.ce, "kd": terms.kd}
    named |= {f"feature/{level}": term for level, term in (terms.feature or {}).items()}
    return {name: term for name, term in named.items() if term is not None}
