"""Which samples a data set has: in the VOC folder layout those of its lists of ids, else those of
`folders`; and unlabelled ones, by a list, in a folder, or as the rest; never val's.

torchvision's VOCSegmentation downloads and checks the archive. It is not used for reading: it knows
neither trainaug nor sample ids, and its errors do not name the file.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from kdcache.config import DatasetConfig
from kdcache.config.caching import REST
from kdcache.data.folders import find_bare, find_images, find_pairs
from kdcache.data.lists import SAMPLE_ID, read_list
from kdcache.data.pictures import ENDINGS, Sample, Split, check_samples
from kdcache.errors import DataError, Phrase, describe, one_line

VOC_DIR = Path("VOCdevkit") / "VOC2012"
VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
VOC_URL = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
SETTING = "dataset.unlabelled"
_SAY_COPIES = "dataset.unlabelled: %d of %d images are left out: they are in train, too, as %r"
log = logging.getLogger("kdcache")


def find_samples(config: DatasetConfig, split: str) -> list[Sample]:
    """The samples of a split, in the order of its list; images and labels are not opened.

    Raises: DataError if the data set or the list is missing or wrong.
    """
    if config.images is not None:
        return find_pairs(config, split)
    base, least = config.root / VOC_DIR, 1 if split == config.val_split else 2
    if not base.is_dir():
        raise DataError(_missing_data_set(config))
    labels = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
    if config.label_folder is not None:
        labels = config.label_folder
        if not SAMPLE_ID.fullmatch(labels) or not (base / labels).is_dir():
            expected, cure = Phrase("a folder beside JPEGImages"), "set dataset.label_folder"
            facts = {"field": "folder of labels", "found": labels, "expected": expected}
            raise DataError(describe(base, **facts, cure=cure))
    return read_list(list_path(config, split), base=base, labels=labels, least=least)


def list_path(config: DatasetConfig, name: str) -> Path:
    """The file of a list of ids. Raises DataError for a name that leads out of the data set."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        expected, cure = Phrase("a list inside the data set"), "set dataset.root to another one"
        raise DataError(
            describe(config.root, field="split list", found=name, expected=expected, cure=cure)
        )
    return config.root / VOC_DIR / "ImageSets" / "Segmentation" / f"{name}.txt"


def read_split(
    config: DatasetConfig, split: str, *, advance: Callable[[int], None] = lambda n: None
) -> Split:
    """Find, decode and hash every file of a split, so that a bad one is met before the first batch.

    Args:
        config: where the data set is, and which labels it may hold.
        split: name of the list.
        advance: called with 1 after each checked sample.

    Raises: DataError for the first bad file.
    """
    return check_samples(config, split, find_samples(config, split), advance=advance)


def download_voc(config: DatasetConfig) -> None:
    """Download and unpack VOC 2012 with torchvision (MD5-checked) if it is missing.

    Does nothing if `config.download` is off or images have a folder of their own.

    Raises: DataError if the download fails.
    """
    if config.images is not None or (config.root / VOC_DIR).is_dir() or not config.download:
        return
    from torchvision.datasets import VOCSegmentation

    try:
        config.root.mkdir(parents=True, exist_ok=True)
        VOCSegmentation(config.root, year="2012", image_set="train", download=True)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        reason = one_line(error)
        raise DataError(f"{_missing_data_set(config)} (the download failed: {reason})") from None


def _missing_data_set(config: DatasetConfig) -> str:
    cure = "set dataset.root to the folder that holds VOCdevkit; `make demo` needs no data"
    if config.download:
        cure = (
            f"fetch {VOC_ARCHIVE} from {VOC_URL}, put it into {config.root} by hand and start "
            "again, or set dataset.root; `make demo` needs no network"
        )
    return describe(
        config.root / VOC_DIR,
        field="folder",
        found=Phrase("missing"),
        expected=Phrase("VOC layout"),
        cure=cure,
    )


def read_unlabelled(
    config: DatasetConfig,
    labelled: Mapping[str, Split],
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> Split:
    """Find, decode and hash every image that `dataset.unlabelled` names.

    Args:
        labelled: "train" and "val": none of their images may be among them by id, and none of val
            by content. A copy of an image of train is left out, and said.
        advance: called with 1 after each checked image.

    Raises: DataError for the first bad image, for one that is also in `labelled`, and if there are
        no images.
    """
    samples = find_unlabelled(config, labelled)
    split = check_samples(config, config.unlabelled, samples, advance=advance)
    known = set(labelled["train"].digests)
    kept = [one for one, digest in zip(samples, split.digests, strict=True) if digest not in known]
    if 0 < len(kept) < len(samples):
        first = next(one.id for one in samples if one not in kept)
        log.warning(_SAY_COPIES, len(samples) - len(kept), len(samples), first)
        split = check_samples(config, config.unlabelled, kept, advance=lambda n: None)
    check_apart({**labelled, "unlabelled": split})
    return split


def find_unlabelled(config: DatasetConfig, labelled: Mapping[str, Split]) -> list[Sample]:
    """The images that `dataset.unlabelled` names, without labels; they are not opened.

    In the order of the list, else by name. Raises: DataError.
    """
    name, base = config.unlabelled, config.root / VOC_DIR
    ids = {sample.id: role for role, split in labelled.items() for sample in split.samples}
    where = list_path(config, name) if SAMPLE_ID.fullmatch(name) else Path(name)
    if name == REST and config.images is not None:
        where, found = Path(config.images), find_bare(config)
    elif name == REST:
        where = base / "JPEGImages"
        listed = find_images(where, (".jpg",), setting=SETTING)
        found = [sample for sample in listed if sample.id not in ids]
    elif SAMPLE_ID.fullmatch(name) and where.is_file():
        listed = read_list(where, base=base, labels="SegmentationClass", least=1)
        found = [Sample(sample.id, sample.image_path, None) for sample in listed]
    elif Path(name).is_dir():
        where = Path(name)
        found = find_images(where, ENDINGS, setting=SETTING, config=config)
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
