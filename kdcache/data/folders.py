"""Which samples a data set has whose images and masks lie in folders of their own.

An image and its mask lie in the same folder below, and `{stem}` stands for the same in their names.
Validation has folders of its own or is a part of the images, chosen by a seed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from kdcache.config import DatasetConfig
from kdcache.config.caching import FOLDERS, REST
from kdcache.data.lists import SAMPLE_ID
from kdcache.data.pictures import ENDINGS, Sample
from kdcache.errors import DataError, Phrase, describe

_STEM = "{stem}"
_NAMES = "dataset.image_name or dataset.mask_name"


def find_pairs(config: DatasetConfig, split: str) -> list[Sample]:
    """The samples of a split by path of the image; pictures are not opened.

    The id of an image is what `{stem}` stands for, after the folders below that it lies in.

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
    pairs = _pair(config, names)
    if config.val_images is None:
        chosen = _choose_val(config, pairs)
        pairs = [sample for sample in pairs if (sample.id in chosen) == is_val]
    if len(pairs) < (1 if is_val else 2):
        field, expected = f"images of {split} with a mask", f"{'one' if is_val else 'two'} or more"
        cure = "add some or change dataset.val_fraction"
        raise _refuse(getattr(config, names[0]), field, str(len(pairs)), expected, cure)
    return pairs


def find_bare(config: DatasetConfig) -> list[Sample]:
    """The images of `config.images` without a mask, by path. Raises DataError."""
    samples = _match(config, ("images", "masks"))
    return [sample for sample in samples if sample.label_path is None]


def find_images(
    folder: Path, endings: Iterable[str], *, setting: str, config: DatasetConfig | None = None
) -> list[Sample]:
    """The images in a folder, by path; hidden files and those of other kinds are left.

    Args:
        setting: that names the folder.
        config: to look into folders below, too, but for those that it names.

    Raises: DataError, also for a name that is no id, and for two images of one id.
    """
    paths = _list_pictures(folder, endings, setting=setting, config=config)
    return _name_images({path: path.stem for path in paths}, folder, setting=setting)


def _name_images(stems: dict[Path, str], folder: Path, *, setting: str) -> list[Sample]:
    """The samples of images, still without masks.

    Args:
        stems: path -> what `{stem}` stands for. folder, setting: that they were found in.
    """
    images, first = [], {}
    for path, stem in stems.items():
        parts = [*path.relative_to(folder).parts[:-1], stem]
        if not all(map(SAMPLE_ID.fullmatch, parts)):
            found, cure = repr("/".join(parts)), f"rename it or take it out, or change {setting}"
            raise _refuse(path, "name", found, "letters, digits, _ - .", cure)
        images.append(Sample("/".join(parts), path, None))
        other = first.setdefault(images[-1].id, path)
        if other is not path:
            cure = f"rename or remove one of them, or change {setting}"
            raise _refuse(path, "sample id", f"that of {other.name}", "another", cure)
    return images


