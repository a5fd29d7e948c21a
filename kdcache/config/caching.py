"""What is looked at, and what is kept of the answers: the data set, its views, the cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from kdcache.config.masks import (
    CITYSCAPES_CLASSES,
    Colour,
    LabelMap,
    Palette,
    resolve_label_map,
    resolve_palette,
)
from kdcache.config.names import (
    KINDS,
    LEVELS,
    PRESETS,
    STRIDE,
    VOID,
    SizePx,
    as_hw,
    as_kind,
    as_preset,
    check_positive,
    check_range,
    check_size,
    clean_address,
)
from kdcache.errors import refuse

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]  # fmt: skip


REST = "rest"  # dataset.unlabelled: all images in neither list
# a setting, and the one without which it says nothing
FOLDERS = {
    "images": "masks",
    "masks": "images",
    "val_images": "images",
    "val_masks": "val_images",
}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The data set: in the VOC folder layout, or images and masks in folders of their own.

    ROOT/VOCdevkit/VOC2012/ holds JPEGImages, SegmentationClass and ImageSets. With `images` nothing
    below ROOT is looked at.
    """

    root: Path = Path("data/voc")
    """Folder that holds VOCdevkit/."""
    train_split: str = "train"
    """List of training ids, ImageSets/Segmentation/NAME.txt; trainaug reads
    SegmentationClassAug."""
    val_split: str = "val"
    """List of validation ids."""
    label_folder: str | None = None
    """Folder of the labels beside JPEGImages (default: SegmentationClass)."""
    images: str | None = None
    """Folder of images, and of folders of such, in place of the VOC layout; their masks are in
    dataset.masks."""
    masks: str | None = None
    """Folder of masks, one for each image, in the same folders below."""
    image_name: str = "{stem}"
    """Name of an image, as {stem}_leftImg8bit.png; any ending if it has none. Others are left."""
    mask_name: str = "{stem}"
    """Name of its mask, as {stem}_mask.png; {stem} is the same as in the image's name."""
    val_images: str | None = None
    """Folder of validation images (default: a part of dataset.images, by val_fraction)."""
    val_masks: str | None = None
    """Folder of their masks (default: dataset.masks)."""
    val_fraction: float = 0.2
    """Part of dataset.images for validation if there is no dataset.val_images, 0.001 to 0.9."""
    val_seed: int = 0
    """Seed that chooses them, 0 or more."""
    unlabelled: str | None = None
    """Images without labels that the teacher is asked about as well: a list, whose labels need not
    exist, a folder of images, or rest: all of JPEGImages in neither list, all of dataset.images
    without a mask (default: none)."""
    num_classes: int = 21
    """Number of classes, labels 0..num_classes-1; 2 to 254."""
    class_names: list[str] | None = None
    """One name per class, for tables and reports (default: the VOC names for 21 classes, those of
    Cityscapes with its label_map or palette, else class 0, class 1, ...)."""
    ignore_index: int = 255
    """Label value that no loss and no metric counts, 0 to 255; stored as 255, which is always
    void."""
    label_map: LabelMap = field(default_factory=dict)
    """What the values in the masks mean, as {0: 0, 1: 255, 255: 1}: a class, or 255 for void; every
    value that occurs must be named; or cityscapes (its label ids), or ade20k (default: they are the
    classes)."""
    palette: Palette = field(default_factory=dict)
    """What the colours in the masks mean, as {road: [128, 64, 128], 255: [0, 0, 0]}: of a class by
    number or name, or of 255, void; a class may have a list of colours; or voc, or cityscapes
    (default: masks hold numbers)."""
    size: SizePx = 512
    """Crop of the training views in pixels, N or [height, width], multiples of 16."""
    val_size: SizePx | None = None
    """Size in pixels that validation images are padded to, N or [height, width], multiples of 16
    (default: size)."""
    download: bool = True
    """Download VOC 2012 (2 GB, checked by MD5) if root has no VOCdevkit/VOC2012."""

    def __post_init__(self) -> None:
        if self.unlabelled == "":
            raise refuse("dataset.unlabelled", "", f"a list, a folder, {REST} or null")
        self._check_folders()
        check_range("dataset.num_classes", self.num_classes, 2, 254)
        check_range("dataset.ignore_index", self.ignore_index, 0, 255)
        for name in ("size", "val_size"):
            check_size(f"dataset.{name}", getattr(self, name), stride=STRIDE)
        names = self.class_names
        if names is not None and not len(set(names)) == len(names) == self.num_classes:
            expected = f"{self.num_classes} different names, as dataset.num_classes says"
            raise refuse("dataset.class_names", self.class_names, expected)
        self._check_masks()

    def _check_folders(self) -> None:
        """Raise SettingsError if a folder of images or of masks lacks the other one."""
        check_range("dataset.val_fraction", self.val_fraction, 0.001, 0.9)
        check_range("dataset.val_seed", self.val_seed, 0, 2**63 - 1)
        for name, needed in FOLDERS.items():
            given = getattr(self, name)
            if given is not None and not getattr(self, needed):
                expected = f"dataset.{needed} beside it"
                raise refuse(f"dataset.{name}", given, expected)
        if self.images is not None and self.train_split == self.val_split:
            expected = "another name than dataset.train_split"
            raise refuse("dataset.val_split", self.val_split, expected)
        for name in ("image_name", "mask_name"):
            given = getattr(self, name)
            if given.count("{stem}") != 1 or "/" in given:
                raise refuse(f"dataset.{name}", given, "a name with {stem} in it, once")

    def _check_masks(self) -> None:
        """Raise SettingsError for what is no value, colour or class, and for two ways at once."""
        meant = next((name for name in ("label_map", "palette") if getattr(self, name)), None)
        if meant and self.ignore_index != VOID:
            expected = f"{VOID} beside dataset.{meant}, where void is {VOID}"
            raise refuse("dataset.ignore_index", self.ignore_index, expected)
        if all([self.class_of_value, self.colours]):  # both are checked
            expected = "none beside dataset.palette: a mask holds numbers or colours"
            raise refuse("dataset.label_map", self.label_map, expected)

    @cached_property
    def class_of_value(self) -> dict[int, int]:
        """Stored value -> class or 255, as `label_map` says; empty without it."""
        return resolve_label_map(self.label_map, num_classes=self.num_classes)

    @cached_property
    def colours(self) -> dict[int, list[Colour]]:
        """Class or 255 -> its colours, as `palette` says; empty without it."""
        return resolve_palette(self.palette, names=self.names)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of a training view in pixels."""
        return as_hw(self.size)

    @property
    def val_hw(self) -> tuple[int, int]:
        """Height and width of a padded validation image in pixels."""
        return as_hw(self.size if self.val_size is None else self.val_size)

    @property
    def names(self) -> list[str]:
        """One name a class."""
        if self.class_names is not None:
            return list(self.class_names)
        if self.num_classes == 19 and "cityscapes" in (self.label_map, self.palette):
            return CITYSCAPES_CLASSES
        return (
            VOC_CLASSES
            if self.num_classes == 21
            else [f"class {k}" for k in range(self.num_classes)]
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training views: random scale, crop, flip and colour.

    They are drawn from (seed, sample id, view) alone.
    """

    seed: int = 0
    """Seed of every view, 0 to 2^63-1."""
    views: int = 4
    """Views cached of each training image, 1 or more; an epoch uses one of them for each image."""
    scale_min: float = 0.5
    """Smallest factor on the image's size, > 0."""
    scale_max: float = 2.0
    """Largest factor on the image's size, >= scale_min."""
    flip: float = 0.5
    """Probability of a left-right flip, 0 to 1."""
    color_jitter: float = 0.3
    """Brightness, contrast and saturation are multiplied by a factor from 1-j to 1+j; 0 to 0.9."""

    def __post_init__(self) -> None:
        check_range("augment.seed", self.seed, 0, 2**63 - 1)
        check_range("augment.views", self.views, 1, 10_000)
        check_range("augment.scale_min", self.scale_min, 0.05, 20)
        check_range("augment.scale_max", self.scale_max, self.scale_min, 20)
        check_range("augment.flip", self.flip, 0, 1)
        check_range("augment.color_jitter", self.color_jitter, 0, 0.9)


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Coefficients kept of each lowrank level; more are nearer to the teacher and larger."""

    low: int = 96
    """1 to the channels of the level (layer1: 256)."""
    mid: int = 192
    """1 to the channels of the level (layer2: 512)."""
    high: int = 256
    """1 to the channels of the level (layer3: 1024)."""

    def __post_init__(self) -> None:
        for level in LEVELS:
            check_range(f"cache.rank.{level}", getattr(self, level), 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The Zarr v3 store between the two phases."""

    path: str | Path = Path("caches/voc2012")
    """Folder of the cache, a packed file (.h5) to train on, or s3://BUCKET/KEY (gs://, az://)."""
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    """Feature levels to cache, any of low, mid, high; [] caches logits only."""
    shard_samples: int = 16
    """Samples per shard file, 1 or more: the unit of work, commit and repair."""
    encoding: str | dict[str, str] = "float16"
    """How the teacher's answers are stored: a preset, exact (as float16), half or compact (a
    seventeenth); or a kind for each answer, float16, int8 or lowrank, as in {low: int8}."""
    rank: RankConfig = field(default_factory=RankConfig)
    """Coefficients of lowrank levels."""
    codec: str = "auto"
    """Lossless compression: raw, blosc-lz4 (fast), blosc-zstd (small) or another of zarr-python's
    (slow); auto is blosc-zstd if a level is lowrank, else raw."""
    check: Literal["always", "first", "never"] = "first"
    """Which reads of a sample are checked in training: always, the first of a process and the first
    after its file has changed, or never (damage may then pass unseen)."""
    stage_dir: Path | None = None
    """Folder for local copies of what training reads from slower storage, each copy verified
    (default: no copies)."""
    stage_gb: float = 100.0
    """Size limit of cache.stage_dir in GB, above 0; the least recently used copies are removed
    first, those of this run stay."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", clean_address("cache.path", self.path))
        check_range("cache.shard_samples", self.shard_samples, 1, 65_536)
        check_positive("cache.stage_gb", self.stage_gb)
        unknown = [level for level in self.levels if level not in LEVELS]
        if unknown or len(set(self.levels)) != len(self.levels):
            raise refuse("cache.levels", self.levels, "a list without repetition of low, mid, high")
        named = self.encoding if isinstance(self.encoding, dict) else {"logits": self.encoding}
        known = all(isinstance(kind, str) and kind in (*KINDS, *PRESETS) for kind in named.values())
        if not set(named) <= {"logits", *LEVELS} or not known:
            expected = (
                "exact, half or compact, or float16, int8 or lowrank for each of "
                "logits, low, mid, high"
            )
            raise refuse("cache.encoding", self.encoding, expected)
        if isinstance(self.encoding, dict) and self.kinds["logits"] == "lowrank":
            raise refuse(
                "cache.encoding", self.encoding, "float16 or int8 for logits, which have no basis"
            )

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of logits and of each cached level; float16 if `encoding` does not name it."""
        if isinstance(self.encoding, str):
            preset = as_preset(self.encoding)
            return {"logits": preset["logits"], **dict.fromkeys(self.levels, preset["features"])}
        return {
            name: as_kind(self.encoding.get(name, "float16")) for name in ("logits", *self.levels)
        }

    @property
    def codec_name(self) -> str:
        """What `codec` means: small integers of lowrank are made to be coded."""
        if self.codec != "auto":
            return self.codec
        return "blosc-zstd" if "lowrank" in self.kinds.values() else "raw"
