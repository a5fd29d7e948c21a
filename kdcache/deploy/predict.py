"""Asks a student for the classes of images of any kind and size: they are found and read as it
takes them, or refused in a line each; masks and overlays are written.

Letters: H, W height and width of the image; h, w those of what the student sees; K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcache import disk
from kdcache.cache.reader import open_split
from kdcache.data.pictures import (
    ENDINGS,
    decode_image,
    read_picture_file,
    space_evenly,
    voc_palette,
)
from kdcache.data.views import fit_inside
from kdcache.deploy.student import TrainedStudent
from kdcache.errors import CacheError, DataError, KdcacheError, Phrase, SettingsError, describe
from kdcache.models.inputs import resize_to
from kdcache.progress import Say

log = logging.getLogger("kdcache")
MOST_IMAGES = 100  # that an exported student is compared on
STRIDE = 16  # the student sees sizes that are multiples of it, as in training
LEAST_PX = 32
MASKS, OVERLAYS = "masks", "overlays"  # folders
Size = int | Literal["original"] | None


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
    """The pixels, upright by EXIF, uint8 RGB [H, W, 3]; see `decode_image`.

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
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # whose other frames are previews
        log.warning("%s: the first of %d frames is taken", path, frames)


def _refuse(path: Path, field: str, found: str, expected: str, cure: str) -> DataError:
    return DataError(
        describe(path, field=field, found=Phrase(found), expected=Phrase(expected), cure=cure)
    )


@dataclass(frozen=True)
class Prediction:
    """What was written of one image: `masks/{name}` and `overlays/{name}`.

    hw: height and width of the image in pixels.
    shares: class number -> share of the image's pixels, 0 to 1, the largest first.
    """

    picture: Path
    name: str
    hw: tuple[int, int]
    shares: dict[int, float]


def predict_pictures(
    student: TrainedStudent,
    given: Iterable[Path],
    *,
    out: Path,
    size: Size,
    say: Say = lambda text: None,
    complain: Callable[[KdcacheError], None] = lambda error: None,
) -> tuple[list[Prediction], list[KdcacheError]]:
    """Write the mask and the overlay of each image.

    Args:
        given: images and folders of images.
        out: the folder to write into, made if missing; files of the same names are replaced.
        size: what the student sees: None as in validation, N to fit [N, N], "original" unshrunk.
        say: called with one line for each image that is done.
        complain: called with the error of each image that is not; the others go on.

    Returns: what was written, and the errors. Raises: SettingsError if `out` cannot be written.
    """
    pictures, errors = find_pictures(given)
    for error in errors:
        complain(error)
    _make_folders(out, run=student.folder)
    done, taken = [], set()
    for picture in pictures:
        try:
            image = read_picture(picture)
            classes = find_classes(student, image, size=size)
        except KdcacheError as error:
            errors.append(error)
            complain(error)
            continue
        done.append(_write(picture, image, classes, out=out, name=_choose_name(picture, taken)))
        say(f"{picture} -> {out / MASKS / done[-1].name}: {_format_shares(done[-1], student)}")
    return done, errors


def find_classes(student: TrainedStudent, image_HW3: np.ndarray, *, size: Size) -> np.ndarray:
    """Class numbers uint8 [H, W] of a uint8 RGB image [H, W, 3].

    If the student sees a smaller image, its scores are enlarged, not its classes.

    Raises: TrainingError if the student fails at that size.
    """
    hw = image_HW3.shape[:2]
    padded, (height, width) = fit_picture(image_HW3, _choose_size(student, hw, size))
    logits_1Khw = student.ask(padded[None], autocast=student.autocast)[..., :height, :width]
    return _find_best_class(logits_1Khw, hw)


def _choose_size(student: TrainedStudent, hw: tuple[int, int], size: Size) -> tuple[int, int]:
    if size is None:
        return student.config.dataset.val_hw
    if size == "original":
        return tuple(max(LEAST_PX, -(-px // STRIDE) * STRIDE) for px in hw)
    return size, size


def _find_best_class(logits_1Khw: Tensor, hw: tuple[int, int]) -> np.ndarray:
    """The argmax at full size, one class at a time: all at once would take K times the memory."""
    best, classes = torch.full(hw, -torch.inf), torch.zeros(hw, dtype=torch.uint8)
    for number in range(logits_1Khw.shape[1]):
        scores = resize_to(logits_1Khw[:, number : number + 1], hw)[0, 0]
        classes[scores > best] = number
        best = torch.maximum(best, scores)
    return classes.numpy()


def _make_folders(out: Path, *, run: Path) -> None:
    """Make them, none behind a link in the run or in `out`; `out` may be one if it is elsewhere."""
    below = run if out.is_relative_to(run) else out
    try:
        below.mkdir(parents=True, exist_ok=True)
        for name in (MASKS, OVERLAYS):
            disk.make_folders(out / name, below=below)
    except OSError as error:
        raise SettingsError(
            f"{out}: --out is unwritable ({error.strerror}); set another folder"
        ) from None


def _choose_name(picture: Path, taken: set[str]) -> str:
    """NAME.png, or NAME-2.png if another image has that name, also on case-insensitive file
    systems.
    """
    names = (f"{picture.stem}{'' if k == 1 else f'-{k}'}.png" for k in count(1))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return name


def _write(
    picture: Path, image_HW3: np.ndarray, classes_HW: np.ndarray, *, out: Path, name: str
) -> Prediction:
    mask = Image.fromarray(classes_HW)
    mask.putpalette(voc_palette().tobytes())
    disk.put_file(out / MASKS / name, _encode(mask))
    half = image_HW3 // 2 + voc_palette()[classes_HW] // 2
    disk.put_file(out / OVERLAYS / name, _encode(Image.fromarray(half)))
    counts = np.bincount(classes_HW.reshape(-1), minlength=1) / classes_HW.size
    shares = {int(k): float(counts[k]) for k in np.argsort(-counts, kind="stable") if counts[k]}
    return Prediction(picture, name, classes_HW.shape, shares)


def _encode(picture: Image.Image) -> memoryview:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getbuffer()


def _format_shares(prediction: Prediction, student: TrainedStudent) -> str:
    names = student.config.dataset.names
    return ", ".join(
        f"{names[number]} {100 * share:.1f} %" for number, share in prediction.shares.items()
    )
