"""Draws the scenes of the sample data set: textured objects under changing light.

All colours come from one distribution. Letters: H, W rows and columns; C = 3, red, green, blue;
`at_2HW` the offset (y down, x right) of each pixel from the centre of an object, in pixels. A
texture is a field in about -1..1, whose sign chooses between the two colours.
"""

from functools import partial

import numpy as np
from numpy.random import Generator

from kdcache.config import VOID

CLASS_NAMES = (
    "background",
    "horizontal",
    "vertical",
    "diagonal",
    "checker",
    "dots",
    "rings",
    "speckle",
)

_NUM_OBJECTS = (2, 5)
# Shares of the image's side: 26 to 60 px of 96, so that a small object spans 3 cells at stride 8.
_DIAMETER = (0.27, 0.62)
# At the smallest scale of the augmentation, 0.5, the shortest period is 3 px, above the Nyquist
# limit of 2 px.
_PERIOD_PX = (6.0, 10.0)
_TILT_DEG = 10.0
# Smallest difference in luma (0..255) of two paired colours: below it, lighting and noise would
# drown a pattern.
_MIN_CONTRAST = 60.0
_NOISE_STD = 6.0
_LIGHT_SWING = 0.25


def draw_scene(rng: Generator, *, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image uint8 [H, W, C] and label uint8 [H, W], both `size_px` square.

    Objects are painted from large to small, so that none is hidden by a larger one.
    """
    yx_2HW = np.mgrid[0.0:size_px, 0.0:size_px]
    image_HWC = _mix(
        *_draw_colours(rng), 0.5 + 0.5 * _speckle(yx_2HW, rng, period_px=0.5 * size_px)
    )
    label_HW = np.zeros((size_px, size_px), dtype=np.uint8)
    num = rng.integers(*_NUM_OBJECTS, endpoint=True)
    diameters_px = size_px * np.sort(rng.uniform(*_DIAMETER, size=num))[::-1]
    # Each class at most once a scene: two touching objects never merge into one region.
    class_indices = rng.permutation(np.arange(1, len(CLASS_NAMES)))[:num]
    centres_px = size_px * _draw_centres(rng, num)
    for class_index, diameter_px, centre_px in zip(
        class_indices, diameters_px, centres_px, strict=True
    ):
        at_2HW = yx_2HW - centre_px[:, None, None]
        cover_HW = _draw_cover(at_2HW, rng, radius_px=diameter_px / 2.0)
        image_HWC = _mix(
            image_HWC, _draw_paint(at_2HW, rng, class_name=CLASS_NAMES[class_index]), cover_HW
        )
        _label_object(label_HW, cover_HW > 0.5, class_index)
    return _light(image_HWC, rng), label_HW


def _draw_centres(rng: Generator, num: int) -> np.ndarray:
    """Centres [num, (y, x)] as shares of the side; of 4 candidates, the farthest from those before.

    Unconstrained centres cluster and leave many objects as slivers; with 4 candidates objects still
    overlap.
    """
    centres = rng.uniform(0.15, 0.85, size=(1, 2))
    while len(centres) < num:
        candidates = rng.uniform(0.15, 0.85, size=(4, 2))
        gaps = np.linalg.norm(candidates[:, None] - centres, axis=2).min(axis=1)
        centres = np.vstack([centres, candidates[np.argmax(gaps)]])
    return centres


def _label_object(label_HW: np.ndarray, inside_HW: np.ndarray, class_index: int) -> None:
    """In place, write the class inside and void on the 1-px ring outside, over what is hidden."""
    padded = np.pad(inside_HW, 1)
    beside_HW = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    label_HW[beside_HW] = VOID
    label_HW[inside_HW] = class_index


def _mix(low: np.ndarray, high: np.ndarray, weight_HW: np.ndarray) -> np.ndarray:
    """Per pixel, (1 - weight) of `low` and weight of `high`: colours [C] or images; [H, W, C]."""
    return low + (high - low) * weight_HW[..., None]


def _draw_colours(rng: Generator) -> np.ndarray:
    """Two colours, [2, C] in 20..235, the first of 32 drawn pairs with enough contrast.

    Which of the two comes first is random, so figure and ground of a pattern share one
    distribution.
    """
    pairs = rng.uniform(20.0, 235.0, size=(32, 2, 3))
    luma = pairs @ np.array([0.299, 0.587, 0.114])
    return pairs[np.argmax(np.abs(luma[:, 0] - luma[:, 1]) >= _MIN_CONTRAST)]


def _light(image_HWC: np.ndarray, rng: Generator) -> np.ndarray:
    """Add a linear lighting gradient in a random direction and sensor noise; uint8 [H, W, C]."""
    slope = np.linspace(-1.0, 1.0, len(image_HWC)) * _LIGHT_SWING / np.sqrt(2.0)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    light_HW = 1.0 + np.sin(angle) * slope[:, None] + np.cos(angle) * slope
    noisy_HWC = image_HWC * light_HW[..., None] + rng.normal(0.0, _NOISE_STD, size=image_HWC.shape)
    return np.clip(np.round(noisy_HWC), 0, 255).astype(np.uint8)


# Outlines: discs, polygons and flowers, whatever the class


def _draw_cover(at_2HW: np.ndarray, rng: Generator, *, radius_px: float) -> np.ndarray:
    """The coverage of each pixel by a rotated, stretched outline: [H, W], 0..1, 1-px soft edge."""
    turn, stretch = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.8, 1.25)
    u_HW = (np.cos(turn) * at_2HW[1] + np.sin(turn) * at_2HW[0]) / (radius_px * stretch)
    v_HW = (np.cos(turn) * at_2HW[0] - np.sin(turn) * at_2HW[1]) / (radius_px / stretch)
    outline = (_disc, _polygon, _flower)[rng.integers(3)]
    return np.clip(0.5 + radius_px * (1.0 - outline(u_HW, v_HW, rng)), 0.0, 1.0)


def _disc(u_HW: np.ndarray, v_HW: np.ndarray, rng: Generator) -> np.ndarray:
    """Below 1 inside the unit disc."""
    return np.hypot(u_HW, v_HW)


def _polygon(u_HW: np.ndarray, v_HW: np.ndarray, rng: Generator) -> np.ndarray:
    """Below 1 inside a regular polygon of 3 to 6 corners with the unit disc's area."""
    num_corners = rng.integers(3, 7)
    angles = 2.0 * np.pi * np.arange(num_corners) / num_corners
    apothem = np.sqrt(np.pi / (num_corners * np.tan(np.pi / num_corners)))
    return np.max([np.cos(a) * u_HW + np.sin(a) * v_HW for a in angles], axis=0) / apothem


def _flower(u_HW: np.ndarray, v_HW: np.ndarray, rng: Generator) -> np.ndarray:
    """Below 1 inside a disc whose rim waves in 3 to 5 petals."""
    petals_HW = np.cos(rng.integers(3, 6) * np.arctan2(v_HW, u_HW))
    return np.hypot(u_HW, v_HW) / (1.0 + rng.uniform(0.15, 0.25) * petals_HW)


# Textures


def _draw_paint(at_2HW: np.ndarray, rng: Generator, *, class_name: str) -> np.ndarray:
    """The class's pattern in two random colours over the whole image, [H, W, C]."""
    period_px = rng.uniform(*_PERIOD_PX)
    field_HW = _TEXTURES[class_name](at_2HW, rng, period_px=period_px)
    # The slope of a cosine at its zero is 2 pi / period per px: with this gain the edge between the
    # colours is 1.5 px wide.
    return _mix(*_draw_colours(rng), np.clip(0.5 + field_HW * period_px / 9.0, 0.0, 1.0))


def _wave(along_px: np.ndarray, rng: Generator, *, period_px: float) -> np.ndarray:
    """A cosine of a distance in pixels, from a random phase."""
    return np.cos(2.0 * np.pi * along_px / period_px + rng.uniform(0.0, 2.0 * np.pi))


def _project(at_2HW: np.ndarray, angle_deg: float) -> np.ndarray:
    """Distance along a direction, HW in pixels; 0 degrees is x, 90 is y."""
    return np.cos(np.deg2rad(angle_deg)) * at_2HW[1] + np.sin(np.deg2rad(angle_deg)) * at_2HW[0]


def _stripes(
    at_2HW: np.ndarray, rng: Generator, *, period_px: float, angle_deg: float
) -> np.ndarray:
    """Stripes across `angle_deg`, or its mirror image, tilted by up to 10 degrees."""
    angle_deg = angle_deg * rng.choice((-1.0, 1.0)) + rng.uniform(-_TILT_DEG, _TILT_DEG)
    return _wave(_project(at_2HW, angle_deg), rng, period_px=period_px)


def _checker(at_2HW: np.ndarray, rng: Generator, *, period_px: float) -> np.ndarray:
    """Squares at any angle; with 1.4 times the period, their diagonals have that of stripes."""
    angle_deg = rng.uniform(0.0, 90.0)
    first_HW = _wave(_project(at_2HW, angle_deg), rng, period_px=1.4 * period_px)
    return (
        1.5 * first_HW * _wave(_project(at_2HW, angle_deg + 90.0), rng, period_px=1.4 * period_px)
    )


def _dots(at_2HW: np.ndarray, rng: Generator, *, period_px: float) -> np.ndarray:
    """Round dots on a square lattice at any angle, a quarter of the area."""
    angle_deg = rng.uniform(0.0, 90.0)
    first_HW = _wave(_project(at_2HW, angle_deg), rng, period_px=period_px)
    return first_HW + _wave(_project(at_2HW, angle_deg + 90.0), rng, period_px=period_px) - 0.8


def _rings(at_2HW: np.ndarray, rng: Generator, *, period_px: float) -> np.ndarray:
    """Concentric rings around a point within 4 px of the object's centre in y and in x."""
    off_2HW = at_2HW - rng.uniform(-4.0, 4.0, size=(2, 1, 1))
    return _wave(np.hypot(*off_2HW), rng, period_px=period_px)


def _speckle(at_2HW: np.ndarray, rng: Generator, *, period_px: float) -> np.ndarray:
    """Irregular blots: white noise in a band around one spatial frequency, clipped to -1..1."""
    size_px = at_2HW.shape[-1]
    axis = np.fft.fftfreq(size_px)
    band_HW = np.exp(-4.0 * (np.hypot(axis[:, None], axis) * period_px - 1.0) ** 2)
    field_HW = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size_px, size_px))) * band_HW).real
    return np.clip(field_HW / (1.5 * field_HW.std()), -1.0, 1.0)


_TEXTURES = {
    "horizontal": partial(_stripes, angle_deg=90.0),
    "vertical": partial(_stripes, angle_deg=0.0),
    "diagonal": partial(_stripes, angle_deg=45.0),
    "checker": _checker,
    "dots": _dots,
    "rings": _rings,
    "speckle": _speckle,
}
