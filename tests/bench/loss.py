"""What the loss alone costs, gradient included: the definitions with autograd, and ours in one
pass.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from kdcache.config import VOID, LossConfig
from kdcache.losses import KnowledgeDistillationLoss, cross_entropy, feature_distance, kd_divergence
from kdcache.models.inputs import resize_to
from kdcache.models.student import STUDENT_CHANNELS
from tests.bench import adapter
from tests.bench.adapter import LEVELS
from tests.bench.copying import time_s
from tests.bench.data import NUM_CLASSES
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.sizes import Bench

STUDENT_STRIDE, TEACHER_STRIDE = 4, 8  # of the scores


def measure(bench: Bench) -> list[Figure]:
    """CE + KL, the recipe, its step, then features: alternating."""
    case, pixels, features = (
        _Case(bench),
        _make_loss(bench, gamma=0.0),
        _make_loss(bench, alpha=0.0, beta=0.0),
    )
    labels = _make_loss(bench, **adapter.LABELS_ONLY)
    return [
        _compare(bench, case, "loss_pixels", textbook=lambda: _textbook_pixels(case, pixels),
                 one_pass=lambda: case.compute(pixels), ce_alone=lambda: case.compute(labels)),
        _measure_recipe(bench, case, labels),
        _measure_step(bench, case),
        _compare(bench, case, "loss_features", textbook=lambda: _textbook_features(case, features),
                 one_pass=lambda: case.compute(features)),
    ]  # fmt: skip


def _measure_recipe(bench: Bench, case: _Case, labels: KnowledgeDistillationLoss) -> Figure:
    losses = {
        "ce_kl": _make_loss(bench, **{**adapter.RECIPE, "pseudo": 0.0}),
        "ce_kl_pseudo": _make_loss(bench, **adapter.RECIPE),
        "with_threshold": _make_loss(bench, **adapter.RECIPE, pseudo_threshold=0.7),
    }
    ways = {name: lambda loss=loss: case.compute(loss, mixed=True) for name, loss in losses.items()}
    ways |= {"ce_alone": lambda: case.compute(labels)}
    return _compare(bench, case, "loss_recipe", of=("ce_kl_pseudo", "ce_alone"), **ways)


def _measure_step(bench: Bench, case: _Case) -> Figure:
    """Whole steps of students that differ in their loss alone."""
    given = {"px": case.px, "batch_size": bench.sizes.batch_size}
    image = torch.randint(0, 256, (*case.label.shape, 3), device=bench.device).to(torch.uint8)
    arrays = {"image": image, "label": case.label}
    mixed = {**arrays, "label": case.mixed_label, "logits": case.answer}
    mixed |= {"labelled": case.labelled[:, None].to(torch.uint8)}
    batches = {"labels_only": arrays, "recipe": mixed}
    losses = {"labels_only": adapter.LABELS_ONLY, "recipe": adapter.RECIPE}
    learners = {
        name: adapter.make_learner(adapter.training_config(**given, loss=loss))
        for name, loss in losses.items()
    }

    def step(name: str) -> None:
        adapter.step(learners[name], adapter.make_batch(batches[name], []))
        if bench.gpu:
            torch.cuda.synchronize()

    ways = {name: lambda name=name: step(name) for name in batches}
    runs = _alternate(bench, ways)
    ratio = median_ratio(runs["recipe"], runs["labels_only"])
    return make_figure("recipe_tax", ratio, gpu=bench.gpu, runs=runs, **given)


def _compare(
    bench: Bench,
    case: _Case,
    key: str,
    *,
    of: tuple[str, str] = ("textbook", "one_pass"),
    **ways: Callable[[], Tensor],
) -> Figure:
    """Ratio of two ways; seconds of each."""
    steps = {name: lambda way=way: _step(bench, way) for name, way in ways.items()}
    runs = _alternate(bench, steps)
    seconds = {name: statistics.median(times_s) for name, times_s in runs.items()}
    facts = {"px": case.px, "batch_size": bench.sizes.batch_size}
    ratio = median_ratio(*(runs[name] for name in of))
    return make_figure(key, ratio, runs=runs, seconds=seconds, **facts)


def _alternate(bench: Bench, ways: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(bench.sizes.loss_rounds):
        for name, way in ways.items():
            runs[name].append(time_s(way))
    return runs


class _Case:
    """A student's coarse scores and features (leaves), labels, and a teacher's answers as the cache
    has them.
    """

    def __init__(self, bench: Bench) -> None:
        torch.manual_seed(0)
        num, device = bench.sizes.batch_size, bench.device
        px = self.px = bench.sizes.train_gpu_px if bench.gpu else bench.sizes.train_px
        self.hw = (px, px)
        self.logits = torch.randn(
            num, NUM_CLASSES, px // STUDENT_STRIDE, px // STUDENT_STRIDE, device=device
        )
        self.label = torch.randint(0, NUM_CLASSES, (num, px, px), device=device).to(torch.uint8)
        self.labelled = torch.arange(num, device=device) < num // 4
        self.mixed_label = self.label.where(self.labelled[:, None, None], VOID)
        self.answer = torch.randn(
            num, NUM_CLASSES, px // TEACHER_STRIDE, px // TEACHER_STRIDE, device=device
        ).half()
        self.features, self.targets = {}, {}
        for level, (channels, stride) in LEVELS.items():
            grid = (px // stride, px // stride)
            features = torch.randn(num, STUDENT_CHANNELS[level], *grid, device=device)
            self.features[level] = features.contiguous(
                memory_format=torch.channels_last
            ).requires_grad_()
            self.targets[level] = torch.randn(num, channels, *grid, device=device).half()
        self.logits.requires_grad_()

    def compute(self, loss: KnowledgeDistillationLoss, *, mixed: bool = False) -> Tensor:
        """The product's loss; `mixed`: a quarter of the images has labels."""
        terms = loss(
            self.logits,
            self.features,
            self.mixed_label if mixed else self.label,
            teacher_NKHW=self.answer,
            teacher_features=self.targets,
            labelled_N=self.labelled if mixed else None,
            hw=self.hw,
        )
        return terms.total


def _make_loss(bench: Bench, **weights: float) -> KnowledgeDistillationLoss:
    """Default weights but for those given."""
    channels = {level: (count, STUDENT_CHANNELS[level]) for level, (count, _) in LEVELS.items()}
    return KnowledgeDistillationLoss(**{**asdict(LossConfig()), **weights}, channels=channels).to(
        bench.device
    )


def _step(bench: Bench, way: Callable[[], Tensor]) -> None:
    way().backward()
    if bench.gpu:
        torch.cuda.synchronize()


def _textbook_pixels(case: _Case, loss: KnowledgeDistillationLoss) -> Tensor:
    full = resize_to(case.logits, case.hw)
    ce = cross_entropy(full, case.label.long()).mean
    return (
        loss.alpha * ce
        + loss.beta * kd_divergence(full, case.answer, temperature=loss.temperature).mean
    )


def _textbook_features(case: _Case, loss: KnowledgeDistillationLoss) -> Tensor:
    distances = [
        feature_distance(case.features[level], align(case.targets[level].float())).mean
        for level, align in loss.align.items()
    ]
    return loss.gamma * torch.stack(distances).mean()
