"""Who is asked: the teacher, and how one is fitted."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdcache.config.names import (
    AS_BUILT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LIBRARIES,
    OWN_CODE,
    SMP,
    TORCHVISION,
    TRANSFORMERS,
    Option,
    Precision,
    check_positive,
    check_range,
    check_storable,
)
from kdcache.errors import refuse


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Which part of the teacher each feature level is taken from.

    layer1 to layer4 are the stages of a built-in teacher; any other part goes by its name, as in
    classifier.2, and [NUMBER or NAME] behind it takes one of several tensors that it gives.
    """

    low: str = "layer1"
    """Part behind low (layer1 of a ResNet: 256 channels, stride 4)."""
    mid: str = "layer2"
    """Part behind mid (layer2 of a ResNet: 512 channels, stride 8)."""
    high: str = "layer3"
    """Part behind high (layer3 of a ResNet: 1024 channels, stride 8), resized to
    teacher.high_stride."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen teacher, asked once."""

    arch: str = "fcn_resnet50"
    """A segmentation model of torchvision: fcn_resnet50, fcn_resnet101, deeplabv3_resnet50,
    deeplabv3_resnet101, deeplabv3_mobilenet_v3_large or lraspp_mobilenet_v3_large; smp:NAME of
    segmentation_models_pytorch, as in smp:Unet; transformers:NAME_OR_FOLDER of a model for semantic
    segmentation, as SegFormer; or package.module:function of yours, which takes num_classes and
    returns a module that returns logits."""
    options: dict[str, Option] = field(default_factory=dict)
    """What your function, or smp's model, is made with besides the classes, e.g. {encoder_name:
    resnet18}."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """What is subtracted from red, green and blue, each from 0 to 1."""
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """What they are then divided by, each above 0."""
    weights: str = "COCO_WITH_VOC_LABELS_V1"
    """torchvision weights name, or path of a checkpoint (.pth, .pt, .safetensors; for example from
    `cache_teacher fit`); as_built: those that your function gives its module, or
    that a model of transformers comes with."""
    weights_key: str | None = None
    """Where in the checkpoint the weights are, as in model_ema, or state_dict.teacher for the names
    that begin with teacher. (default: where they can only be)."""
    backbone_weights: str | None = None
    """File that fit takes the weights of the backbone from, in place of teacher.weights: all of
    them, by name, or by order and shape where names differ; what was taken is said. package:NAME is
    the one .pth file in an installed package (default: none)."""
    layers: LayerConfig = field(default_factory=LayerConfig)
    """Feature taps by level."""
    high_stride: Literal[8, 16] = 16
    """Stride of high in pixels, resized from that of its layer: 16 is the student's grid, 8 that of
    layer3 and layer4."""
    precision: Precision = "float32"
    """Arithmetic of the teacher's forward pass: float32 is exact; tf32 rounds what it multiplies to
    10 bits on GPUs that have it; the others use autocast. Caches of another one are others."""
    batch_size: int = 8
    """Images per forward pass, 1 or more; a batch never crosses a shard group."""
    device: str = "auto"
    """auto (cuda if present), cpu, cuda or cuda:N."""
    cudnn_benchmark: bool = False
    """Let a GPU try its convolutions and take the fastest: the last bits of an answer may then
    differ from one process to the next, as they do between two kinds of GPU."""

    def __post_init__(self) -> None:
        check_range("teacher.batch_size", self.batch_size, 1, 65_536)
        self._check_arch()
        for name, least in (("mean", -1000), ("std", 1e-6)):
            values = getattr(self, name)
            if len(values) != 3 or not all(least <= value <= 1000 for value in values):
                raise refuse(f"teacher.{name}", values, f"three numbers from {least:g} to 1000")

    @property
    def is_own(self) -> bool:
        """Whether the teacher is code of the user's."""
        elsewhere = self.arch.startswith(LIBRARIES)
        return not elsewhere and re.fullmatch(OWN_CODE, self.arch) is not None

    def _check_arch(self) -> None:
        """Raise SettingsError for an unknown name, with the nearest one, or idle settings."""
        smp, transformers = (self.arch.startswith(word) for word in (SMP, TRANSFORMERS))
        named = self.arch.startswith(LIBRARIES) and self.arch.partition(":")[2].strip()
        if not (self.arch in TORCHVISION or named or self.is_own):
            near = difflib.get_close_matches(self.arch, TORCHVISION, n=1)
            known = near[0] if near else ", ".join(TORCHVISION)
            libraries = ", ".join(f"{prefix}NAME" for prefix in LIBRARIES)
            expected = f"{known}, {libraries} or package.module:function"
            raise refuse("teacher.arch", self.arch, expected)
        check_storable("teacher.options", self.options)  # they are stored with every cache
        if self.options and not (self.is_own or smp):
            raise refuse("teacher.options", self.options, f"nothing for {self.arch}")
        if self.weights == AS_BUILT and not (self.is_own or transformers):
            expected = f"a checkpoint or a weights name: {self.arch} is built without weights"
            raise refuse("teacher.weights", self.weights, expected)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fine-tuning a teacher: `python -m cache_teacher fit`."""

    epochs: int = 30
    """Passes over the training split, 1 or more."""
    lr: float = 1e-3
    """Peak learning rate of AdamW under a one-cycle schedule, > 0."""
    backbone_lr: float | None = None
    """Peak learning rate of the backbone, > 0; a tenth of fit.lr suits one that starts from weights
    (default: fit.lr)."""
    warmup: float = 0.1
    """Share of all steps in which the rate rises to its peak, 0 to 1."""
    batch_size: int = 8
    """Images per step, 2 or more."""
    eval_every: int = 1
    """Score val after every so many epochs, and after the last; the best scored epoch is kept."""
    patience: int | None = None
    """Stop after so many scored epochs that were no better than the best, 1 or more (default: fit
    all epochs)."""
    ema: float | None = None
    """Decay a step of averaged weights, above 0 and below 1, for example 0.99; they are scored and
    kept instead of the last step's (default: no average)."""
    class_weights: Literal["none", "sqrt_inverse"] = "none"
    """Weights of classes in the loss; sqrt_inverse: the square root of the inverse frequency over
    the training labels, with mean 1."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; auto is bfloat16 on GPUs that have it, else float32. bfloat16 also saves half the
    time on CPUs with AVX512-BF16 or AMX."""
    out: Path = Path("teachers/fcn_resnet50.pth")
    """Checkpoint to write; teacher.weights accepts it."""

    def __post_init__(self) -> None:
        check_range("fit.epochs", self.epochs, 1, 1_000_000)
        check_range("fit.batch_size", self.batch_size, 2, 65_536)
        check_positive("fit.lr", self.lr)
        check_range("fit.warmup", self.warmup, 0, 1)
        if self.backbone_lr is not None:
            check_positive("fit.backbone_lr", self.backbone_lr)
        if self.patience is not None:
            check_range("fit.patience", self.patience, 1, 1_000_000)
        check_range("fit.eval_every", self.eval_every, 1, 1_000_000)
        if self.ema is not None:
            check_range("fit.ema", self.ema, 1e-6, 1 - 1e-6)
