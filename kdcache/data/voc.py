"""The VOC folder layout: lists of ids -> uint8 images and labels, checked before they are used.

torchvision's VOCSegmentation downloads and checks the archive. It is not used for reading: it knows
neither trainaug nor sample ids, and its errors do not name the file.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.config import DatasetConfig
from kdcache.data.pictures import decode_image, decode_label, read_picture_file
from kdcache.data.views import VOID
from kdcache.disk import MOST_LIST_BYTES, read_text
from kdcache.errors import DataError, Phrase, describe, one_line

VOC_DIR = Path("VOCdevkit") / "VOC2012"
VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
VOC_URL = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
# no separators and no leading dot: an id can never leave its folder
SAMPLE_ID = re.compile(r"(?!\.)[\w.\-]+")
_RESTORE = "restore the file"


@dataclass(frozen=True)
class Sample:
    """One image and its label, as files; label_path is None if it has no label."""

    id: str
    image_path: Path
    label_path: Path | None


@dataclass(frozen=True)
class Split:
    """The checked samples of a split, in the order of its list.

    `fingerprint` is the sha256 over ids and file contents, in that order; `digests` are the sha256
    (hex) of each image's file.
    """

    name: str
    samples: tuple[Sample, ...]
    fingerprint: str
    digests: tuple[str, ...] = ()


def find_samples(config: DatasetConfig, split: str) -> list[Sample]:
    """The samples of a split, in the order of its list; images and labels are not opened.

    Raises: DataError if the data set or the list is missing or wrong.
    """
    base = config.root / VOC_DIR
    if not base.is_dir():
        raise DataError(_missing_data_set(config))
    labels = base / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    ids = read_ids(list_path(config, split))
    return [Sample(id, base / "JPEGImages" / f"{id}.jpg", labels / f"{id}.png") for id in ids]


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


def check_samples(
    config: DatasetConfig, name: str, samples: list[Sample], *, advance: Callable[[int], None]
) -> Split:
    """Decode and hash every file of these samples. Raises: as `read_split`."""
    total, images = hashlib.sha256(), []
    with ThreadPoolExecutor(4) as pool:
        for sample, digests in zip(
            samples, pool.map(lambda s: _check_sample(config, s), samples), strict=True
        ):
            total.update(f"{' '.join([sample.id, *digests])}\n".encode())
            images.append(digests[0])
            advance(1)
    return Split(name, tuple(samples), total.hexdigest(), tuple(images))


def read_sample(config: DatasetConfig, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """The image, uint8 RGB [H, W, 3], and the label, uint8 [H, W] with void as 255, if it has one.

    Raises: DataError if a file is missing, damaged, or not as the settings say.
    """
    image = decode_image(sample.image_path, _read(sample.image_path), cure=_RESTORE)
    if sample.label_path is None:
        return image, None
    label = decode_label(sample.label_path, _read(sample.label_path), cure=_RESTORE)
    _check_label(config, sample, image.shape[:2], label)
    return image, np.where(label == config.ignore_index, np.uint8(VOID), label)


def download_voc(config: DatasetConfig) -> None:
    """Download and unpack VOC 2012 with torchvision (MD5-checked) if it is missing.

    Does nothing if `config.download` is off. Raises: DataError if the download fails.
    """
    if (config.root / VOC_DIR).is_dir() or not config.download:
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


def read_ids(path: Path, *, least: int = 2) -> list[str]:
    """The ids of a list, at least as many as `least`, all different. Raises DataError."""
    if not path.is_file():
        cure = (
            "choose another dataset.train_split or dataset.val_split, or put the list there, an id "
            "a line"
        )
        raise DataError(
            describe(
                path,
                field="split list",
                found=Phrase("missing"),
                expected=Phrase("a file"),
                cure=cure,
            )
        )
    try:
        ids = read_text(path, most_bytes=MOST_LIST_BYTES).split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: split list is unreadable ({error}); write an id a line, UTF-8"
        ) from None
    bad = next((id for id in ids if not SAMPLE_ID.fullmatch(id)), None)
    if bad is not None:
        raise DataError(
            describe(
                path,
                field="sample id",
                found=bad,
                expected=Phrase("letters, digits, _ - ."),
                cure="one id a line",
            )
        )
    if len(ids) < least or len(set(ids)) < len(ids):
        found = Phrase(f"{len(ids)} ids, {len(set(ids))} different")
        raise DataError(
            describe(
                path,
                field="list",
                found=found,
                expected=Phrase(f"{'two' if least == 2 else 'one'} or more, all different"),
                cure="mend it",
            )
        )
    return ids


def _check_sample(config: DatasetConfig, sample: Sample) -> list[str]:
    """Decode its files fully; returns the sha256 (hex) of the image's, then of the label's."""
    image_bytes = _read(sample.image_path)
    # only its size is kept: four large ones at once would take gigabytes
    image_hw = decode_image(sample.image_path, image_bytes, cure=_RESTORE).shape[:2]
    image_digest = hashlib.sha256(image_bytes).hexdigest()
    if sample.label_path is None:
        return [image_digest]
    label_bytes = _read(sample.label_path)
    label = decode_label(sample.label_path, label_bytes, cure=_RESTORE)
    _check_label(config, sample, image_hw, label)
    return [image_digest, hashlib.sha256(label_bytes).hexdigest()]


def _read(path: Path) -> bytes:
    cure = (
        "restore the file (after an interrupted download: delete VOCdevkit) or take its id out "
        "of the split list"
    )
    return read_picture_file(path, cure=cure)


def _check_label(
    config: DatasetConfig, sample: Sample, image_hw: tuple[int, int], label: np.ndarray
) -> None:
    if image_hw != label.shape:
        found = Phrase(f"{label.shape[1]}x{label.shape[0]}")
        expected = Phrase(f"{image_hw[1]}x{image_hw[0]} as {sample.image_path.name}")
        raise DataError(
            describe(
                sample.label_path,
                field="size",
                found=found,
                expected=expected,
                cure="restore the file",
            )
        )
    classes = np.flatnonzero(np.bincount(label.reshape(-1), minlength=256))
    bad = [
        int(k) for k in classes if k >= config.num_classes and k not in (config.ignore_index, VOID)
    ]
    if bad:
        expected = Phrase(f"0 to {config.num_classes - 1} or {config.ignore_index}")
        cure = "set dataset.num_classes or mend the label"
        raise DataError(
            describe(sample.label_path, field="class", found=bad[0], expected=expected, cure=cure)
        )
