"""Training views that can be drawn again from (seed, sample id, view) alone.

`draw` gives the parameters of a view, `apply` is a pure function of them. The parameters come from
a counter-based generator, Philox, with a hash of seed and sample id as its key and the view as its
counter. Only raw 64-bit words are used, which NumPy keeps the same between versions.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageEnhance

from kdcache.config import VOID, AugmentConfig

MEAN_RGB = (124, 116, 104)  # ImageNet mean in 0..255: the padding a network sees as (almost) zero
# Names the way this file draws and applies views; a change that moves one pixel gets a new name.
# It is in the seed of the draw, so that a new name draws every view anew.
SCHEME = "philox-1"


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """One view of one image: resize to `resized_hw`, crop, jitter, flip, pad to `size_hw`.

    All geometry is in integer pixels; `crop_tl` is the crop's top left corner on the resized image.
    """

    resized_hw: tuple[int, int]
    crop_tl: tuple[int, int]
    size_hw: tuple[int, int]
    flip: bool
    brightness: float
    contrast: float
    saturation: float

    @property
    def image_box(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right of the image inside the view; what lies outside is padding."""
        height = min(self.size_hw[0], self.resized_hw[0])
        width = min(self.size_hw[1], self.resized_hw[1])
        return (0, 0, height, width)

    def to_dict(self) -> dict:
        """Plain values for a commit record."""
        return asdict(self)


def draw(
    config: AugmentConfig,
    *,
    sample_id: str,
    view: int,
    image_hw: tuple[int, int],
    size_hw: tuple[int, int],
):
    """Draw the parameters of one view.

    Args:
        config: ranges and seed.
        sample_id, view: which view of which sample, view >= 0.
        image_hw: size of the original image in pixels.
        size_hw: size of the view in pixels.

    Returns: `ViewParameters`; equal arguments give equal parameters, on any machine, in any order.
    """
    scale_u, top_u, left_u, flip_u, *jitter_u = _uniforms(config.seed, sample_id, view, count=7)
    scale = config.scale_min + (config.scale_max - config.scale_min) * scale_u
    resized_hw = tuple(max(1, round(px * scale)) for px in image_hw)
    spare = [max(0, resized - size) for resized, size in zip(resized_hw, size_hw, strict=True)]
    brightness, contrast, saturation = (1 + config.color_jitter * (2 * u - 1) for u in jitter_u)
    return ViewParameters(
        resized_hw=resized_hw,
        crop_tl=(int(top_u * (spare[0] + 1)), int(left_u * (spare[1] + 1))),
        size_hw=tuple(size_hw),
        flip=flip_u < config.flip,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
    )


def apply(
    view: ViewParameters, image_HWC: np.ndarray, label_HW: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """One view of a sample: image resized bilinearly (antialiased), label by nearest neighbour.

    Both are padded at right and bottom.

    Args:
        view: parameters from `draw`.
        image_HWC: uint8 RGB. label_HW: uint8, VOID kept; None: the image has no label.

    Returns: image uint8 [*size_hw, 3], padded with the mean colour, and label uint8 `size_hw`,
        padded with VOID, or None.
    """
    image = _apply_to_image(view, image_HWC)
    label = None if label_HW is None else _apply_to_label(view, label_HW)
    return image, label


def _apply_to_image(view: ViewParameters, image_HWC: np.ndarray) -> np.ndarray:
    image = _resize_crop(Image.fromarray(image_HWC), view, Image.Resampling.BILINEAR)
    image = ImageEnhance.Brightness(image).enhance(view.brightness)
    image = ImageEnhance.Contrast(image).enhance(view.contrast)
    image = ImageEnhance.Color(image).enhance(view.saturation)
    return _pad_image(_flip(image, view), size_hw=view.size_hw)


def _apply_to_label(view: ViewParameters, label_HW: np.ndarray) -> np.ndarray:
    label = _resize_crop(Image.fromarray(label_HW), view, Image.Resampling.NEAREST)
    return _pad_label(_flip(label, view), size_hw=view.size_hw)


def _flip(picture: Image.Image, view: ViewParameters) -> np.ndarray:
    flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else picture
    return np.asarray(flipped)


def fit_inside(image_HWC: np.ndarray, label_HW: np.ndarray, *, size_hw: tuple[int, int]):
    """A validation sample: padded, never resampled unless larger than `size_hw`.

    Returns: image, label, and the (height, width) of the image inside them, smaller than before if
        it had to shrink.
    """
    height, width = _shrink(label_HW.shape, size_hw)
    if (height, width) != label_HW.shape:
        image_HWC = np.asarray(
            Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR)
        )
        label_HW = np.asarray(
            Image.fromarray(label_HW).resize((width, height), Image.Resampling.NEAREST)
        )
    return *pad(image_HWC, label_HW, size_hw=size_hw), label_HW.shape


def pad(
    image_HWC: np.ndarray, label_HW: np.ndarray, *, size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pad at right and bottom to `size_hw`: the mean colour in the image, VOID in the label."""
    return _pad_image(image_HWC, size_hw=size_hw), _pad_label(label_HW, size_hw=size_hw)


def _pad_image(image_HWC: np.ndarray, *, size_hw: tuple[int, int]) -> np.ndarray:
    height, width, _ = image_HWC.shape
    image = np.empty((*size_hw, 3), np.uint8)
    image[:] = MEAN_RGB
    image[:height, :width] = image_HWC
    return image


def _pad_label(label_HW: np.ndarray, *, size_hw: tuple[int, int]) -> np.ndarray:
    height, width = label_HW.shape
    label = np.full(size_hw, VOID, np.uint8)
    label[:height, :width] = label_HW
    return label


def _shrink(hw: tuple[int, int], size_hw: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) of the same aspect ratio that fits.

    In whole numbers: a float factor would lose pixels to rounding.
    """
    (height, width), (most_h, most_w) = hw, size_hw
    if height <= most_h and width <= most_w:
        return height, width
    if height * most_w <= width * most_h:
        return max(1, height * most_w // width), most_w
    return most_h, max(1, width * most_h // height)


def _resize_crop(
    picture: Image.Image, view: ViewParameters, resampling: Image.Resampling
) -> Image.Image:
    resized = picture.resize(view.resized_hw[::-1], resampling)
    top, left = view.crop_tl
    _, _, height, width = view.image_box
    return resized.crop((left, top, left + width, top + height))


def _uniforms(seed: int, sample_id: str, view: int, *, count: int) -> list[float]:
    """`count` numbers in [0, 1) with 53 random bits each."""
    digest = hashlib.blake2b(f"{SCHEME}/{seed}/{sample_id}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, "<u8")
    raw = np.random.Philox(key=key, counter=[0, 0, 0, view]).random_raw(count)
    return [int(word >> np.uint64(11)) * 2.0**-53 for word in raw]
