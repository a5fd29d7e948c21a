"""What the loss alone costs, gradient included: the definitions with autograd, and ours in one
pass.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from kdcache.config import LossConfig
from kdcache.losses import KnowledgeDistillationLoss, cross_entropy, feature_distance, kd_divergence
from kdcache.models.inputs import resize_to
from kdcache.models.student import STUDENT_CHANNELS
from tests.bench.adapter import LEVELS
from tests.bench.copying import time_s
from tests.bench.data import NUM_CLASSES
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.sizes import Bench

STUDENT_STRIDE, TEACHER_STRIDE = 4, 8  # of the scores


def measure(bench: Bench) -> list[Figure]:
    """CE + KL, then features: alternating."""
    case, pixels, features = (
        _Case(bench),
        _make_loss(bench, gamma=0.0),
        _make_loss(bench, alpha=0.0, beta=0.0),
    )
    labels = _make_loss(bench, beta=0.0, gamma=0.0)
    return [
        _compare(bench, case, "loss_pixels", textbook=lambda: _textbook_pixels(case, pixels),
                 one_pass=lambda: case.compute(pixels), ce_alone=lambda: case.compute(labels)),
        _compare(bench, case, "loss_features", textbook=lambda: _textbook_features(case, features),
                 one_pass=lambda: case.compute(features)),
    ]  # fmt: skip


def _compare(bench: Bench, case: _Case, key: str, **ways: Callable[[], Tensor]) -> Figure:
    """Ratio of textbook to one pass; seconds of each."""
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        _step(bench, way)
    for _ in range(bench.sizes.loss_rounds):
        for name, way in ways.items():
            runs[name].append(time_s(lambda way=way: _step(bench, way)))
    seconds = {name: statistics.median(times_s) for name, times_s in runs.items()}
    ratio = median_ratio(runs["textbook"], runs["one_pass"])
    return make_figure(
        key, ratio, runs=runs, seconds=seconds, px=case.px, batch_size=bench.sizes.batch_size
    )


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

    def compute(self, loss: KnowledgeDistillationLoss) -> Tensor:
        """The product's loss."""
        terms = loss(
            self.logits,
            self.features,
            self.label,
            teacher_NKHW=self.answer,
            teacher_features=self.targets,
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
