"""What is looked at: the data set, and the views that are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.config.checks import as_hw, check_range, check_size
from kdcache.config.names import STRIDE, SizePx
from kdcache.errors import refuse

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]  # fmt: skip


REST = "rest"  # dataset.unlabelled: all images in neither list


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The data set in the VOC folder layout.

    ROOT/VOCdevkit/VOC2012/ holds JPEGImages, SegmentationClass and ImageSets.
    """

    root: Path = Path("data/voc")
    """Folder that holds VOCdevkit/."""
    train_split: str = "train"
    """List of training ids, ImageSets/Segmentation/NAME.txt; trainaug reads
    SegmentationClassAug."""
    val_split: str = "val"
    """List of validation ids."""
    unlabelled: str | None = None
    """Images without labels that the teacher is asked about as well: a list, whose labels need not
    exist, a folder of images, or rest: all of JPEGImages in neither list (default: none)."""
    num_classes: int = 21
    """Number of classes, labels 0..num_classes-1; 2 to 254."""
    class_names: list[str] | None = None
    """One name per class, for tables and reports (default: the VOC names for 21 classes, else
    class 0, class 1, ...)."""
    ignore_index: int = 255
    """Label value that no loss and no metric counts, 0 to 255; stored as 255, which is always
    void."""
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
        check_range("dataset.num_classes", self.num_classes, 2, 254)
        check_range("dataset.ignore_index", self.ignore_index, 0, 255)
        for name in ("size", "val_size"):
            check_size(f"dataset.{name}", getattr(self, name), stride=STRIDE)
        names = self.class_names
        if names is not None and not len(set(names)) == len(names) == self.num_classes:
            expected = f"{self.num_classes} different names, as dataset.num_classes says"
            raise refuse("dataset.class_names", self.class_names, expected)

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
