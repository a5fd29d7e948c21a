"""Images of any kind: found in folders, read as a student takes them, or refused in one line each.

Letters: H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from kdcache.cache.reader import open_split
from kdcache.data.pictures import ENDINGS, decode_image, read_picture_file, space_evenly
from kdcache.data.views import fit_inside
from kdcache.deploy.student import TrainedStudent
from kdcache.errors import CacheError, DataError, Phrase, SettingsError, describe

log = logging.getLogger("kdcache")
MOST_IMAGES = 100  # that an exported student is compared on


def find_pictures(given: Iterable[Path]) -> tuple[list[Path], list[DataError]]:
    """The files that are given, and the images directly in the folders that are given, each once.

    Returns: the files, those of a folder sorted by name, and an error for each folder without
    images.
    """
    found, errors = {}, []
    for path in given:
        files = [path]
        if path.is_dir():
            files = [p for p in sorted(path.iterdir()) if p.suffix.lower() in ENDINGS]
            files = [file for file in files if file.name[0] != "."]
        if not files:
            expected = "files like .jpg or .png in it"
            errors.append(
                _refuse(path, "folder", "without images", expected, "give another folder")
            )
        found |= {file.resolve(): file for file in files}
    return list(found.values()), errors


def read_picture(path: Path) -> np.ndarray:
    """The pixels as they are stored, uint8 RGB [H, W, 3]; see `decode_image`.

    Raises: DataError if the file is missing, no image, damaged, too large, or grey of more than 8
    bits.
    """
    data = read_picture_file(path, cure="check the name")
    look = partial(_warn_of_what_is_ignored, path)
    return decode_image(path, data, cure="give another file", look=look).copy()


def fit_picture(
    image_HW3: np.ndarray, size_hw: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as validation shows it: shrunk if it is larger than `size_hw`, padded with the mean
    colour.

    Returns: uint8 [*size_hw, 3], and the height and width that the image has in it.
    """
    padded, _, hw = fit_inside(image_HW3, np.zeros(image_HW3.shape[:2], np.uint8), size_hw=size_hw)
    return padded, hw


def find_images(student: TrainedStudent, given: list[Path]) -> list[np.ndarray]:
    """Up to MOST_IMAGES images to compare an exported student on: those that are given, else the
    run's validation images.

    Returns: uint8 RGB [H, W, 3] of validation's size.

    Raises: SettingsError if nothing is given and the run's cache is not there; DataError for the
    first image that cannot be read; CacheCorruptError.
    """
    if not given:
        return _read_from_cache(student)
    pictures, errors = find_pictures(given)
    for error in errors:
        raise error
    chosen = (pictures[k] for k in space_evenly(len(pictures), MOST_IMAGES))
    return [fit_picture(read_picture(path), student.config.dataset.val_hw)[0] for path in chosen]


def _read_from_cache(student: TrainedStudent) -> list[np.ndarray]:
    path = student.config.cache.path
    try:
        val = open_split(path, "val")
    except CacheError as error:
        found, expected = Phrase(f"not there to compare on ({error})"), Phrase("images")
        cure = "give --images with a folder of real ones"
        raise SettingsError(
            describe(path, field="cache of the run", found=found, expected=expected, cure=cure)
        ) from None
    chosen = space_evenly(val.layout.num_samples, MOST_IMAGES)
    return [val.read("image", 0, sample) for sample in chosen]


def _warn_of_what_is_ignored(path: Path, picture: Image.Image) -> None:
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if turned != 1:
        log.warning(
            "%s: EXIF orientation %s is not applied, as nowhere in kdcache: "
            "masks lie on the stored pixels",
            path,
            turned,
        )
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # whose other frames are previews
        log.warning("%s: the first of %d frames is taken", path, frames)


def _refuse(path: Path, field: str, found: str, expected: str, cure: str) -> DataError:
    return DataError(
        describe(path, field=field, found=Phrase(found), expected=Phrase(expected), cure=cure)
    )
