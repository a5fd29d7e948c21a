"""Images as they come: found in folders, read as a student is asked, or refused in one line each.

Letters: H height, W width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from kdcache.data.views import fit_inside
from kdcache.errors import DataError, Phrase, describe, one_line

log = logging.getLogger("kdcache")
# of these an 8-bit RGB image can be made that looks the same; I, F and I;16 would be cut off at 255
MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "La",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
)


def find_pictures(given: Iterable[Path]) -> tuple[list[Path], list[DataError]]:
    """Files as they are given, and the images of folders by name, each once; folders in folders are not looked into.

    Returns: the files, and what is wrong with the rest.
    """
    found, errors, endings = {}, [], Image.registered_extensions()
    for path in given:
        inside = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in endings and p.name[0] != ".")
            if path.is_dir()
            else []
        )
        if path.is_dir() and not inside:
            errors.append(
                _refuse(
                    path,
                    "folder",
                    "without images",
                    "files like .jpg or .png in it",
                    "give another folder",
                )
            )
        found |= {file.resolve(): file for file in (inside if path.is_dir() else [path])}
    return list(found.values()), errors


def read_picture(path: Path) -> np.ndarray:
    """uint8 RGB [H, W, 3]: the pixels as they are stored, transparency left out, of several frames the first.

    Raises: DataError where it is no image, damaged, larger than Pillow's limit (89,478,485 pixels), or grey of more than 8 bits
        (of colours of 16 bits Pillow gives the upper 8).
    """
    if not path.is_file():
        raise _refuse(path, "file", "missing", "an image", "check the name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                mode, rgb = picture.mode, _make_rgb(picture)
                _warn_of_the_unseen(path, picture)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _refuse(
            path, "size", "too large", f"{Image.MAX_IMAGE_PIXELS} pixels at most", "make it smaller"
        ) from None
    except (
        Exception
    ) as error:  # damaged bytes end in a dozen kinds: OSError, SyntaxError, struct.error, ...
        reason = one_line(str(error).replace(f" {str(path)!r}", ""))
        raise DataError(
            f"{path}: image is unreadable or truncated ({reason}); give another file"
        ) from None
    if mode not in MODES:
        raise _refuse(
            path, "mode", f"'{mode}'", "8 bits a channel", "convert it to 8-bit RGB or grey"
        )
    return rgb


def fit_picture(
    image_HW3: np.ndarray, size_hw: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture as validation would show it: shrunk where it is larger than `size_hw`, padded with the mean colour.

    Returns: uint8 [*size_hw, 3], and height and width of the picture in it.
    """
    padded, _, hw = fit_inside(image_HW3, np.zeros(image_HW3.shape[:2], np.uint8), size_hw=size_hw)
    return padded, hw


def _make_rgb(picture: Image.Image) -> np.ndarray:
    opaque = (
        picture.convert("RGBA") if picture.mode == "P" else picture
    )  # a palette may have transparent colours
    return np.array(opaque.convert("RGB"))


def _warn_of_the_unseen(path: Path, picture: Image.Image) -> None:
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if turned != 1:
        log.warning(
            "%s: EXIF orientation %s is not applied, as nowhere in kdcache: masks lie on the stored pixels",
            path,
            turned,
        )
    if (
        frames := getattr(picture, "n_frames", 1)
    ) > 1 and picture.format != "MPO":  # whose others are previews
        log.warning("%s: the first of %d frames is taken", path, frames)


def _refuse(path: Path, field: str, found: str, expected: str, cure: str) -> DataError:
    return DataError(
        describe(path, field=field, found=Phrase(found), expected=Phrase(expected), cure=cure)
    )
