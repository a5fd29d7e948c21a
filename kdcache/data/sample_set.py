"""The embedded sample data set: generated scenes in the VOC layout.

It is for a first run without network or GPU. A scene is a cloudy background under two to five
textured objects that may hide parts of each other. Each object, and the background, takes two
colours from one distribution, so a pixel's colour tells no class; outline, size and texture period
have one distribution for all classes too. Only the pattern tells the classes apart, and it survives
the augmentations of training: a horizontal flip turns '/' into '\\', so one class, `diagonal`,
holds both; rescaling changes a period, so no class has a period of its own.
"""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from kdcache import disk
from kdcache.data.pictures import voc_palette
from kdcache.data.scenes import CLASS_NAMES as CLASS_NAMES
from kdcache.data.scenes import VOID as VOID
from kdcache.data.scenes import draw_scene
from kdcache.disk import MOST_LIST_BYTES, read_text
from kdcache.errors import DataError

FEW, FEW_STEP = "few", 8
_SPLIT_CODES = {"train": 0, "val": 1}
_JPEG_QUALITY = 92
_MIN_SIZE_PX = 48


def write_sample_set(
    root: Path, *, num_train: int = 320, num_val: int = 80, size_px: int = 96, seed: int = 0
) -> None:
    """Write the set under `root`, in VOCdevkit/VOC2012/.

    That folder holds JPEGImages, SegmentationClass and ImageSets/Segmentation, with the lists
    train, val, and few: every eighth image of train, the case of few labels. Every image is a
    pure function of (seed, split, index, size_px): writing again changes nothing, and a longer set
    begins with the shorter one. Files of other names stay. The lists are written last: a write cut
    short in a fresh folder leaves no list that names a missing file.

    Args:
        root: the folder that holds VOCdevkit; created if missing.
        num_train, num_val: images per split, >= 1.
        size_px: side of the square images, >= 48; below, the texture periods outgrow the objects.
        seed: 0 to 2**64 - 1.

    Raises: ValueError if an argument is out of range, DataError if `root` holds the lists of
        another data set.
    """
    voc = root / "VOCdevkit" / "VOC2012"
    _check_arguments(num_train=num_train, num_val=num_val, size_px=size_px, seed=seed)
    _check_lists_are_ours(voc / "ImageSets" / "Segmentation")
    root.mkdir(parents=True, exist_ok=True)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        disk.make_folders(voc / folder, below=root)
    nums = {"train": num_train, "val": num_val}
    ids = {
        split: [f"sample_{split}_{index:04d}" for index in range(num)]
        for split, num in nums.items()
    }
    for split in ids:
        for index, sample_id in enumerate(ids[split]):
            _write_sample(
                voc, sample_id, *draw_scene(_build_generator(seed, split, index), size_px=size_px)
            )
    for name, listed in {**ids, FEW: ids["train"][::FEW_STEP]}.items():
        path = voc / "ImageSets" / "Segmentation" / f"{name}.txt"
        disk.replace_file(path, ("\n".join(listed) + "\n").encode())


def _check_arguments(*, num_train: int, num_val: int, size_px: int, seed: int) -> None:
    """Raise ValueError for the first argument out of range."""
    least_of = {
        "num_train": (num_train, 1),
        "num_val": (num_val, 1),
        "size_px": (size_px, _MIN_SIZE_PX),
    }
    for name, (found, least) in least_of.items():
        if found < least:
            raise ValueError(f"sample set: {name} is {found!r}, expected {least} or more; raise it")
    if not 0 <= seed < 2**64:
        raise ValueError(f"sample set: seed is {seed!r}, expected 0 to 2**64 - 1; choose another")


def _check_lists_are_ours(folder: Path) -> None:
    """Raise DataError before a list of another data set, such as the real VOC, is overwritten."""
    for path in filter(Path.exists, (folder / f"{split}.txt" for split in _SPLIT_CODES)):
        foreign = [
            i
            for i in read_text(path, most_bytes=MOST_LIST_BYTES).split()
            if not re.fullmatch(r"sample_(train|val)_\d+", i)
        ]
        if foreign:
            raise DataError(
                f"{path}: first id is {foreign[0]!r}, expected 'sample_...'; choose another root"
            )


def _build_generator(seed: int, split: str, index: int) -> Generator:
    """One Philox stream per (seed, split, index): no image depends on how many came before it."""
    key = np.array([seed, _SPLIT_CODES[split] << 32 | index], dtype=np.uint64)
    return Generator(np.random.Philox(key=key))


def _write_sample(voc: Path, sample_id: str, image_HWC: np.ndarray, label_HW: np.ndarray) -> None:
    """Write a uint8 image and label, without chroma subsampling, which would grey fine patterns."""
    image_path = voc / "JPEGImages" / f"{sample_id}.jpg"
    file = BytesIO()
    Image.fromarray(image_HWC).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    disk.put_file(image_path, file.getbuffer())
    label = Image.fromarray(label_HW)
    label.putpalette(voc_palette().tobytes())
    file = BytesIO()
    label.save(file, "PNG")
    disk.put_file(voc / "SegmentationClass" / f"{sample_id}.png", file.getbuffer())
