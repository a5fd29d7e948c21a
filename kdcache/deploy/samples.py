"""Real images to compare an exported student on. Letters: H height, W width."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdcache.cache.reader import open_split
from kdcache.data.sampling import space_evenly
from kdcache.deploy.load import TrainedStudent
from kdcache.deploy.pictures import find_pictures, fit_picture, read_picture
from kdcache.errors import CacheError, Phrase, SettingsError, describe

MOST = 100


def find_samples(student: TrainedStudent, given: list[Path]) -> list[np.ndarray]:
    """Up to MOST images, uint8 RGB [H, W, 3] of validation's size: of the files and folders given, else of the run's cache.

    Raises: SettingsError where there is neither; DataError at the first that cannot be read, CacheCorruptError.
    """
    if not given:
        return _read_cache(student)
    pictures, errors = find_pictures(given)
    for error in errors:
        raise error
    chosen = (pictures[k] for k in space_evenly(len(pictures), MOST))
    return [fit_picture(read_picture(path), student.config.dataset.val_hw)[0] for path in chosen]


def _read_cache(student: TrainedStudent) -> list[np.ndarray]:
    place = student.config.cache.path
    try:
        val = open_split(place, "val")
    except CacheError as error:
        found, cure = (
            Phrase(f"not there to compare on ({error})"),
            "give --images with a folder of real ones",
        )
        raise SettingsError(
            describe(
                place, field="cache of the run", found=found, expected=Phrase("images"), cure=cure
            )
        ) from None
    return [val.read("image", 0, sample) for sample in space_evenly(val.layout.num_samples, MOST)]
