"""What can be a teacher: networks that are built by name, each with how it is asked, and the
features that their parts give, seen by hooks and brought to [N, C, h, w].

A part goes by its name in the module, as in `encoder.layer1`; [2] or [name] behind it takes one of
several tensors that it gives.

Letters: N batch, K classes, C channels, H, W of the image, h, w of a grid, L tokens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from kdcache.config import TeacherConfig
from kdcache.config.names import NO_AUX, SMP, TRANSFORMERS
from kdcache.errors import Phrase, SettingsError, TeacherError, describe
from kdcache.models.adapters import (
    SEGFORMER_STAGES,
    SMP_STAGES,
    build_smp,
    build_transformers,
    hash_transformers,
)
from kdcache.models.own_code import TEACHER, call_function, hash_source_unseen, refuse_code

MOBILENET_STAGES = ("3", "6", "12", "16")  # strides 4, 8, 16, 16; 24, 40, 112, 960 channels
ROOTS = ("", "backbone.", "encoder.", "model.")  # a name may lack the first of its parts
PREFIX_TOKENS = (0, 1, 2, 5)  # before the grid: a class token, one of distillation, registers
STRIDES = (1, 2, 4, 8, 16)  # of what is stored: train.crop cuts at multiples of 16 pixels
MOST_NAMED = 4


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


def build_network(
    config: TeacherConfig,
    *,
    num_classes: int,
    state: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
) -> Network:
    """The network of `teacher.arch`; weights are loaded afterwards, unless it comes with them.

    Args:
        state: weights for a network of transformers, which reads them itself: it knows the names
            that older versions gave them. None: those that it comes with.
        seed: for fitting: draws the weights, those of transformers, too, with an auxiliary head
            where torchvision has one. None: they are to be loaded, or it comes with them.

    Raises: SettingsError, TeacherError if it cannot be built.
    """
    arch, is_fresh = config.arch, seed is not None
    with _drawing_alone(seed or 0):
        if config.is_own:
            module = call_function(
                arch, num_classes=num_classes, options=config.options, field=TEACHER
            )
            return Network(arch, module, num_classes, ask=module)
        if arch.startswith(SMP):
            module = build_smp(config, num_classes)
            return Network(arch, module, num_classes, ask=module, stages=SMP_STAGES)
        if arch.startswith(TRANSFORMERS):
            module = build_transformers(config, num_classes, state, is_fresh=is_fresh)
            stages = SEGFORMER_STAGES if module.config.model_type == "segformer" else {}
            ask = partial(_ask_transformers, module)
            return Network(arch, module, num_classes, ask=ask, stages=stages)
        aux = {"aux_loss": True} if is_fresh and arch not in NO_AUX else {}
        # on meta: millions of weights that would be drawn and thrown away
        with torch.device("cpu" if is_fresh else "meta"):
            model = get_model(
                arch, weights=None, weights_backbone=None, num_classes=num_classes, **aux
            )
        return wrap_torchvision(model, num_classes=num_classes, name=arch)


def wrap_torchvision(model: nn.Module, *, num_classes: int, name: str = "fcn_resnet50") -> Network:
    """An FCN, DeepLabV3 or LR-ASPP of torchvision; an auxiliary head is not asked."""
    return Network(
        name=name,
        module=model,
        num_classes=num_classes,
        ask=partial(_ask_torchvision, model),
        stages=_find_stages(model.backbone),
        one_stride=True,
        memory_format=torch.channels_last,
    )


def hash_network(config: TeacherConfig) -> str | None:
    """What defines a network beside its name, options and weights, as a sha256.

    The file of a function of the user's, which is not imported; the config of a model of
    transformers; None if there is nothing else.
    """
    if config.arch.startswith(TRANSFORMERS):
        return hash_transformers(config)
    return hash_source_unseen(config.arch) or "unknown" if config.is_own else None


@contextmanager
def _drawing_alone(seed: int) -> Iterator[None]:
    """What is drawn meanwhile is that of the seed, and nothing of what others draw."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


