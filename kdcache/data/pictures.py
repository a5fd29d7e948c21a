"""Pictures: the one way to decode them, alone or as the image and label of a sample; VOC's colours,
and which of many are shown.

Decoding takes a few formats, has a limit on pixels, and gives 8 bits a channel.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kdcache.config import DatasetConfig
from kdcache.config.masks import voc_colour
from kdcache.data.labels import check_label, count_classes, find_classes, map_label
from kdcache.data.orientation import turn_upright
from kdcache.disk import UnfitFileError, read_plain
from kdcache.errors import DataError, Phrase, describe, one_line

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # Pillow has more, some start other programs
ENDINGS = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".tif", ".tiff", ".webp"]
)
MOST_PIXELS = 1 << 26  # 8192 x 8192
MOST_FILE_BYTES = 1 << 29
MODES = {
    # they convert to 8-bit RGB and look the same; I, F and I;16 would be clipped at 255
    "image": (
        *("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"),
        *("La", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"),
    ),
    "label": ("1", "P", "L", "I;16", "I;16B"),
    "colours": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"),
}
_EXPECTED = {
    "image": "8 bits a channel",
    "label": "'P' or 'L', or grey of 1 or 16 bits",
    "colours": "RGB, RGBA, palette or grey",
}
_CURES = {
    "image": "convert it to 8-bit RGB or grey",
    "label": "store class numbers as 8-bit palette or grey PNG, or set dataset.palette for colours",
    "colours": "convert it to RGB",
}
_LARGE_PIXELS = 1 << 24  # from here on one at a time: each takes up to 12 bytes a pixel
_one_large = threading.Lock()
_RESTORE = "restore the file"
TURNED = "@"  # between the sha256 of a file and its orientation, in a fingerprint
_SAY_TURNED = (
    "%s: %d of %d images are turned upright by their EXIF orientation, as annotation tools show "
    "them; masks must fit that"
)
log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class Sample:
    """One image and its label, as files; label_path is None if it has no label."""

    id: str
    image_path: Path
    label_path: Path | None


@dataclass(frozen=True)
class Split:
    """The checked samples of a split, in the order of its list.

    `fingerprint` is the sha256 over ids, file contents and how EXIF turns them, in that order;
    `lines` are these facts, one text a sample, which `fingerprint` hashes with line ends;
    `digests` are the sha256 (hex) of each image's file. `pixels` counts the labels' pixels by
    class, 255 is void; empty if nothing has a label.
    """

    name: str
    samples: tuple[Sample, ...]
    fingerprint: str
    digests: tuple[str, ...] = ()
    pixels: tuple[int, ...] = ()
    lines: tuple[str, ...] = ()


def read_picture_file(path: Path, *, cure: str) -> bytes:
    """The bytes of a picture's file. Raises DataError if it is missing or no plain file."""
    try:
        return read_plain(path, most_bytes=MOST_FILE_BYTES)
    except FileNotFoundError:
        facts = {"field": "file", "found": Phrase("missing"), "expected": Phrase("present")}
        raise DataError(describe(path, **facts, cure=cure)) from None
    except UnfitFileError as error:
        raise DataError(f"{path}: {error.strerror}; {cure}") from None
    except OSError as error:
        reason = error.strerror
        raise DataError(f"{path}: file is unreadable ({reason}); check its permissions") from None


def decode_image(
    path: Path, data: bytes, *, cure: str, look: Callable[[Image.Image], None] | None = None
) -> np.ndarray:
    """The pixels, uint8 RGB [H, W, 3]: upright by EXIF, without transparency, the first frame.

    Of colours of 16 bits Pillow gives the upper 8.

    Args:
        path: for messages. data: the file. cure: of a damaged one.
        look: called with the open picture.

    Raises: DataError if it is damaged, of another format, larger than MOST_PIXELS, or grey of more
        than 8 bits.
    """

    return _decode(path, data, _finish_image, kind="image", cure=cure, look=look)[0]


def _finish_image(picture: Image.Image) -> np.ndarray:
    if picture.mode == "P":  # a palette may have transparent colours
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("RGB"))


def decode_label(path: Path, data: bytes, *, cure: str) -> np.ndarray:
    """The numbers in a palette or grey picture, [H, W], uint8, of 16 bits uint16; of 1 bit 0 and 1.

    Upright by EXIF, too: where image and label have the tag, both are turned. Raises: as
    `decode_image`.
    """
    return _decode(path, data, _finish_label, kind="label", cure=cure)[0]


def _finish_label(picture: Image.Image) -> np.ndarray:
    numbers = np.asarray(picture)
    return numbers.astype(np.uint16 if numbers.itemsize > 1 else np.uint8, copy=False)


def _decode_mask(config: DatasetConfig, path: Path, data: bytes) -> tuple[np.ndarray, int]:
    """The numbers in a mask, or with `dataset.palette` the classes; and its orientation."""
    if not config.colours:
        return _decode(path, data, _finish_label, kind="label")
    colours, turned = _decode(path, data, _finish_image, kind="colours")
    return find_classes(config, path, colours), turned


