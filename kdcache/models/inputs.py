"""What teacher and student share: normalised images, and one way to align grids.

Letters: N batch, H height, W width, C channels.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_images(image_NHWC: Tensor) -> Tensor:
    """Normalise images with ImageNet's mean and standard deviation.

    Args:
        image_NHWC: uint8 RGB.

    Returns: float32 [N, 3, H, W] in channels_last memory.
    """
    mean, std = _mean_and_std(image_NHWC.device)
    return ((image_NHWC.float() - mean) / std).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """On the scale 0..255; cached, since a copy to a GPU waits for all work queued there."""
    with torch.inference_mode(False):
        return tuple(
            (torch.tensor(values) * 255).to(device) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )


def resize_to(x_NCHW: Tensor, hw: tuple[int, int]) -> Tensor:
    """Bilinear, align_corners off: the one alignment that teacher, cache and loss share."""
    if x_NCHW.shape[-2:] == tuple(hw):
        return x_NCHW
    return F.interpolate(x_NCHW, size=hw, mode="bilinear", align_corners=False)
