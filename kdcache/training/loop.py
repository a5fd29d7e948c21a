"""The inner loop: one step, one epoch, one evaluation; no files, no printing. K: classes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdcache.cache.encodings import Targets
from kdcache.cache.reader import CacheReader
from kdcache.config import Config
from kdcache.errors import TrainingError
from kdcache.losses import KnowledgeDistillationLoss, LossTerms, Term
from kdcache.machine.devices import mark_end
from kdcache.metrics import compute_iou_per_class, compute_miou, count_confusion
from kdcache.models.inputs import normalize_images
from kdcache.progress import Bar, Progress
from kdcache.training.batches import Batch, BatchReader
from kdcache.training.learner import Learner, explain_failures
from kdcache.training.order import (
    SampleView,
    plan_epoch,
    plan_mixed_epoch,
    split_batches,
)
from kdcache.training.processes import Alone
from kdcache.training.samples import JoinedReader, find_labelled


def run_epoch(
    config: Config,
    learner: Learner,
    train: BatchReader,
    val: BatchReader,
    *,
    epoch: int,
    progress: Progress,
) -> tuple[dict, Tensor]:
    """Train on every sample once, then evaluate; `epoch` counts from 1.

    Returns: the entry of this epoch for metrics.jsonl, and the confusion matrix on val, int64
    [K, K].
    Raises: TrainingError if the loss or a weight is not finite, or the student fails.
    """
    began_s, processes = time.monotonic(), learner.processes
    lr = learner.scheduler.get_last_lr()[0]
    batches, waited_s = plan_batches(config, train.reader, epoch=epoch), train.wait_s
    processes.draw_dropout(seed=config.train.seed, epoch=epoch)
    with progress.start(f"epoch {epoch}", total=sum(map(len, batches)), unit="samples") as bar:
        totals = train_epoch(learner, train, batches, epoch=epoch, bar=bar)
    with explain_failures(learner.arch):
        _end_training(learner, epoch)  # waits for the device
    trained_s, waited_s = time.monotonic() - began_s, train.wait_s - waited_s
    size = processes.largest_share(config.train.batch_size)
    confusion = evaluate(learner, val, num_classes=config.dataset.num_classes, batch_size=size)
    time_s = time.monotonic() - began_s
    entry = {
        "epoch": epoch,
        "processes": processes.count,
        "together": 1,  # students of one process that shared their batches; older files have more
        "lr": lr,
        **totals.means(learner.loss),
        "miou": compute_miou(confusion),
        "per_class_iou": compute_iou_per_class(confusion),
        "step_s": trained_s / len(batches),
        "validation_s": time_s - trained_s,
        "time_s": time_s,
        "data_wait_s": waited_s,
    }
    return entry, confusion


def plan_batches(
    config: Config, reader: CacheReader | JoinedReader, *, epoch: int
) -> list[list[SampleView]]:
    """The (view, sample) of each batch of an epoch, which counts from 1.

    With `train.unlabelled_share` a run with labels only draws labelled samples only, in as many
    steps.
    """
    train = config.train
    order = {"seed": train.seed, "epoch": epoch - 1, "views": train.views}
    order |= {"num_views": config.augment.views, "batch_size": train.batch_size}
    if train.unlabelled_share is None:
        return plan_epoch(num_samples=reader.layout.num_samples, **order)
    return plan_mixed_epoch(
        num_labelled=reader.num_labelled,
        num_unlabelled=reader.num_unlabelled,
        unlabelled_rows=train.unlabelled_rows if config.loss.uses_teacher else 0,
        **order,
    )


def find_batch_sizes(
    config: Config, reader: CacheReader | JoinedReader, processes: Alone
) -> list[int]:
    """The sizes of this process's batches in any epoch, the largest first."""
    batches = plan_batches(config, reader, epoch=1)
    return sorted({len(processes.share(places)) for places in batches}, reverse=True)


def train_epoch(
    learner: Learner, reader: BatchReader, batches: list, *, epoch: int, bar: Bar
) -> TermTotals:
    """Train on `batches`; of several processes each takes its rows of every batch.

    Returns: the terms summed over all processes. Raises: TrainingError if the loss is not finite,
    before it reaches the weights.
    """
    totals, augmentation = TermTotals(), learner.augmentation
    learner.student.train()
    own = [learner.processes.share(places) for places in batches]
    for step, batch in enumerate(reader.read(own)):
        batch = augmentation.apply(batch, epoch=epoch) if augmentation else batch
        with explain_failures(learner.arch):
            totals.add(train_step(learner, batch, where=f"epoch {epoch} step {step}"))
        bar.advance(len(batches[step]))
    return totals.add_up(learner.processes)


def train_step(learner: Learner, batch: Batch, *, where: str) -> LossTerms:
    """Forward, loss, backward, update. `where` names the step in an error.

    Of several processes each has its rows of the batch, and the update is that of the whole batch.
    Whether the loss is finite is asked only when the backward pass is under way, so that a GPU does
    not stand still for the answer.
    """
    terms = compute_step(learner, batch)
    loss = _HostCopy(terms.total.detach())
    learner.optimizer.zero_grad(set_to_none=True)
    terms.total.backward()
    if not math.isfinite(loss.wait()):
        raise TrainingError(
            f"{where}: loss is {loss.wait()}, expected a finite number; "
            f"samples {', '.join(batch.sample_ids)}; lower train.lr or look at these samples"
        )
    learner.processes.add_up_gradients(learner.optimizer)
    learner.optimizer.step()
    return terms


