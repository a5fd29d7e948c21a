"""A student over a backbone of timm: the built-in student's head on its stages.

Letters: N batch, C channels, H, W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcache.config import StudentConfig
from kdcache.models.adapters import LOADING, check_installed, check_options, explain
from kdcache.models.own_code import STUDENT, refuse_code
from kdcache.models.student import LightweightSegmentationModel

STRIDES = {"low": 4, "mid": 8, "high": 16}
PX = 64  # of a small image
EXPECTED = "a model of timm with features_only"


class TimmSegmentationModel(LightweightSegmentationModel):
    """ASPP on the stage at stride 16, skips from those at 4 and 8, of any backbone.

    Args:
        backbone: gives [N, C, h, w] at strides 4, 8 and 16.
        channels: low, mid and high -> C.
        num_classes: channels of the logits.
        aspp_channels: channels of each ASPP branch.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        channels: dict[str, int],
        num_classes: int,
        aspp_channels: int,
    ) -> None:
        nn.Module.__init__(self)
        self.backbone = backbone
        self._make_head({**channels, "deep": channels["high"]}, num_classes, aspp_channels)

    def _run_backbone(self, image_NCHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features by level, and those of high, which ASPP sees."""
        features = dict(zip(STRIDES, self.backbone(image_NCHW), strict=True))
        return features, features["high"]


def build_timm_student(
    config: StudentConfig, *, num_classes: int, pretrained: bool
) -> TimmSegmentationModel:
    """The student that `timm:NAME` names.

    Raises: SettingsError if timm is missing, has no such backbone or option, or gives no stages at
        strides 4, 8 and 16.
    """
    check_installed("timm", config.arch, field=STUDENT)
    import timm

    expected = "none: weights are student.pretrained"
    check_options(config.arch, config.options, LOADING, expected=expected, field=STUDENT)
    stages, kind = _find_stages(config), EXPECTED
    if pretrained:  # the network itself was just built: it is the weights that are out of reach
        kind = "its weights within reach, a file in student.backbone_weights, or none "
        kind += "(student.pretrained false)"
    # also where a student is only asked, and its caller wants no gradients
    with explain(config.arch, kind, field=STUDENT), torch.inference_mode(False):
        backbone = timm.create_model(
            config.arch.partition(":")[2],
            features_only=True,
            out_indices=tuple(stages.values()),  # what lies behind is left out
            pretrained=pretrained,
            **config.options,
        )
        _freeze_unused(backbone)
    return TimmSegmentationModel(
        backbone,
        channels=dict(zip(stages, backbone.feature_info.channels(), strict=True)),
        num_classes=num_classes,
        aspp_channels=config.aspp_channels,
    )


@torch.enable_grad()
def _freeze_unused(backbone: nn.Module) -> None:
    """Freeze weights behind the stages, which some backbones keep: no gradient would reach them."""
    weights, training = list(backbone.parameters()), backbone.training
    values = torch.stack([x.sum() for x in backbone.eval()(torch.zeros(1, 3, PX, PX))]).sum()
    grads = torch.autograd.grad(values, weights, allow_unused=True)
    backbone.train(training)
    for weight, grad in zip(weights, grads, strict=True):
        weight.requires_grad_(grad is not None)


def _find_stages(config: StudentConfig) -> dict[str, int]:
    """Level -> number of the stage: of several at one stride the last. Raises SettingsError."""
    import timm

    with explain(config.arch, EXPECTED, field=STUDENT):
        name = config.arch.partition(":")[2]
        whole = timm.create_model(name, features_only=True, pretrained=False, **config.options)
        strides = whole.feature_info.reduction()
    if not set(STRIDES.values()) <= set(strides):
        expected = "stages at strides 4, 8 and 16"
        raise refuse_code(config.arch, f"giving stages at {strides}", expected, field=STUDENT)
    last = {stride: number for number, stride in enumerate(strides)}
    return {level: last[stride] for level, stride in STRIDES.items()}
