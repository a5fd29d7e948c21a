"""Students as a user would bring them: one that works, and all ways in which one may not."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Scores at stride 8, features at strides 4 and 8."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.low = _stage(3, width, stride=4)
        self.mid = _stage(width, 2 * width, stride=2)
        self.classifier = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, image_NCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        low = self.low(image_NCHW)
        mid = self.mid(low)
        return self.classifier(mid), {"low": low, "mid": mid}


def plain(num_classes: int, width: int = 8) -> nn.Module:
    return Plain(num_classes, width)


def no_module(num_classes: int) -> str:
    return "a student"


def failing(num_classes: int) -> nn.Module:
    raise ValueError("no such\nfile")


def logits_alone(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 1)


def one_class_more(num_classes: int) -> nn.Module:
    return Plain(num_classes + 1, 8)


class TooSmall(Plain):
    def forward(self, image_NCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if image_NCHW.shape[-1] < 1000:
            raise RuntimeError("the image is too small")
        return super().forward(image_NCHW)


def too_small(num_classes: int) -> nn.Module:
    return TooSmall(num_classes, 8)


def _stage(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(0.1))


class OneSize(Plain):
    """Takes images of 48x48 pixels alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, 4)
        self.place = nn.Parameter(torch.zeros(1, 3, 48, 48))

    def forward(self, image_NCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(image_NCHW + self.place)


class FrozenAlone(Plain):
    def forward(self, image_NCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.training:
            raise RuntimeError("not like this")
        return super().forward(image_NCHW)


def frozen_alone(num_classes: int) -> nn.Module:
    return FrozenAlone(num_classes, 8)


PATIENCE = 0  # how many times `late` answers


class Late(Plain):
    def forward(self, image_NCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        global PATIENCE
        PATIENCE -= 1
        if PATIENCE < 0:
            raise RuntimeError("boom\nand more")
        return super().forward(image_NCHW)


def late(num_classes: int, width: int = 8) -> nn.Module:
    return Late(num_classes, width)


def empty(num_classes: int) -> nn.Module:
    return nn.Identity()


def leaving(num_classes: int) -> nn.Module:
    raise SystemExit(3)