def compute_step(learner: Learner, batch: Batch) -> LossTerms:
    """Forward pass and loss of one batch."""
    images = normalize_images(batch.arrays["image"])
    with _autocast(learner):
        logits, features = learner.forward(images, return_features=True, full_size=False)
    return compute_loss(learner.loss, logits, features, batch, learner.targets)


def compute_loss(
    loss: KnowledgeDistillationLoss,
    logits: Tensor,
    features: Mapping[str, Tensor],
    batch: Batch,
    targets: Targets,
) -> LossTerms:
    """The loss of one batch at the size of its images; outside of autocast, so all float32."""
    arrays, hw = batch.arrays, batch.arrays["image"].shape[1:3]
    levels = {level: targets.make(level, arrays) for level in loss.align}
    teacher = targets.make("logits", arrays)
    answers = {"teacher_NKHW": teacher, "teacher_features": levels}
    return loss(
        logits, features, arrays.get("label"), **answers, labelled_N=find_labelled(arrays), hw=hw
    )


@torch.inference_mode()
def evaluate(learner: Learner, reader: BatchReader, *, num_classes: int, batch_size: int) -> Tensor:
    """Confusion matrix [K, K] (int64, on the host) of the student over a whole split.

    Each labelled pixel counts once. Of several processes each takes its part of the samples, and
    the matrix is that of all.

    Args:
        batch_size: of this process.
    """
    processes, num_samples = learner.processes, reader.reader.layout.num_samples
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=learner.device)
    learner.student.eval()
    places = processes.share([(0, sample) for sample in range(num_samples)])
    for batch in reader.read(split_batches(places, batch_size)):
        with explain_failures(learner.arch):
            with _autocast(learner):
                logits = learner.student(normalize_images(batch.arrays["image"]))
            classes, label = logits.argmax(1), batch.arrays["label"]
            confusion += count_confusion(classes, label, num_classes=num_classes)
    return processes.add_up(confusion).cpu()


@dataclass
class TermTotals:
    """Sums and counts of the loss terms over an epoch, float64 scalars on the loss's device.

    Adding to them does not wait for the device.
    """

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, Tensor | float] = field(default_factory=dict)

    def add(self, terms: LossTerms) -> None:
        """Add one batch."""
        for name, term in _name_terms(terms).items():
            self.sums[name] = self.sums.get(name, 0.0) + term.sum.detach().double()
            self.counts[name] = self.counts.get(name, 0.0) + term.count.double()

    def add_up(self, processes: Alone) -> TermTotals:
        """The totals over all processes."""
        sums, counts = (
            {name: processes.add_up(value) for name, value in own.items()}
            for own in (self.sums, self.counts)
        )
        return TermTotals(sums, counts)

    def means(self, loss: KnowledgeDistillationLoss) -> dict[str, float]:
        """Means of ce, pseudo, kd, feature (over its levels); their total as `loss` weighs them.

        Terms that are not in use are left out.
        """
        mean = {
            name: float(self.sums[name]) / max(float(self.counts[name]), 1.0) for name in self.sums
        }
        levels = [value for name, value in mean.items() if name.startswith("feature/")]
        means = {name: value for name, value in mean.items() if not name.startswith("feature/")}
        if levels:
            means["feature"] = sum(levels) / len(levels)
        total = sum(loss.weights[name] * value for name, value in means.items())
        return {**means, "total": total}


class _HostCopy:
    """A number on its way from the device to the host.

    Waiting for it does not wait for what the device was asked to do later.
    """

    def __init__(self, value: Tensor) -> None:
        self.value, self.event = value, None
        if value.device.type == "cuda":
            slot = torch.empty((), pin_memory=True, dtype=value.dtype)
            self.value = slot.copy_(value, non_blocking=True)
            self.event = mark_end(torch.cuda.current_stream(value.device))

    def wait(self) -> float:
        if self.event is not None:
            self.event.synchronize()
        return self.value.item()


def _autocast(learner: Learner) -> torch.autocast:
    enabled = learner.autocast is not None
    return torch.autocast(learner.device.type, dtype=learner.autocast, enabled=enabled)


def _name_terms(terms: LossTerms) -> dict[str, Term]:
    levels = {f"feature/{level}": term for level, term in (terms.feature or {}).items()}
    return terms.on_scores() | levels


def _end_training(learner: Learner, epoch: int) -> None:
    learner.processes.agree(_check_finite, learner, epoch)
    learner.scheduler.step()
    learner.processes.spread(learner.student.buffers())


def _check_finite(learner: Learner, epoch: int) -> None:
    """Raise if a weight is not finite: a finite loss can have a non-finite gradient."""
    for name, weights in learner.student.named_parameters():
        if not torch.isfinite(weights).all():
            raise TrainingError(
                f"epoch {epoch}: weight {name} is not finite, expected finite numbers; "
                "lower train.lr and resume"
            )
