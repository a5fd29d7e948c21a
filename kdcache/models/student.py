"""The student named by `student.arch`: the built-in one, or a module of yours.

The built-in one is MobileNetV3-Small with ASPP and two skip connections.
Letters: N batch, C channels, H, W height and width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small
from torchvision.models.segmentation.deeplabv3 import ASPP

from kdcache.config import StudentConfig
from kdcache.config.names import BUILT_IN_STUDENT, TIMM, is_own_student
from kdcache.errors import one_line
from kdcache.models.backbone import load_backbone
from kdcache.models.checkpoints import WeightsAbsentError
from kdcache.models.inputs import resize_to
from kdcache.models.own_code import call_function, refuse_code
from kdcache.models.weights import download_weights
from kdcache.progress import Say

# level -> index into MobileNetV3-Small's features; torchvision defines their channels and strides
TAPS = {"low": 1, "mid": 3, "high": 8}
STUDENT_CHANNELS = {"low": 16, "mid": 24, "high": 48}  # at strides 4, 8, 16
ASPP_RATES = (6, 12, 18)
SKIP_CHANNELS = 48
HEAD_CHANNELS = 128
# torchvision's MobileNetV3 has 0.01: after 100 steps from scratch its running statistics are still
# 37 % initial values, and validation predicts one class only while the training loss looks fine
BATCHNORM_MOMENTUM = 0.1


class LightweightSegmentationModel(nn.Module):
    """MobileNetV3-Small (last stage dilated to stride 16), ASPP, skips from low and mid.

    It has 2.8 M parameters at 21 classes.

    Args:
        num_classes: channels of the logits.
        pretrained: start the backbone from torchvision's ImageNet weights.
        aspp_channels: channels of each ASPP branch.
    """

    def __init__(
        self, num_classes: int = 21, *, pretrained: bool = True, aspp_channels: int = 96
    ) -> None:
        super().__init__()
        backbone = mobilenet_v3_small(weights=None, dilated=True)
        if pretrained:
            backbone.load_state_dict(download_weights(MobileNet_V3_Small_Weights.IMAGENET1K_V1))
        self.backbone = backbone.features
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCHNORM_MOMENTUM
        self._make_head({**STUDENT_CHANNELS, "deep": 576}, num_classes, aspp_channels)

    def _make_head(self, channels: Mapping[str, int], num_classes: int, aspp_channels: int) -> None:
        """Make what follows the backbone.

        Args:
            channels: of low, mid, and deep, which ASPP sees.
            num_classes, aspp_channels: as of the class.
        """
        self.aspp = _Aspp(channels["deep"], ASPP_RATES, aspp_channels)
        self.skip_mid = _conv_block(channels["mid"], SKIP_CHANNELS, kernel=1)
        self.skip_low = _conv_block(channels["low"], SKIP_CHANNELS, kernel=1)
        self.head = _conv_block(aspp_channels + 2 * SKIP_CHANNELS, HEAD_CHANNELS, kernel=3)
        self.classifier = nn.Conv2d(HEAD_CHANNELS, num_classes, 1)

    def forward(self, image_NCHW: Tensor, *, return_features: bool = False, full_size: bool = True):
        """Scores at the input's size.

        Args:
            image_NCHW: normalised float images, H and W at least 32.
            return_features: also return {"low": stride 4, "mid": stride 8, "high": stride 16}.
            full_size: upsample the logits to the input's size; the loss does that itself in bands.

        Returns: logits [N, num_classes, H, W] (stride 4 without full_size), or (logits, features).
        """
        features, x = self._run_backbone(image_NCHW)
        grid = features["low"].shape[-2:]
        parts = [self.aspp(x), self.skip_mid(features["mid"]), self.skip_low(features["low"])]
        x = self.head(torch.cat([resize_to(part.float(), grid) for part in parts], dim=1))
        logits = self.classifier(x)
        if full_size:
            logits = resize_to(logits.float(), image_NCHW.shape[-2:])
        return (logits, features) if return_features else logits

    def _run_backbone(self, image_NCHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features by level, and what ASPP sees, of normalised float images."""
        features, x = {}, image_NCHW
        for index, stage in enumerate(self.backbone):
            x = stage(x)
            features.update({level: x for level, tap in TAPS.items() if tap == index})
        return features, x


class _Aspp(ASPP):
    """torchvision's, whose pooled branch is upsampled in float32 under autocast, too."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        *branches, pooling = self.convs
        pooled = nn.Sequential.forward(pooling, x_NCHW)  # without torchvision's upsampling
        parts = [branch(x_NCHW) for branch in branches]
        parts.append(resize_to(pooled.float(), x_NCHW.shape[-2:]))
        return self.project(torch.cat(parts, dim=1))


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters of a model, without buffers."""
    return sum(p.numel() for p in model.parameters())


