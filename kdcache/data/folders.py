"""Which samples a data set has whose images and masks lie in folders of their own.

An image and its mask are paired by their names. Validation has folders of its own or is a part of
the images, chosen by a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from kdcache.config import DatasetConfig
from kdcache.config.caching import REST
from kdcache.data.lists import SAMPLE_ID
from kdcache.data.pictures import ENDINGS, Sample
from kdcache.errors import DataError, Phrase, describe

_MASK_NAME = "dataset.mask_name"


def find_pairs(config: DatasetConfig, split: str) -> list[Sample]:
    """The samples of a split by name of the image, which is the id; pictures are not opened.

    Args:
        split: `config.val_split`, else training.

    Raises: DataError for a folder that is not there, an image with two masks or, unless
        `dataset.unlabelled` is rest, with none, and if there are too few pairs.
    """
    is_val = split == config.val_split
    if is_val and config.val_images is not None:
        names = ("val_images", "masks" if config.val_masks is None else "val_masks")
    else:
        names = ("images", "masks")
    pairs = _pair(config, *(Path(getattr(config, name)) for name in names), names)
    if config.val_images is None:
        chosen = _choose_val(config, pairs)
        pairs = [sample for sample in pairs if (sample.id in chosen) == is_val]
    if len(pairs) < (1 if is_val else 2):
        field, expected = f"images of {split} with a mask", f"{'one' if is_val else 'two'} or more"
        cure = "add some or change dataset.val_fraction"
        raise _refuse(getattr(config, names[0]), field, str(len(pairs)), expected, cure)
    return pairs


def find_bare(config: DatasetConfig) -> list[Sample]:
    """The images of `config.images` without a mask, by name. Raises DataError."""
    samples = _match(config, Path(config.images), Path(config.masks), ("images", "masks"))
    return [sample for sample in samples if sample.label_path is None]


def find_images(folder: Path, endings: Iterable[str], *, setting: str) -> list[Sample]:
    """The images directly in a folder, by name; hidden files and those of other kinds are left.

    Args:
        setting: that names the folder.

    Raises: DataError, also for a name that is no id, and for two images of one id.
    """
    return _name_images(_list_pictures(folder, endings, setting=setting), setting=setting)


def _name_images(paths: list[Path], *, setting: str) -> list[Sample]:
    images = [Sample(path.stem, path, None) for path in paths]
    bad = next((image for image in images if not SAMPLE_ID.fullmatch(image.id)), None)
    if bad:
        cure = f"rename it or take it out, or change {setting}"
        raise _refuse(bad.image_path, "name", repr(bad.id), "letters, digits, _ - .", cure)
    first: dict[str, Path] = {}
    for image in images:
        other = first.setdefault(image.id, image.image_path)
        if other is not image.image_path:
            cure = f"rename or remove one of them, or change {setting}"
            raise _refuse(image.image_path, "sample id", other.name, "another", cure)
    return images


def _list_pictures(folder: Path, endings: Iterable[str], *, setting: str) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        what = f"folder is unreadable ({error.strerror})"
        raise DataError(f"{folder}: {what}; change {setting}") from None
    return [path for path in paths if path.suffix.lower() in endings]


def _pair(config: DatasetConfig, folder: Path, masks: Path, names: tuple[str, str]) -> list[Sample]:
    """The images that have a mask; all must, unless the rest is asked about without labels.

    That rest is of `dataset.images`: no image of val is left out of what a student is scored on.
    """
    samples = _match(config, folder, masks, names)
    pairs = [sample for sample in samples if sample.label_path is not None]
    bare = [sample for sample in samples if sample.label_path is None]
    if not samples:
        raise _refuse(folder, "images", "none", "two or more", f"change dataset.{names[0]}")
    if not pairs:
        name, mask = bare[0].image_path.name, _write_name(config, bare[0].id)
        found, expected = f"of none of {len(bare)} images", f"as {mask} for {name}"
        raise _refuse(masks, "mask", found, expected, f"set {_MASK_NAME} or dataset.{names[1]}")
    may_lack = names[0] == "images"
    if bare and not (may_lack and config.unlabelled == REST):
        found, expected = f"missing for {len(bare)} of {len(samples)} images", "one for each"
        cure = "add it or take the image out"
        cure += f", or set dataset.unlabelled to {REST}" if may_lack else ""
        raise _refuse(bare[0].image_path, "mask", found, expected, cure)
    return pairs


def _match(
    config: DatasetConfig, folder: Path, masks: Path, names: tuple[str, str]
) -> list[Sample]:
    """Each image with its mask, or without. Images and masks may share a folder."""
    by_name: dict[str, list[Path]] = {}
    for path in _list_pictures(masks, ENDINGS, setting=f"dataset.{names[1]}"):
        for name in {path.name, path.stem}:
            by_name.setdefault(name, []).append(path)
    paths = _list_pictures(folder, ENDINGS, setting=f"dataset.{names[0]}")
    masks_of = {
        path: [mask for mask in by_name.get(_write_name(config, path.stem), []) if mask != path]
        for path in paths
    }
    taken = {mask for found in masks_of.values() for mask in found}
    images = [path for path in paths if path not in taken]
    for image in images:
        if len(masks_of[image]) > 1:
            one, other = masks_of[image][:2]
            expected, cure = f"one for {image.name}", f"remove one of them or change {_MASK_NAME}"
            raise _refuse(other, "mask", f"a second one, beside {one.name}", expected, cure)
    return [
        Sample(sample.id, sample.image_path, next(iter(masks_of[sample.image_path]), None))
        for sample in _name_images(images, setting=f"dataset.{names[0]}")
    ]


def _write_name(config: DatasetConfig, stem: str) -> str:
    return config.mask_name.replace("{stem}", stem)


def _choose_val(config: DatasetConfig, pairs: list[Sample]) -> set[str]:
    """The ids of validation: those whose hash with the seed is the least, one or more."""

    def draw(sample: Sample) -> bytes:
        return hashlib.sha256(f"{config.val_seed}/{sample.id}".encode()).digest()

    count = max(1, round(config.val_fraction * len(pairs)))
    return {sample.id for sample in sorted(pairs, key=draw)[:count]}


def _refuse(where: str | Path, field: str, found: str, expected: str, cure: str) -> DataError:
    facts = {"found": Phrase(found), "expected": Phrase(expected)}
    return DataError(describe(where, field=field, **facts, cure=cure))
