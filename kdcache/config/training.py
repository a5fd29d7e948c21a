"""Who learns from it: the student, its loss, its training and where a run lives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdcache.config.names import (
    BUILT_IN_STUDENT,
    OWN_CODE,
    STRIDE,
    TERMS,
    TIMM,
    Option,
    SizePx,
    as_hw,
    check_positive,
    check_range,
    check_size,
    check_storable,
    is_own_student,
)
from kdcache.errors import refuse


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """MobileNetV3-Small + ASPP + skip connections, another backbone, or a student of yours."""

    arch: str = BUILT_IN_STUDENT
    """mobilenetv3_small; timm:NAME for the same head over a backbone of timm, as in timm:resnet18;
    or package.module:function of yours, which takes num_classes and returns a module that returns
    (logits, features)."""
    options: dict[str, Option] = field(default_factory=dict)
    """What your function, or timm's, is called with besides num_classes, e.g. {width: 32}."""
    pretrained: bool = True
    """Start mobilenetv3_small from torchvision's ImageNet weights (10 MB download, checked by
    hash), a backbone of timm from those that timm downloads."""
    backbone_weights: str | None = None
    """File that the backbone starts from in place of a download: all of it, by name, or by order
    and shape where names differ; what was taken is said. package:NAME is the one .pth file in an
    installed package. Runs record its sha256 (default: none)."""
    aspp_channels: int = 96
    """Channels of each ASPP branch but in a student of yours, 8 or more; 96 gives mobilenetv3_small
    2.8 M parameters at 21 classes."""

    def __post_init__(self) -> None:
        check_range("student.aspp_channels", self.aspp_channels, 8, 4096)
        timm = self.arch.startswith(TIMM) and self.arch != TIMM
        if not (self.arch == BUILT_IN_STUDENT or timm or re.fullmatch(OWN_CODE, self.arch)):
            expected = f"{BUILT_IN_STUDENT}, {TIMM}NAME or package.module:function"
            raise refuse("student.arch", self.arch, expected)
        check_storable("student.options", self.options)  # they are stored with every run
        if self.options and self.arch == BUILT_IN_STUDENT:
            raise refuse("student.options", self.options, f"nothing for {BUILT_IN_STUDENT}")
        if self.backbone_weights is not None and self.is_own:
            expected = "nothing for a student of yours: its function loads them"
            raise refuse("student.backbone_weights", self.backbone_weights, expected)

    @property
    def is_own(self) -> bool:
        """Whether the student is code of the user's."""
        return is_own_student(self.arch)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """L = alpha CE + beta T^2 KL(teacher || student) + gamma mean over levels of (1 - cosine).

    In images without a label, + pseudo CE with the teacher's class.
    """

    alpha: float = 1.0
    """Weight of the cross-entropy with the labels, >= 0."""
    beta: float = 0.5
    """Weight of the divergence from the teacher's softened classes, >= 0; 0 reads no logits."""
    gamma: float = 0.3
    """Weight of the feature distance, >= 0; 0 reads no features."""
    temperature: float = 4.0
    """Softening T of both sides of the divergence, > 0."""
    pseudo: float = 0.0
    """Weight of the cross-entropy with the teacher's class in images without a label, >= 0."""
    pseudo_threshold: float = 0.0
    """Least softmax of the teacher's class in a pixel that counts for it, 0 to 1; 0 takes all."""

    def __post_init__(self) -> None:
        for name in TERMS.values():
            check_range(f"loss.{name}", getattr(self, name), 0, 1e6)
        check_positive("loss.temperature", self.temperature)
        check_range("loss.pseudo_threshold", self.pseudo_threshold, 0, 1)
        if self.alpha == 0 and not self.uses_teacher:
            weights = ", ".join(f"loss.{name}" for name in TERMS.values())
            raise refuse("loss.alpha", 0.0, f"one of {weights} above 0")

    @property
    def uses_teacher(self) -> bool:
        """Whether the student learns anything from the teacher; a baseline does not."""
        return any(getattr(self, name) for term, name in TERMS.items() if term != "ce")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training of the student."""

    epochs: int = 30
    """Passes over the training samples, 1 or more."""
    batch_size: int = 8
    """Samples per step, of all processes together, 2 or more; a last batch of one sample joins the
    batch before it."""
    lr: float = 1e-3
    """Learning rate of Adam at the start of its cosine, > 0."""
    seed: int = 0
    """Seed of initialisation, data order, flips, crops and dropout, 0 to 2^63-1."""
    views: Literal["cycle", "random"] = "cycle"
    """Which of its cached views a sample shows in an epoch: each in turn, or one drawn anew."""
    flip: float = 0.0
    """Probability that a sample and its cached targets are flipped left-right in an epoch, 0 to 1;
    0 is exact."""
    crop: SizePx | None = None
    """Size in pixels of a random part of each view to train on, targets cropped alike, N or
    [height, width], multiples of 16 (default: all)."""
    unlabelled_share: float | None = None
    """Share of each batch that has no label, above 0 and below 1: 0.75 is 6 of 8 (default: none).
    An epoch then has as many steps as pass all images once."""
    device: str = "auto"
    """auto (cuda if present), cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the student: auto is bfloat16 autocast on cuda and float32 on cpu."""
    residency: Literal["auto", "disk", "ram", "gpu"] = "auto"
    """Where samples stay after they are first read: auto takes GPU memory if all fit, else RAM
    (mapped files) if all fit, else disk."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for student and loss: auto is on for cuda, and off for cpu, which gains less
    than compiling takes; a run keeps its choice."""
    cudnn_benchmark: bool = False
    """Let a GPU try its convolutions at each size of batch and take the fastest."""
    deterministic: bool = False
    """Take only sums that come out the same each time, so that a GPU repeats a run to the last bit,
    as a CPU always does; slower, and compile auto is then off."""

    def __post_init__(self) -> None:
        check_range("train.epochs", self.epochs, 1, 1_000_000)
        check_range("train.batch_size", self.batch_size, 2, 65_536)
        check_range("train.seed", self.seed, 0, 2**63 - 1)
        check_range("train.flip", self.flip, 0, 1)
        check_size("train.crop", self.crop, stride=STRIDE)
        check_positive("train.lr", self.lr)
        idle = "with train.deterministic, which leaves no choice of kernels"
        if self.deterministic and self.compile == "on":
            raise refuse("train.compile", self.compile, f"auto or off {idle}")
        if self.deterministic and self.cudnn_benchmark:
            raise refuse("train.cudnn_benchmark", True, f"False {idle}")
        share, rows = self.unlabelled_share, self.batch_size
        if share is not None and not (0 < share < 1 and 0 < self.unlabelled_rows < rows):
            expected = f"a share that is 1 to {rows - 1} of {rows} rows"
            raise refuse("train.unlabelled_share", share, expected)

    @property
    def compiling(self) -> str:
        """`compile`; off for auto if the numbers are to repeat."""
        return "off" if self.deterministic and self.compile == "auto" else self.compile

    @property
    def unlabelled_rows(self) -> int:
        """Rows of a batch that have no label."""
        return int((self.unlabelled_share or 0) * self.batch_size + 0.5)

    @property
    def crop_hw(self) -> tuple[int, int] | None:
        """Height and width of what is trained on in pixels; None for whole views."""
        return None if self.crop is None else as_hw(self.crop)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a training run lives."""

    dir: Path = Path("runs/student_kd")
    """Folder of the run; baselines lie beside it in baseline-<hash>/."""
    resume: bool = False
    """Continue an interrupted run in run.dir."""
    baseline: bool = True
    """Train the same student without the teacher first (equal budget), unless that was done
    before."""
    track: Literal["auto", "none", "tensorboard", "wandb"] = "auto"
    """Where the numbers of each epoch are shown besides metrics.jsonl: auto is TensorBoard if it is
    installed."""
