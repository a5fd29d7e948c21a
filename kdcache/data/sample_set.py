"""The embedded sample data set: generated scenes in the VOC layout, for a first run without network or GPU.

A scene is a cloudy background under two to five textured objects that may hide parts of each other. Each
object, and the background, takes two colours from one distribution, so a pixel's colour tells no class; outline,
size and texture period are drawn alike for all classes too. Only the pattern tells them apart, and it keeps its
name under training's augmentations: a horizontal flip turns '/' into '\\', so one class, `diagonal`, holds both;
rescaling changes a period, so no class has a period of its own.

Letters: H, W rows and columns; C = 3, red, green, blue; `at_2HW` a pixel's (y down, x right) from an object's
centre, in pixels. A texture is a field in about -1..1, whose sign chooses between the two colours.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

CLASS_NAMES = ("background", "horizontal", "vertical", "diagonal", "checker", "dots", "rings", "speckle")
VOID = 255

_SPLIT_CODES = {"train": 0, "val": 1}
_JPEG_QUALITY = 92
_MIN_SIZE_PX = 48
_NUM_OBJECTS = (2, 5)
# Shares of the image's side: 26 to 60 px of 96, so that even a small object spans three cells at stride 8.
_DIAMETER = (0.27, 0.62)
# At the augmentation's least scale, 0.5, the shortest period is 3 px: still above the 2 px sampling carries.
_PERIOD_PX = (6.0, 10.0)
_TILT_DEG = 10.0
# Least distance of two paired colours in luma, of 255: below it lighting and noise would drown a pattern.
_MIN_CONTRAST = 60.0
_NOISE_STD = 6.0
_LIGHT_SWING = 0.25


def write_sample_set(root: Path, *, num_train: int = 320, num_val: int = 80, size_px: int = 96, seed: int = 0) -> None:
    """Write the set under `root` as VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}.

    Every image is a pure function of (seed, split, index, size_px): writing again changes nothing, a longer
    set begins with the shorter one. Files of other names stay. The lists come last: a write cut short in a fresh
    folder leaves no list that names a missing file.

    Args:
        root: the folder that holds VOCdevkit; made where missing.
        num_train, num_val: images per split, >= 1.
        size_px: side of the square images, >= 48; below that the texture periods outgrow the objects.
        seed: 0 to 2**64 - 1.

    Raises: ValueError if an argument is out of range, or if `root` holds the lists of another data set.
    """
    voc = root / "VOCdevkit" / "VOC2012"
    _check_arguments(num_train=num_train, num_val=num_val, size_px=size_px, seed=seed)
    _check_lists_are_ours(voc / "ImageSets" / "Segmentation")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    nums = {"train": num_train, "val": num_val}
    ids = {split: [f"sample_{split}_{index:04d}" for index in range(num)] for split, num in nums.items()}
    for split in ids:
        for index, sample_id in enumerate(ids[split]):
            _write_sample(voc, sample_id, *_draw_scene(_build_generator(seed, split, index), size_px=size_px))
    for split in ids:
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids[split]) + "\n")


def _check_arguments(*, num_train: int, num_val: int, size_px: int, seed: int) -> None:
    """Raise ValueError for the first argument out of range."""
    least_of = {"num_train": (num_train, 1), "num_val": (num_val, 1), "size_px": (size_px, _MIN_SIZE_PX)}
    for name, (found, least) in least_of.items():
        if found < least:
            raise ValueError(f"sample set: {name} is {found!r}, expected {least} or more; raise it")
    if not 0 <= seed < 2**64:
        raise ValueError(f"sample set: seed is {seed!r}, expected 0 to 2**64 - 1; choose another")


def _check_lists_are_ours(folder: Path) -> None:
    """Raise ValueError before overwriting a list that is not a sample set's, such as the real VOC's."""
    for path in filter(Path.exists, (folder / f"{split}.txt" for split in _SPLIT_CODES)):
        foreign = [i for i in path.read_text().split() if not re.fullmatch(r"sample_(train|val)_\d+", i)]
        if foreign:
            raise ValueError(f"{path}: first id is {foreign[0]!r}, expected 'sample_...'; choose another root")


def _build_generator(seed: int, split: str, index: int) -> Generator:
    """One Philox stream per (seed, split, index): no image depends on how many came before it."""
    key = np.array([seed, _SPLIT_CODES[split] << 32 | index], dtype=np.uint64)
    return Generator(np.random.Philox(key=key))


def _write_sample(voc: Path, sample_id: str, image_HWC: np.ndarray, label_HW: np.ndarray) -> None:
    """Write uint8 image and uint8 label; without chroma subsampling, which would grey the finer patterns."""
    image_path = voc / "JPEGImages" / f"{sample_id}.jpg"
    Image.fromarray(image_HWC).save(image_path, quality=_JPEG_QUALITY, subsampling=0)
    label = Image.fromarray(label_HW)
    label.putpalette(_voc_palette())
    label.save(voc / "SegmentationClass" / f"{sample_id}.png")


def _voc_palette() -> bytes:
    """The VOC colour map, 256 x RGB: an index's bits, dealt in turn to R, G, B, fill each from the top."""
    index = np.arange(256)
    shades = [sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)]
    return np.stack(shades, axis=1).astype(np.uint8).tobytes()


# Scenes


