"""The student: MobileNetV3-Small, ASPP, two skip connections.

Letters: N batch, C channels, H, W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small
from torchvision.models.segmentation.deeplabv3 import ASPP

from kdcache.models.inputs import resize_to
from kdcache.models.weights import download_weights

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
        self.aspp = ASPP(576, ASPP_RATES, aspp_channels)
        self.skip_mid = _conv_block(STUDENT_CHANNELS["mid"], SKIP_CHANNELS, kernel=1)
        self.skip_low = _conv_block(STUDENT_CHANNELS["low"], SKIP_CHANNELS, kernel=1)
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
        features, x = {}, image_NCHW
        for index, stage in enumerate(self.backbone):
            x = stage(x)
            features.update({level: x for level, tap in TAPS.items() if tap == index})
        grid = features["low"].shape[-2:]
        parts = [self.aspp(x), self.skip_mid(features["mid"]), self.skip_low(features["low"])]
        x = self.head(torch.cat([resize_to(part, grid) for part in parts], dim=1))
        logits = self.classifier(x)
        if full_size:
            logits = resize_to(logits, image_NCHW.shape[-2:])
        return (logits, features) if return_features else logits


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters of a model, without buffers."""
    return sum(p.numel() for p in model.parameters())


def _conv_block(inputs: int, outputs: int, *, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
