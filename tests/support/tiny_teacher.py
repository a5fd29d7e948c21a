"""An FCN with the parts, strides and tapped channels of the real one and a thirtieth of its
weights, for tests.

`python -m tests.support.tiny_teacher PROGRAM ...` runs a program with it, as a child process of a
test.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable

from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCN, FCNHead

from kdcache.models import teacher

PARTS = {"layer1": (256, 1), "layer2": (512, 2), "layer3": (1024, 1), "layer4": (128, 1)}
BUILDERS = ("kdcache.models.teacher", "kdcache.models.fit")
REAL = teacher.build_fcn


def build_tiny_fcn(arch: str, *, num_classes: int, aux_head: bool) -> nn.Module:
    """In place of `kdcache.models.teacher.build_fcn`: strides 4, 8, 8, 8; the last part has 128
    channels, not 2048.
    """
    stem = {"conv1": nn.Conv2d(3, 32, 7, stride=2, padding=3, bias=False)}
    stem |= {"bn1": nn.BatchNorm2d(32), "relu": nn.ReLU(inplace=True)}
    stem |= {"maxpool": nn.MaxPool2d(3, stride=2, padding=1)}
    layers, channels = {}, 32
    for name, (wanted, stride) in PARTS.items():
        conv = nn.Conv2d(channels, wanted, 1, stride=stride, bias=False)
        layers[name] = nn.Sequential(conv, nn.BatchNorm2d(wanted), nn.ReLU(inplace=True))
        channels = wanted
    taken = {"layer4": "out", "layer3": "aux"} if aux_head else {"layer4": "out"}
    backbone = IntermediateLayerGetter(nn.ModuleDict(stem | layers), taken)
    aux = FCNHead(PARTS["layer3"][0], num_classes) if aux_head else None
    return _scale(FCN(backbone, FCNHead(channels, num_classes), aux))


def _scale(model: nn.Module) -> nn.Module:
    """Answers of the size of one, as far as the classes differ."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def use_tiny_teacher(setattr: Callable = setattr, build: Callable = build_tiny_fcn) -> None:
    """Let everything that builds a teacher build this one."""
    for name in BUILDERS:
        setattr(importlib.import_module(name), "build_fcn", build)


if __name__ == "__main__":
    use_tiny_teacher()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