def _draw_scene(rng: Generator, *, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 HWC and label uint8 HW; painted from large to small, so none is hidden by a larger one."""
    yx_2HW = np.mgrid[0.0:size_px, 0.0:size_px]
    image_HWC = _mix(*_draw_colours(rng), 0.5 + 0.5 * _speckle(yx_2HW, rng, period_px=0.5 * size_px))
    label_HW = np.zeros((size_px, size_px), dtype=np.uint8)
    num = rng.integers(*_NUM_OBJECTS, endpoint=True)
    diameters_px = size_px * np.sort(rng.uniform(*_DIAMETER, size=num))[::-1]
    # Each class at most once a scene: two touching objects never merge into one region.
    class_indices = rng.permutation(np.arange(1, len(CLASS_NAMES)))[:num]
    centres_px = size_px * _draw_centres(rng, num)
    for class_index, diameter_px, centre_px in zip(class_indices, diameters_px, centres_px, strict=True):
        at_2HW = yx_2HW - centre_px[:, None, None]
        cover_HW = _draw_cover(at_2HW, rng, radius_px=diameter_px / 2.0)
        image_HWC = _mix(image_HWC, _draw_paint(at_2HW, rng, class_name=CLASS_NAMES[class_index]), cover_HW)
        _label_object(label_HW, cover_HW > 0.5, class_index)
    return _light(image_HWC, rng), label_HW


def _draw_centres(rng: Generator, num: int) -> np.ndarray:
    """Centres [num, (y, x)] as shares of the side; of 4 candidates, the farthest from those before.

    Wholly free centres heap up and leave many objects as slivers; 4 candidates still let objects overlap.
    """
    centres = rng.uniform(0.15, 0.85, size=(1, 2))
    while len(centres) < num:
        candidates = rng.uniform(0.15, 0.85, size=(4, 2))
        gaps = np.linalg.norm(candidates[:, None] - centres, axis=2).min(axis=1)
        centres = np.vstack([centres, candidates[np.argmax(gaps)]])
    return centres


def _label_object(label_HW: np.ndarray, inside_HW: np.ndarray, class_index: int) -> None:
    """Write the class inside and void on the 1-px ring just outside, over whatever is hidden; in place."""
    padded = np.pad(inside_HW, 1)
    beside_HW = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    label_HW[beside_HW] = VOID
    label_HW[inside_HW] = class_index


def _mix(low: np.ndarray, high: np.ndarray, weight_HW: np.ndarray) -> np.ndarray:
    """Per pixel, (1 - weight) of the first colour (C) or image (HWC) and weight of the second; HWC."""
    return low + (high - low) * weight_HW[..., None]


def _draw_colours(rng: Generator) -> np.ndarray:
    """Two colours, [2, C] in 20..235, the first of 32 drawn pairs with enough contrast.

    Which of the two comes first is chance, so figure and ground of a pattern share one distribution.
    """
    pairs = rng.uniform(20.0, 235.0, size=(32, 2, 3))
    luma = pairs @ np.array([0.299, 0.587, 0.114])
    return pairs[np.argmax(np.abs(luma[:, 0] - luma[:, 1]) >= _MIN_CONTRAST)]


def _light(image_HWC: np.ndarray, rng: Generator) -> np.ndarray:
    """A linear lighting gradient in a random direction and sensor noise over the whole scene; uint8 HWC."""
    slope = np.linspace(-1.0, 1.0, len(image_HWC)) * _LIGHT_SWING / np.sqrt(2.0)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    light_HW = 1.0 + np.sin(angle) * slope[:, None] + np.cos(angle) * slope
    noisy_HWC = image_HWC * light_HW[..., None] + rng.normal(0.0, _NOISE_STD, size=image_HWC.shape)
    return np.clip(np.round(noisy_HWC), 0, 255).astype(np.uint8)


# Outlines: discs, polygons and flowers, whatever the class


def _draw_cover(at_2HW: np.ndarray, rng: Generator, *, radius_px: float) -> np.ndarray:
    """How much of each pixel a turned and stretched outline covers: HW, 0..1, with a 1-px soft edge."""
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
    """The class's pattern in two drawn colours over the whole image, HWC; the object's cover cuts it out."""
    period_px = rng.uniform(*_PERIOD_PX)
    field_HW = _TEXTURES[class_name](at_2HW, rng, period_px=period_px)
    # A cosine's slope at its zero is 2 pi / period per px: this gain makes the colours' seam 1.5 px wide.
    return _mix(*_draw_colours(rng), np.clip(0.5 + field_HW * period_px / 9.0, 0.0, 1.0))


def _wave(along_px: np.ndarray, rng: Generator, *, period_px: float) -> np.ndarray:
    """A cosine of a distance in pixels, from a random phase."""
    return np.cos(2.0 * np.pi * along_px / period_px + rng.uniform(0.0, 2.0 * np.pi))


def _project(at_2HW: np.ndarray, angle_deg: float) -> np.ndarray:
    """Distance along a direction, HW in pixels; 0 degrees is x, 90 is y."""
    return np.cos(np.deg2rad(angle_deg)) * at_2HW[1] + np.sin(np.deg2rad(angle_deg)) * at_2HW[0]


def _stripes(at_2HW: np.ndarray, rng: Generator, *, period_px: float, angle_deg: float) -> np.ndarray:
    """Stripes across `angle_deg`, or its mirror image, tilted by up to 10 degrees."""
    angle_deg = angle_deg * rng.choice((-1.0, 1.0)) + rng.uniform(-_TILT_DEG, _TILT_DEG)
    return _wave(_project(at_2HW, angle_deg), rng, period_px=period_px)


def _checker(at_2HW: np.ndarray, rng: Generator, *, period_px: float) -> np.ndarray:
    """Squares at any angle; 1.4 times the period brings their diagonal rows to the stripes' period."""
    angle_deg = rng.uniform(0.0, 90.0)
    first_HW = _wave(_project(at_2HW, angle_deg), rng, period_px=1.4 * period_px)
    return 1.5 * first_HW * _wave(_project(at_2HW, angle_deg + 90.0), rng, period_px=1.4 * period_px)


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
    """Irregular blots: white noise kept around one spatial frequency, in all directions; clipped to -1..1."""
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
