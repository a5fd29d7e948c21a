"""What teacher and student share: normalised images, and one way to align grids.

Letters: N batch, H height, W width, C channels.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.config.names import IMAGENET_MEAN as IMAGENET_MEAN
from kdcache.config.names import IMAGENET_STD as IMAGENET_STD


def normalize_images(
    image_NHWC: Tensor,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Tensor:
    """Normalise images.

    Args:
        image_NHWC: uint8 RGB.
        mean, std: of RGB from 0 to 1; ImageNet's if they are not given.

    Returns: float32 [N, 3, H, W] in channels_last memory.
    """
    mean_C, std_C = _mean_and_std(image_NHWC.device, mean, std)
    return ((image_NHWC.float() - mean_C) / std_C).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _mean_and_std(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """On the scale 0..255; cached, since a copy to a GPU waits for all work queued there."""
    with torch.inference_mode(False):
        mean_C, std_C = ((torch.tensor(values) * 255).to(device) for values in (mean, std))
        return mean_C, std_C


def resize_to(x_NCHW: Tensor, hw: Sequence[int]) -> Tensor:
    """Bilinear, align_corners off: the one alignment that teacher, cache and loss share.

    In half precision neighbouring classes tie, and on a GPU the backward pass adds up in the
    tensor's own type: what is compared or trained is float32 before it comes here.
    """
    if x_NCHW.shape[-2:] == tuple(hw):
        return x_NCHW
    return F.interpolate(x_NCHW, size=tuple(hw), mode="bilinear", align_corners=False)