def _list_pictures(
    folder: Path, endings: Iterable[str], *, setting: str, config: DatasetConfig | None
) -> list[Path]:
    """The pictures in a folder and, with a config, below it: a folder that it names has its own."""
    given = [getattr(config, name) for name in FOLDERS] if config else []
    seen = {os.path.realpath(path) for path in (folder, *given) if path is not None}
    waiting, found = [folder], []
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(inside) as entries:
                shown = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
        except OSError as error:
            what = f"folder is unreadable ({error.strerror})"
            raise DataError(f"{inside}: {what}; change {setting}") from None
        folders = [inside / entry.name for entry in shown if config and _is_folder(entry)]
        found += [inside / entry.name for entry in shown if not (config and _is_folder(entry))]
        new = {os.path.realpath(path): path for path in folders}  # a link may lead in a circle
        waiting += [path for real, path in new.items() if real not in seen]
        seen |= set(new)
    return sorted(path for path in found if path.suffix.lower() in endings)


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether to look into it; one that is called like a picture is a picture that is none."""
    return entry.is_dir() and Path(entry.name).suffix.lower() not in ENDINGS


def _pair(config: DatasetConfig, names: tuple[str, str]) -> list[Sample]:
    """The images that have a mask; all must, unless the rest is asked about without labels.

    That rest is of `dataset.images`: no image of val is left out of what a student is scored on.

    Args:
        names: of the settings of the images' and the masks' folder.
    """
    samples, (folder, masks) = _match(config, names), (getattr(config, name) for name in names)
    pairs = [sample for sample in samples if sample.label_path is not None]
    bare = [sample for sample in samples if sample.label_path is None]
    if not samples:
        expected, cure = f"two or more like {config.image_name}", f"change dataset.{names[0]}"
        raise _refuse(folder, "images", "none", expected, f"{cure} or dataset.image_name")
    if not pairs:
        image, mask = bare[0].image_path.name, _write_mask_name(config, bare[0].id)
        found, expected = f"of none of {len(bare)} images", f"as {mask} for {image}"
        raise _refuse(masks, "mask", found, expected, f"set {_NAMES}, or dataset.{names[1]}")
    may_lack = names[0] == "images"
    if bare and not (may_lack and config.unlabelled == REST):
        found, expected = f"missing for {len(bare)} of {len(samples)} images", "one for each"
        cure = "add it or take the image out"
        cure += f", or set dataset.unlabelled to {REST}" if may_lack else ""
        raise _refuse(bare[0].image_path, "mask", found, expected, cure)
    return pairs


def _match(config: DatasetConfig, names: tuple[str, str]) -> list[Sample]:
    """Each image with its mask, or without. Images and masks may share a folder."""
    folder, masks = (Path(getattr(config, name)) for name in names)
    masks = folder if os.path.realpath(folder) == os.path.realpath(masks) else masks
    images = _find_stems(config, folder, config.image_name, setting=f"dataset.{names[0]}")
    stems = _find_stems(config, masks, config.mask_name, setting=f"dataset.{names[1]}")
    for path in images.keys() & stems.keys():  # it is what the name that says more says
        del (stems if len(config.image_name) > len(config.mask_name) else images)[path]
    keys = {path: (path.parent.relative_to(folder), stem) for path, stem in images.items()}
    wanted, mask_of = set(keys.values()), {}
    for path, stem in stems.items():
        key = (path.parent.relative_to(masks), stem)
        other = mask_of.setdefault(key, path)
        if other is not path and key in wanted:
            found, expected = f"a second one, beside {other.name}", f"one for image {stem}"
            raise _refuse(path, "mask", found, expected, f"remove one of them or change {_NAMES}")
    return [
        Sample(image.id, image.image_path, mask_of.get(keys[image.image_path]))
        for image in _name_images(images, folder, setting=f"dataset.{names[0]}")
    ]


def _find_stems(config: DatasetConfig, folder: Path, name: str, *, setting: str) -> dict[Path, str]:
    """The pictures whose name is like `name` -> what `{stem}` stands for."""
    head, _, tail = name.partition(_STEM)
    ending = Path(f"x{tail}").suffix.lower()
    endings = [ending] if ending in ENDINGS else ENDINGS
    tail = tail[: len(tail) - len(ending)] if ending in ENDINGS else tail
    listed = _list_pictures(folder, endings, setting=setting, config=config)
    stems = {path: path.stem[len(head) : len(path.stem) - len(tail)] for path in listed}
    return {path: stem for path, stem in stems.items() if stem and path.stem == head + stem + tail}


def _write_mask_name(config: DatasetConfig, id: str) -> str:
    below, slash, stem = id.rpartition("/")
    return f"{below}{slash}{config.mask_name.replace(_STEM, stem)}"


def _choose_val(config: DatasetConfig, pairs: list[Sample]) -> set[str]:
    """The ids of validation: those whose hash with the seed is the least, one or more."""

    def draw(sample: Sample) -> bytes:
        return hashlib.sha256(f"{config.val_seed}/{sample.id}".encode()).digest()

    count = max(1, round(config.val_fraction * len(pairs)))
    return {sample.id for sample in sorted(pairs, key=draw)[:count]}


def _refuse(where: str | Path, field: str, found: str, expected: str, cure: str) -> DataError:
    facts = {"found": Phrase(found), "expected": Phrase(expected)}
    return DataError(describe(where, field=field, **facts, cure=cure))