def _ask_torchvision(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    features = model.backbone(x_NCHW)
    return model.classifier(features.get("out", features))


def _ask_transformers(module: nn.Module, x_NCHW: Tensor) -> Mapping:
    """Its answer, in which the features of the stages are, too."""
    return module(pixel_values=x_NCHW, output_hidden_states=True)


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
    return refuse_code(name, found, expected, field=TEACHER, kind=TeacherError)


def _find_stages(backbone: nn.Module) -> dict[str, str]:
    """layer1 to layer4: those of a ResNet, or the last blocks before MobileNetV3 strides on."""
    names = [name for name, _ in backbone.named_children()]
    stages = [name for name in names if name.startswith("layer")] or MOBILENET_STAGES
    return {f"layer{n}": f"backbone.{name}" for n, name in enumerate(stages, 1)}


class Parts:
    """Keeps what some parts of a module give in its next forward pass.

    Args:
        module: gets a forward hook for each level.
        layers: level -> name of a part.
        stages: other names of parts, which come first.

    Raises: SettingsError, with the nearest names, if there is no such part.
    """

    def __init__(
        self, module: nn.Module, layers: Mapping[str, str], *, stages: Mapping[str, str]
    ) -> None:
        self.layers = dict(layers)
        self._given: dict[str, object] = {}
        for level, name in layers.items():
            part, keys = find_part(module, name, stages=stages, level=level)
            if isinstance(part, torch.jit.ScriptModule):
                raise refuse_layer(level, name, "compiled by torch.jit", "a part that takes hooks")
            part.register_forward_hook(self._make_hook(level, keys))

    def take(self, hw: tuple[int, int]) -> dict[str, Tensor]:
        """Level -> features [N, C, h, w] of the last forward pass.

        Args:
            hw: height and width of its images.

        Raises: SettingsError for what is no grid of features.
        """
        given, self._given = self._given, {}
        return {level: self._bring(level, given, hw) for level in self.layers}

    def _make_hook(self, level: str, keys: list[str]) -> Callable:
        def keep(part: nn.Module, inputs: object, output: object) -> None:
            value = _pick(output, keys)
            # a copy: the part behind it may write into it, as a ReLU in place does
            self._given[level] = value.clone() if isinstance(value, Tensor) else value

        return keep

    def _bring(self, level: str, given: Mapping, hw: tuple[int, int]) -> Tensor:
        value, asked = given.get(level), level in given
        if not isinstance(value, Tensor):
            found = f"giving {describe_kind(value)}" if asked else "never asked"
            raise refuse_layer(level, self.layers[level], found, "a part that gives a tensor")
        grid = bring_to_grid(value, hw)
        if grid is None:
            found, expected = f"giving {list(value.shape)}", "features [N, C, h, w] or [N, L, C]"
            expected += f" of a grid over the {hw[0]}x{hw[1]} image"
            raise refuse_layer(level, self.layers[level], found, expected)
        return grid


def find_part(
    module: nn.Module, name: str, *, stages: Mapping[str, str], level: str
) -> tuple[nn.Module, list[str]]:
    """A part by its name, and what is taken of the tensors that it gives. Raises SettingsError."""
    path, *keys = re.split(r"\[([^\[\]]*)\]", stages.get(name, name))
    keys = [key for key in keys if key]
    known = dict(module.named_modules())
    for root in ROOTS:
        if f"{root}{path}" in known and (path or keys):
            return known[f"{root}{path}"], keys
    words = [*stages, *(word for word in known if word)]
    near = difflib.get_close_matches(path, words, n=MOST_NAMED, cutoff=0.4)
    tails = [word for word in words if word.rpartition(".")[2] == path.rpartition(".")[2]]
    chosen = list(dict.fromkeys([*stages, *tails[:MOST_NAMED], *near]))
    expected = "one of " + ", ".join(chosen or words[:MOST_NAMED])
    raise refuse_layer(level, name, None, expected)


def bring_to_grid(value: Tensor, hw: tuple[int, int]) -> Tensor | None:
    """Features [N, C, h, w] of [N, C, h, w], [N, h, w, C] or tokens [N, L, C]; None for others.

    Tokens before the grid, as a class token, are left out.
    """
    if value.ndim == 4:
        if find_stride(value.shape[2:], hw) or not find_stride(value.shape[1:3], hw):
            return value
        return value.permute(0, 3, 1, 2)
    for extra in PREFIX_TOKENS if value.ndim == 3 else ():
        stride = _find_token_stride(value.shape[1] - extra, hw)
        if stride:
            grid = (hw[0] // stride, hw[1] // stride)
            return value[:, extra:].transpose(1, 2).unflatten(2, grid)
    return None


def find_stride(grid: tuple[int, ...], hw: tuple[int, int]) -> int | None:
    """The stride in pixels of a grid over an image; None if it does not divide the image."""
    if min(grid) < 1 or hw[0] % grid[0] or hw[1] % grid[1]:
        return None
    down, right = hw[0] // grid[0], hw[1] // grid[1]
    return down if down == right else None


def _find_token_stride(count: int, hw: tuple[int, int]) -> int | None:
    strides = (s for s in range(1, min(hw) + 1) if hw[0] % s == 0 == hw[1] % s)
    return next((s for s in strides if (hw[0] // s) * (hw[1] // s) == count), None)


def describe_kind(value: object) -> str:
    """In words: a tensor's shape, else the kind and, if it has them, the names in it."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def refuse_layer(level: str, name: str, found: str | None, expected: str) -> SettingsError:
    """The error for a part that cannot be a level; `found` is what is wrong with it."""
    field = f"teacher.layers.{level}" + (f" {name}" if found else "")
    shown = Phrase(found) if found else name
    cure = f"choose another, or leave {level} out of cache.levels"
    return SettingsError(
        describe("settings", field=field, found=shown, expected=Phrase(expected), cure=cure)
    )


def _pick(value: object, keys: list[str]) -> object:
    """What the keys lead to; None if they lead nowhere."""
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple) and re.fullmatch(r"-?\d+", key):
            value = value[int(key)] if -len(value) <= int(key) < len(value) else None
        else:
            value = getattr(value, key, None)
    return value
