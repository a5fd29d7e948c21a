"""Arrays as small PNGs inside a page: photographs, and class maps in VOC's colours.

Letters: H height, W width.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from kdcache.data.palette import voc_palette
from kdcache.metrics import VOID

# Six panels of pure noise, four maps each, stay below 4.5 MB as base64; a column of the page is 220 px wide.
LONGEST_PX = 320
DARK_VOID = VOID - 1  # no class has this number: dataset.num_classes ends at 254
VOID_GREYS = {VOID: (176, 176, 176), DARK_VOID: (120, 120, 120)}


def css_colour(class_number: int) -> str:
    """#rrggbb of a class."""
    return "#" + voc_palette()[class_number].tobytes().hex()


def photo_uri(image_HW3: np.ndarray) -> str:
    """A uint8 RGB image as a data URI; larger than LONGEST_PX, it is averaged down."""
    return _as_uri(_shrink(Image.fromarray(image_HW3), Image.Resampling.BOX))


def class_map_uri(classes_HW: np.ndarray) -> str:
    """uint8 class numbers as a data URI of a palette PNG whose pixel values they are; VOID hatched in greys.

    Larger than LONGEST_PX, it is thinned out by nearest neighbour, so that every colour remains a class.
    """
    thinned = np.asarray(_shrink(Image.fromarray(classes_HW), Image.Resampling.NEAREST))
    picture = Image.fromarray(_hatch_void(thinned))
    colours = voc_palette()
    for number, grey in VOID_GREYS.items():
        colours[number] = grey
    picture.putpalette(colours.tobytes())
    return _as_uri(picture)


def _hatch_void(classes_HW: np.ndarray) -> np.ndarray:
    """Diagonal stripes where nothing is labelled: no class looks so, on a screen or printed in grey."""
    stripe_px = max(2, max(classes_HW.shape) // 50)
    down, right = np.indices(classes_HW.shape)
    dark = (down + right) // stripe_px % 2 == 0
    return np.where((classes_HW == VOID) & dark, np.uint8(DARK_VOID), classes_HW)


def _shrink(picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
    share = LONGEST_PX / max(picture.size)
    if share >= 1:
        return picture
    return picture.resize(tuple(max(1, round(px * share)) for px in picture.size), resampling)


def _as_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