def _conv_block(inputs: int, outputs: int, *, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


RETURNS = "(logits [N, num_classes, H, W] on any grid, {level: features [N, C, H, W]})"


class OwnStudent(nn.Module):
    """Your module with the interface of `LightweightSegmentationModel`; weights keep their names.

    Args:
        module: image [N, 3, H, W] -> (logits [N, num_classes, h, w] on any grid, {level: features
            [N, C, h, w]}).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image_NCHW: Tensor, *, return_features: bool = False, full_size: bool = True):
        """Logits upsampled to the image, or (logits, features) if `return_features`.

        Args:
            image_NCHW: normalised float32 images.
            full_size: upsample the logits to the size of the image.
        """
        logits, features = self.module(image_NCHW)
        if full_size:
            logits = resize_to(logits.float(), image_NCHW.shape[-2:])
        return (logits, features) if return_features else logits

    def state_dict(self, *args: object, **options: object) -> dict:
        """The state dict of your module, without a prefix.

        Args:
            args, options: those of `torch.nn.Module.state_dict`.
        """
        return self.module.state_dict(*args, **options)

    def load_state_dict(self, state_dict: Mapping, *args: object, **options: object) -> object:
        """Load a state dict of your module, without a prefix.

        Args:
            state_dict: name of a weight -> tensor.
            args, options: as `strict`, those of `torch.nn.Module.load_state_dict`.

        Returns: the names of missing and of unexpected weights.
        """
        return self.module.load_state_dict(state_dict, *args, **options)


def build_student(
    config: StudentConfig,
    *,
    num_classes: int,
    pretrained: bool = True,
    say: Say = lambda text: None,
) -> nn.Module:
    """The student, initialised from torch's random state, on the CPU.

    Args:
        config: the section `student` of the settings.
        num_classes: channels of its logits.
        pretrained: False if weights are loaded afterwards: none are read or fetched, whatever the
            settings say.
        say: gets a line about what was taken from `student.backbone_weights`.

    Raises: SettingsError if `student.arch` cannot be imported, fails, or returns no module;
        TeacherError if its weights are out of reach, or not those of its backbone.
    """
    path = config.backbone_weights if pretrained else None
    fetched = pretrained and config.pretrained and path is None
    if config.is_own:
        return _build_own(config, num_classes=num_classes)
    student = _build_ours(config, num_classes=num_classes, fetched=fetched)
    if path is not None:
        facts = {"owner": config.arch, "field": "student.backbone_weights"}
        say(f"student from {load_backbone(student.backbone, path, **facts)}; its head is new")
    return student


def _build_ours(config: StudentConfig, *, num_classes: int, fetched: bool) -> nn.Module:
    if config.arch.startswith(TIMM):
        from kdcache.models.timm_student import build_timm_student

        return build_timm_student(config, num_classes=num_classes, pretrained=fetched)
    try:
        return LightweightSegmentationModel(
            num_classes, pretrained=fetched, aspp_channels=config.aspp_channels
        )
    except WeightsAbsentError as error:
        raise WeightsAbsentError(f"{error}; or set student.backbone_weights to a file") from None


def _build_own(config: StudentConfig, *, num_classes: int) -> nn.Module:
    module = call_function(config.arch, num_classes=num_classes, options=config.options)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise refuse_code(config.arch, "without parameters to train", "one at least")
    return OwnStudent(module)


def recall_student(facts: Mapping[str, object]) -> StudentConfig:
    """The student settings of a run, from the hyperparameters it stored.

    Args:
        facts: dotted name of a setting, as "student.arch" -> its value.

    Raises: KeyError if they are not those of a run.
    """
    arch = facts.get("student.arch", BUILT_IN_STUDENT)
    kept = {"arch": arch, "options": facts.get("student.options", {}), "pretrained": False}
    if is_own_student(arch):
        return StudentConfig(**kept)
    return StudentConfig(**kept, aspp_channels=facts["student.aspp_channels"])


def find_channels(
    student: nn.Module, levels: Iterable[str], *, arch: str, num_classes: int, hw: tuple[int, int]
) -> dict[str, int]:
    """level -> channels of the student's features, found with a forward pass of an empty image.

    A copy of your own student also gets two images in training mode.

    Args:
        levels: those that it must have.
        arch: `student.arch`, for messages.
        num_classes: channels that its logits must have.
        hw: height and width of the images in pixels.

    Raises: SettingsError if it does not return what a student must, or lacks a level.
    """
    training = student.training
    answer = _ask(student.eval(), 1, hw, arch=arch)
    student.train(training)
    _check_answer(answer, levels, arch=arch, num_classes=num_classes)
    if is_own_student(arch):
        with torch.random.fork_rng([]):
            _ask(copy.deepcopy(student).train(), 2, hw, arch=arch)
    return {level: answer[1][level].shape[1] for level in levels}


@torch.no_grad()
def _ask(student: nn.Module, count: int, hw: tuple[int, int], *, arch: str) -> tuple:
    try:
        return student(torch.zeros(count, 3, *hw), return_features=True, full_size=False)
    except (Exception, SystemExit) as error:  # whatever code of yours meets
        what = "two images in training mode," if student.training else "an image"
        found = f"failing at {what} of {hw[0]}x{hw[1]} ({one_line(error, named=True)})"
        raise refuse_code(arch, found, f"to return {RETURNS}") from None


def _check_answer(answer: tuple, levels: Iterable[str], *, arch: str, num_classes: int) -> None:
    logits, features = answer
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[:2] != (1, num_classes):
        found = f"returning logits {_shape(logits)} for one image"
        raise refuse_code(
            arch,
            found,
            f"logits [1, {num_classes}, height, width], dataset.num_classes {num_classes}",
        )
    for level in levels:
        there = features.get(level) if isinstance(features, Mapping) else None
        if not isinstance(there, Tensor) or there.ndim != 4:
            found = f"returning {_shape(there)} as features of level {level!r}"
            given = f"[{', '.join(map(str, features))}]" if isinstance(features, Mapping) else "[]"
            need = (
                f"[N, C, H, W] of each of cache.levels {list(levels)} (or set cache.levels {given})"
            )
            raise refuse_code(arch, found, need)


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        return str(list(value.shape))
    return "nothing" if value is None else f"a {type(value).__name__}"