def read_sample(config: DatasetConfig, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """The image, uint8 RGB [H, W, 3], and the label, uint8 [H, W] with void as 255, if it has one.

    Raises: DataError if a file is missing, damaged, or not as the settings say.
    """
    image = decode_image(sample.image_path, _read(sample.image_path), cure=_RESTORE)
    if sample.label_path is None:
        return image, None
    label, _ = _decode_mask(config, sample.label_path, _read(sample.label_path))
    facts = {"image_path": sample.image_path, "image_hw": image.shape[:2]}
    check_label(config, label, path=sample.label_path, **facts)
    return image, map_label(config, label)


def check_samples(
    config: DatasetConfig, name: str, samples: list[Sample], *, advance: Callable[[int], None]
) -> Split:
    """Decode and hash every file of these samples. Raises: as `read_split`."""
    total, lines, images, pixels, num_turned = hashlib.sha256(), [], [], Counter(), 0
    with ThreadPoolExecutor(4) as pool:
        for sample, (digests, counts) in zip(
            samples, pool.map(lambda s: _check_sample(config, s), samples), strict=True
        ):
            lines.append(" ".join([sample.id, *digests]))
            total.update(f"{lines[-1]}\n".encode())
            images.append(digests[0].partition(TURNED)[0])
            num_turned += TURNED in digests[0]
            pixels.update(counts)
            advance(1)
    if num_turned:
        log.warning(_SAY_TURNED, name, num_turned, len(samples))
    by_class = tuple(pixels[number] for number in range(256)) if pixels else ()
    return Split(name, tuple(samples), total.hexdigest(), tuple(images), by_class, tuple(lines))


def _decode(
    path: Path,
    data: bytes,
    finish: Callable[[Image.Image], np.ndarray],
    *,
    kind: str,
    cure: str = _RESTORE,
    look: Callable[[Image.Image], None] | None = None,
) -> tuple[np.ndarray, int]:
    """What `finish` makes of the upright picture, and its orientation, 1 to 8."""
    try:
        with warnings.catch_warnings() if look else nullcontext():
            if look:
                warnings.simplefilter("ignore")  # about odd but readable metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                _check(path, picture, kind)
                is_large = picture.width * picture.height > _LARGE_PIXELS
                with _one_large if is_large else nullcontext():
                    picture.load()
                    _check(path, picture, kind)  # loading may change the mode
                    upright, turned = turn_upright(picture)
                    pixels = finish(upright)
                if look:
                    look(picture)
                return pixels, turned
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _refuse_size(path, "too large") from None
    except Exception as error:  # damaged bytes raise OSError, SyntaxError, struct.error, ...
        reason = _explain(error)
        raise DataError(f"{path}: image is unreadable or truncated ({reason}); {cure}") from None


def _explain(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):  # whose message names an object in memory
        return f"it is none of {', '.join(FORMATS)}"
    return one_line(error)


def _check(path: Path, picture: Image.Image, kind: str) -> None:
    """Raise DataError before memory is taken for too many pixels, and for a mode to be clipped."""
    if picture.width * picture.height > MOST_PIXELS:
        raise _refuse_size(path, f"{picture.width}x{picture.height}")
    if picture.mode not in MODES[kind]:
        found = Phrase(f"'{picture.mode}'")
        expected, cure = Phrase(_EXPECTED[kind]), _CURES[kind]
        raise DataError(describe(path, field="mode", found=found, expected=expected, cure=cure))


def _refuse_size(path: Path, found: str) -> DataError:
    expected = Phrase(f"{MOST_PIXELS} pixels at most")
    facts = {"field": "size", "found": Phrase(found), "expected": expected}
    return DataError(describe(path, **facts, cure="make it smaller"))


def voc_palette() -> np.ndarray:
    """The colour map of PASCAL VOC, uint8 [256, 3]."""
    return np.array([voc_colour(number) for number in range(256)], np.uint8)


def space_evenly(total: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..total-1, evenly spaced, rising."""
    count = min(total, most)
    return [step * total // count for step in range(count)]


def choose_extremes(values: Mapping[int, float], count: int) -> list[int]:
    """The `count` keys with the largest and the smallest value, half of each.

    Returns: keys in falling order of their value, equal values by key. If `count` is odd, one more
    of the largest; all keys if there are no more than `count`.
    """
    falling = sorted(values, key=lambda key: (-values[key], key))
    if len(falling) <= count:
        return falling
    least = count // 2
    return falling[: count - least] + falling[len(falling) - least :]


def _check_sample(config: DatasetConfig, sample: Sample) -> tuple[list[str], dict[int, int]]:
    """Decode its files fully.

    Returns: the sha256 (hex) of the image's, then of the label's, each with its orientation behind
        it if EXIF turns it; the label's pixels by class.
    """
    image_bytes = _read(sample.image_path)
    # only its size is kept: four large ones at once would take gigabytes
    image, turned = _decode(sample.image_path, image_bytes, _finish_image, kind="image")
    facts = {"image_path": sample.image_path, "image_hw": image.shape[:2]}
    del image
    digests = [_hash(image_bytes, turned)]
    if sample.label_path is None:
        return digests, {}
    label_bytes = _read(sample.label_path)
    label, label_turned = _decode_mask(config, sample.label_path, label_bytes)
    check_label(config, label, path=sample.label_path, **facts, turned=turned)
    return [*digests, _hash(label_bytes, label_turned)], count_classes(config, label)


def _hash(data: bytes, turned: int) -> str:
    """A file's part of the fingerprint: that of an upright one is as before EXIF was applied."""
    digest = hashlib.sha256(data).hexdigest()
    return digest if turned == 1 else f"{digest}{TURNED}{turned}"


def _read(path: Path) -> bytes:
    cure = (
        "restore the file (after an interrupted download: delete VOCdevkit) or take its id out "
        "of the split list"
    )
    return read_picture_file(path, cure=cure)
