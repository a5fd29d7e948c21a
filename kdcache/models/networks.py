"""What can be a teacher: networks that are built by name, each with how it is asked.

Letters: N batch, K classes, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from kdcache.config import TeacherConfig
from kdcache.errors import Phrase, TeacherError, describe
from kdcache.models.own_code import TEACHER, call_function, hash_source_unseen

MOBILENET_STAGES = ("3", "6", "12", "16")  # strides 4, 8, 16, 16; 24, 40, 112, 960 channels


@dataclass(frozen=True)
class Network:
    """A module, and what to know to ask it.

    name: teacher.arch. ask: normalised images [N, 3, H, W] -> logits [N, K, h, w] before any
    upsampling that can be left out, or what `find_logits` finds them in. stages: layer1 to layer4
    -> part of the module. one_stride: the strides are the same for images of any size.
    """

    name: str
    module: nn.Module
    num_classes: int
    ask: Callable[[Tensor], object]
    stages: Mapping[str, str] = field(default_factory=dict)
    one_stride: bool = False
    memory_format: torch.memory_format = torch.contiguous_format


def build_network(config: TeacherConfig, *, num_classes: int) -> Network:
    """The network of `teacher.arch`; weights are loaded afterwards, unless it comes with them.

    Raises: SettingsError if it cannot be built.
    """
    if config.is_own:
        module = _call_own(config, num_classes)
        return Network(config.arch, module, num_classes, ask=module)
    with torch.device("meta"):  # millions of weights that would be drawn and thrown away
        model = get_model(config.arch, weights=None, weights_backbone=None, num_classes=num_classes)
    return wrap_torchvision(model, num_classes=num_classes, name=config.arch)


def wrap_torchvision(model: nn.Module, *, num_classes: int, name: str = "fcn_resnet50") -> Network:
    """An FCN, DeepLabV3 or LR-ASPP of torchvision; an auxiliary head is not asked."""

    def ask(x_NCHW: Tensor) -> Tensor:
        features = model.backbone(x_NCHW)
        return model.classifier(features.get("out", features))

    return Network(
        name=name,
        module=model,
        num_classes=num_classes,
        ask=ask,
        stages=_find_stages(model.backbone),
        one_stride=True,
        memory_format=torch.channels_last,
    )


def hash_network(config: TeacherConfig) -> str | None:
    """What defines a network beside its name, options and weights, as 12 hex digits.

    The file of a function of the user's, which is not imported; None if there is nothing else.
    """
    return hash_source_unseen(config.arch) or "unknown" if config.is_own else None


def _call_own(config: TeacherConfig, num_classes: int) -> nn.Module:
    """The user's module; what it draws is the same each time, and nobody else's."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return call_function(
            config.arch, num_classes=num_classes, options=config.options, field=TEACHER
        )


def find_logits(given: object) -> Tensor | None:
    """The logits in what a network gives; None if there are none.

    They are the tensor itself, "out" or "logits" of a table, or the first of several.
    """
    if isinstance(given, Mapping):
        given = given.get("logits", given.get("out"))
    elif isinstance(given, list | tuple):
        given = given[0] if given else None
    return given if isinstance(given, Tensor) else None


def refuse_network(name: str, found: str, expected: str) -> TeacherError:
    """The error for a teacher that is not what it must be, whatever its weights."""
    cure = "mend it or change teacher.arch"
    return TeacherError(
        describe(
            "settings",
            field=f"teacher.arch {name}",
            found=Phrase(found),
            expected=Phrase(expected),
            cure=cure,
        )
    )


def _find_stages(backbone: nn.Module) -> dict[str, str]:
    """layer1 to layer4: those of a ResNet, or the last blocks before MobileNetV3 strides on."""
    names = [name for name, _ in backbone.named_children()]
    stages = [name for name in names if name.startswith("layer")] or MOBILENET_STAGES
    return {f"layer{n}": f"backbone.{name}" for n, name in enumerate(stages, 1)}
