"""One epoch of one student, or of several that share its batches: trained, evaluated, written down."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from kdcache.config import Config
from kdcache.errors import TrainingError
from kdcache.metrics import compute_iou_per_class, compute_miou
from kdcache.progress import Progress
from kdcache.training.batches import BatchReader, plan_epoch
from kdcache.training.loop import Learner, evaluate, train_epoch


def run_epoch(
    config: Config,
    learners: Sequence[Learner],
    train: BatchReader,
    val: BatchReader,
    *,
    epoch: int,
    progress: Progress,
) -> list[tuple[dict, Tensor] | None]:
    """Train and evaluate once; `epoch` counts from 1.

    Args:
        config: of a learner; what decides the batches is equal in all.
        learners: one, or several of this process alone, with shared turns.

    Returns: of each the epoch's line for metrics.jsonl and the confusion on val, int64 [K, K]; None where it failed.
    Raises: TrainingError.
    """
    clock, processes = _Clock(learners), learners[0].processes
    lrs, layout = [learner.scheduler.get_last_lr()[0] for learner in learners], train.reader.layout
    batches, waited_s = plan_batches(config, layout.num_samples, epoch=epoch), train.wait_s
    processes.draw_dropout(seed=config.train.seed, epoch=epoch)
    with progress.start(f"epoch {epoch}", total=layout.num_samples, unit="samples") as bar:
        totals = train_epoch(learners, train, batches, epoch=epoch, bar=bar)
    for learner in learners:
        learner.turn.take(_end_training, learner, epoch)  # waits for the device
    trained_s, waited_s = clock.lap(), train.wait_s - waited_s
    size = processes.largest_share(config.train.batch_size)
    confusions = evaluate(learners, val, num_classes=config.dataset.num_classes, batch_size=size)
    validated_s = clock.lap()
    together = {"epoch": epoch, "processes": processes.count, "together": len(learners)}
    waits = {"data_wait_s": waited_s / len(learners)}
    lines = []
    for place, learner in enumerate(learners):
        times = _list_times(trained_s[place], validated_s[place], num_steps=len(batches)) | waits
        means = totals[place].means(
            alpha=learner.loss.alpha, beta=learner.loss.beta, gamma=learner.loss.gamma
        )
        entry = {**together, "lr": lrs[place], **means, **_score(confusions[place]), **times}
        lines.append(None if learner.turn.error else (entry, confusions[place]))
    return lines


def _score(confusion_KK: Tensor) -> dict:
    return {
        "miou": compute_miou(confusion_KK),
        "per_class_iou": compute_iou_per_class(confusion_KK),
    }


def _list_times(trained_s: float, validated_s: float, *, num_steps: int) -> dict:
    return {
        "step_s": trained_s / num_steps,
        "validation_s": validated_s,
        "time_s": trained_s + validated_s,
    }


def plan_batches(config: Config, num_samples: int, *, epoch: int) -> list[list[tuple[int, int]]]:
    """The (view, sample) places of each batch of an epoch, which counts from 1."""
    return plan_epoch(
        num_samples=num_samples,
        num_views=config.augment.views,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        epoch=epoch - 1,
        views=config.train.views,
    )


class _Clock:
    """Seconds of each of several learners: its turns, and an equal part of what is nobody's. On a GPU, which works on after a
    turn has ended, an equal part of all."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners
        self.began_s, self.turns_s = time.monotonic(), [learner.turn.time_s for learner in learners]

    def lap(self) -> list[float]:
        """Since the last one."""
        now_s, turns_s = time.monotonic(), [learner.turn.time_s for learner in self.learners]
        known = self.learners[0].device.type == "cpu"
        own_s = [(now - before) * known for now, before in zip(turns_s, self.turns_s, strict=True)]
        rest_s = (now_s - self.began_s - sum(own_s)) / len(own_s)
        self.began_s, self.turns_s = now_s, turns_s
        return [own + rest_s for own in own_s]


def _end_training(learner: Learner, epoch: int) -> None:
    learner.processes.agree(_check_finite, learner, epoch)
    learner.scheduler.step()
    learner.processes.spread(learner.student.buffers())


def _check_finite(learner: Learner, epoch: int) -> None:
    """A finite loss can have a non-finite gradient; such weights must not replace a good checkpoint."""
    bad = next(
        (name for name, p in learner.student.named_parameters() if not torch.isfinite(p).all()),
        None,
    )
    if bad:
        raise TrainingError(
            f"epoch {epoch}: weight {bad} is not finite, expected finite numbers; lower train.lr and resume"
        )
