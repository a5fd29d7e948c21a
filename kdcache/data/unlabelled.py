"""Unlabelled images: found by a list, in a folder, or as the rest of the data set; never val's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from kdcache.config import DatasetConfig
from kdcache.config.caching import REST
from kdcache.data.pictures import ENDINGS
from kdcache.data.voc import SAMPLE_ID, VOC_DIR, Sample, Split, check_samples, list_path, read_ids
from kdcache.errors import DataError, Phrase, describe

SETTING = "dataset.unlabelled"


def read_unlabelled(
    config: DatasetConfig,
    labelled: Mapping[str, Split],
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> Split:
    """Find, decode and hash every image that `dataset.unlabelled` names.

    Args:
        labelled: "train" and "val": none of their images may be among them, by id or by content.
        advance: called with 1 after each checked image.

    Raises: DataError for the first bad image, for one that is also in `labelled`, and if there are
        no images.
    """
    samples = find_unlabelled(config, labelled)
    split = check_samples(config, config.unlabelled, samples, advance=advance)
    check_apart({**labelled, "unlabelled": split})
    return split


def find_unlabelled(config: DatasetConfig, labelled: Mapping[str, Split]) -> list[Sample]:
    """The images that `dataset.unlabelled` names, without labels; they are not opened.

    In the order of the list, else by name. Raises: DataError.
    """
    name, base = config.unlabelled, config.root / VOC_DIR
    ids = {sample.id: role for role, split in labelled.items() for sample in split.samples}
    where = list_path(config, name) if SAMPLE_ID.fullmatch(name) else Path(name)
    if name == REST:
        where = base / "JPEGImages"
        found = [s for s in _find_images(where, (".jpg",)) if s.id not in ids]
    elif SAMPLE_ID.fullmatch(name) and where.is_file():
        found = [
            Sample(id, base / "JPEGImages" / f"{id}.jpg", None) for id in read_ids(where, least=1)
        ]
    elif Path(name).is_dir():
        where = Path(name)
        found = _find_images(where, ENDINGS)
    else:
        raise _refuse(where, "list", "missing", f"this list, a folder of images, or {REST}")
    if not found:
        raise _refuse(where, "unlabelled images", "none", "one or more", "give another")
    twice = next((sample for sample in found if sample.id in ids), None)
    if twice:
        expected, cure = f"no image of {ids[twice.id]}", "rename it or take it out of one of them"
        raise _refuse(where, "sample id", repr(twice.id), expected, cure)
    return found


def check_apart(splits: Mapping[str, Split]) -> None:
    """Check that no two splits have an image in common, by id or by content (sha256 of its file).

    Raises: DataError naming both images.
    """
    by_id: dict[str, tuple[str, Sample]] = {}
    by_content: dict[str, tuple[str, Sample]] = {}
    for role, split in splits.items():
        pairs = list(zip(split.samples, split.digests, strict=True))
        for sample, digest in pairs:
            other = by_id.get(sample.id) or by_content.get(digest)
            if other:
                raise _refuse_shared(*other, role, sample)
        by_id |= {sample.id: (role, sample) for sample, _ in pairs}
        by_content |= {digest: (role, sample) for sample, digest in pairs}


def _refuse_shared(role: str, sample: Sample, other_role: str, other: Sample) -> DataError:
    return DataError(
        describe(
            other.image_path,
            field=f"image {other.id!r} of {other_role}",
            found=Phrase(f"also {sample.id!r} of {role}"),
            expected=Phrase("another image"),
            cure="take it out of one of them",
        )
    )


def _find_images(folder: Path, endings: Iterable[str]) -> list[Sample]:
    """The images directly in a folder, by name; hidden files and those of other kinds are left."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise DataError(
            f"{folder}: folder is unreadable ({error.strerror}); change {SETTING}"
        ) from None
    images = [Sample(p.stem, p, None) for p in paths if p.suffix.lower() in endings]
    bad = next((image for image in images if not SAMPLE_ID.fullmatch(image.id)), None)
    if bad:
        cure = "rename it or take it out"
        raise _refuse(bad.image_path, "name", repr(bad.id), "letters, digits, _ - .", cure)
    first: dict[str, Path] = {}
    for image in images:
        if first.setdefault(image.id, image.image_path) is not image.image_path:
            cure = "rename or remove one of them"
            raise _refuse(image.image_path, "sample id", first[image.id].name, "another", cure)
    return images


def _refuse(where: Path, field: str, found: str, expected: str, cure: str = "") -> DataError:
    return DataError(
        describe(
            where,
            field=field,
            found=Phrase(found),
            expected=Phrase(expected),
            cure=f"{cure}, or change {SETTING}".removeprefix(", or "),
        )
    )
