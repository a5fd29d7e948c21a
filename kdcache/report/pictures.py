"""Arrays as small pictures in a page: photographs, class maps, maps of errors, heat maps.

Letters: H height, W width.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from kdcache.data.pictures import voc_palette
from kdcache.metrics import VOID

LONGEST_PX = 320  # a column of the page is 220 px wide
# A photograph of CamVid at 320 px takes 8 kB as WebP, 14 kB as JPEG of the same error (38 dB),
# 98 kB as lossless PNG.
WEBP_QUALITY = 80
DARK_VOID = VOID - 1  # no class has this number: dataset.num_classes ends at 254
VOID_GREYS = {VOID: (176, 176, 176), DARK_VOID: (120, 120, 120)}
RIGHT, WRONG = 0, 1
ERROR_COLOURS = ((236, 236, 232), (200, 30, 60), VOID_GREYS[VOID], VOID_GREYS[DARK_VOID])
# Points of the colour map "magma" from 0 to the largest value. Their lightness rises, so that they
# can be told apart printed in grey and by the colour-blind.
HEAT_POINTS = (
    (0, 0, 4),
    (59, 15, 112),
    (140, 41, 129),
    (222, 73, 104),
    (254, 159, 109),
    (252, 253, 191),
)
NUM_HEATS = 64


def photo_uri(image_HW3: np.ndarray, *, longest_px: int = LONGEST_PX) -> str:
    """A uint8 RGB image as the data URI of a WebP, averaged down to `longest_px` if larger."""
    small = Image.fromarray(shrink_photo(image_HW3, longest_px))
    return _as_uri(small, "WEBP", quality=WEBP_QUALITY)


def class_map_uri(classes_HW: np.ndarray, *, longest_px: int = LONGEST_PX) -> str:
    """A uint8 class map as the data URI of a palette PNG in VOC's colours, VOID hatched in greys.

    The pixel values are the class numbers; of hatched pixels VOID and DARK_VOID. A map larger than
    `longest_px` is thinned out by nearest neighbour, so that every colour remains a class.
    """
    thinned = thin_classes(classes_HW, longest_px)
    colours = voc_palette()
    for number, grey in VOID_GREYS.items():
        colours[number] = grey
    return _as_png(np.where(_hatch(thinned), np.uint8(DARK_VOID), thinned), colours)


def error_map_uri(
    classes_HW: np.ndarray, label_HW: np.ndarray, *, longest_px: int = LONGEST_PX
) -> str:
    """Pixels whose class is not the label's, as the data URI of a palette PNG.

    Both maps are uint8. Pixel values: RIGHT, WRONG, 2 and 3 for hatched VOID of the label.
    """
    classes, label = thin_classes(classes_HW, longest_px), thin_classes(label_HW, longest_px)
    errors = np.where(label == VOID, 2 + _hatch(label), classes != label).astype(np.uint8)
    return _as_png(errors, np.array(ERROR_COLOURS, np.uint8))


def heat_map_uri(values_HW: np.ndarray, *, most: float) -> str:
    """A heat map as the data URI of a palette PNG.

    Values from 0 to `most` become pixel values from 0 to NUM_HEATS - 1; larger ones are cut off.
    """
    numbers = np.rint(np.clip(values_HW / most, 0, 1) * (NUM_HEATS - 1))
    return _as_png(numbers.astype(np.uint8), heat_colours())


def heat_colours() -> np.ndarray:
    """The colours of a heat map, uint8 [NUM_HEATS, 3], evenly spaced between HEAT_POINTS."""
    places = np.linspace(0, len(HEAT_POINTS) - 1, NUM_HEATS)
    channels = [
        np.interp(places, range(len(HEAT_POINTS)), channel)
        for channel in zip(*HEAT_POINTS, strict=True)
    ]
    return np.rint(np.stack(channels, 1)).astype(np.uint8)


def shrink_photo(image_HW3: np.ndarray, longest_px: int = LONGEST_PX) -> np.ndarray:
    """The image averaged down to `longest_px`."""
    return np.asarray(_shrink(Image.fromarray(image_HW3), longest_px, Image.Resampling.BOX))


def shrink_map(values_HW: np.ndarray, longest_px: int = LONGEST_PX) -> np.ndarray:
    """float32 values averaged down to `longest_px`."""
    return np.asarray(_shrink(Image.fromarray(values_HW), longest_px, Image.Resampling.BOX))


def thin_classes(classes_HW: np.ndarray, longest_px: int = LONGEST_PX) -> np.ndarray:
    """The class map thinned out to `longest_px`."""
    return np.asarray(_shrink(Image.fromarray(classes_HW), longest_px, Image.Resampling.NEAREST))


def _hatch(classes_HW: np.ndarray) -> np.ndarray:
    """Dark diagonal stripes of VOID, bool [H, W]: no class looks so, even printed in grey."""
    stripe_px = max(2, max(classes_HW.shape) // 50)
    down, right = np.indices(classes_HW.shape)
    return (classes_HW == VOID) & ((down + right) // stripe_px % 2 == 0)


def _shrink(picture: Image.Image, longest_px: int, resampling: Image.Resampling) -> Image.Image:
    share = longest_px / max(picture.size)
    if share >= 1:
        return picture
    return picture.resize(tuple(max(1, round(px * share)) for px in picture.size), resampling)


def _as_png(numbers_HW: np.ndarray, colours_N3: np.ndarray) -> str:
    picture = Image.fromarray(numbers_HW)
    picture.putpalette(colours_N3.tobytes())
    # optimize=True takes 30 times as long on noise of two classes, for 3 % fewer bytes
    return _as_uri(picture, "PNG")


def _as_uri(picture: Image.Image, kind: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()
