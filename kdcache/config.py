"""Every setting of both programs, one frozen dataclass a section; all defaults live here.

The defaults are `configs/voc2012.yaml`: PASCAL VOC 2012 at 512x512, the teacher with torchvision's VOC weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from kdcache.checks import as_hw, check_positive, check_range, check_size, refuse

STRIDE = 16  # the coarsest stored grid; crops are multiples of it, so that every grid is exact
VOID = 255  # stored label of what no loss and no metric counts: void pixels, padding
LEVELS = ("low", "mid", "high")
VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip

SizePx = int | list[int]
KINDS = ("float16", "int8", "lowrank")  # how an answer of the teacher may be stored
PRESETS = {"exact": "float16", "half": "int8", "compact": "lowrank"}
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The data set, in VOC folder layout: ROOT/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets}."""

    root: Path = Path("data/voc")
    """Folder that holds VOCdevkit/."""
    train_split: str = "train"
    """List of training ids, ImageSets/Segmentation/NAME.txt; trainaug reads SegmentationClassAug."""
    val_split: str = "val"
    """List of validation ids."""
    num_classes: int = 21
    """Number of classes, labels 0..num_classes-1; 2 to 254."""
    class_names: list[str] | None = None
    """One name a class, for tables and reports; the VOC names for 21 classes, else class 0, class 1, ..."""
    ignore_index: int = 255
    """Label value that no loss and no metric counts, 0 to 255; stored as 255, which is always void."""
    size: SizePx = 512
    """Crop of the training views in pixels, N or [height, width], multiples of 16."""
    val_size: SizePx | None = None
    """Validation images are padded to this, pixels, N or [height, width], multiples of 16 (default: size)."""
    download: bool = True
    """Download VOC 2012 (2 GB, checked by MD5) where root has no VOCdevkit/VOC2012."""

    def __post_init__(self) -> None:
        check_range("dataset.num_classes", self.num_classes, 2, 254)
        check_range("dataset.ignore_index", self.ignore_index, 0, 255)
        for name in ("size", "val_size"):
            check_size(f"dataset.{name}", getattr(self, name), stride=STRIDE)
        if self.class_names is not None and len(set(self.class_names)) != self.num_classes:
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
        return VOC_CLASSES if self.num_classes == 21 else [f"class {k}" for k in range(self.num_classes)]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training views: random scale, crop, flip and colour, drawn from (seed, sample id, view) alone."""

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
class LayerConfig:
    """Which part of the teacher's backbone each feature level is taken from."""

    low: str = "layer1"
    """Backbone part behind low (layer1: 256 channels, stride 4)."""
    mid: str = "layer2"
    """Backbone part behind mid (layer2: 512 channels, stride 8)."""
    high: str = "layer3"
    """Backbone part behind high (layer3: 1024 channels, stride 8, brought to stride 16)."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen teacher, asked once."""

    arch: Literal["fcn_resnet50", "fcn_resnet101"] = "fcn_resnet50"
    """torchvision segmentation model."""
    weights: str = "COCO_WITH_VOC_LABELS_V1"
    """torchvision weights name, or path of a checkpoint (.pth, .pt; for example from `cache_teacher fit`)."""
    layers: LayerConfig = field(default_factory=LayerConfig)
    """Feature taps by level."""
    high_stride: Literal[8, 16] = 16
    """Pixels between positions of high, brought there from its layer: 16 is the student's grid, 8 what layer3 and layer4 have."""
    precision: Precision = "float32"
    """Arithmetic of the teacher's forward pass; float32 is exact (TF32 off), the others use autocast."""
    batch_size: int = 8
    """Images per forward pass, 1 or more; a batch never crosses a shard group."""
    device: str = "auto"
    """auto (cuda where present), cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check_range("teacher.batch_size", self.batch_size, 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fine-tuning a teacher: `python -m cache_teacher fit`."""

    epochs: int = 30
    """Passes over the training split, 1 or more."""
    lr: float = 1e-3
    """Peak learning rate of AdamW under a one-cycle schedule, > 0."""
    batch_size: int = 8
    """Images per step, 2 or more."""
    out: Path = Path("teachers/fcn_resnet50.pth")
    """Checkpoint to write; teacher.weights accepts it."""

    def __post_init__(self) -> None:
        check_range("fit.epochs", self.epochs, 1, 1_000_000)
        check_range("fit.batch_size", self.batch_size, 2, 65_536)
        check_positive("fit.lr", self.lr)


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

    path: Path = Path("caches/voc2012")
    """Folder of the cache."""
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    """Feature levels to cache, any of low, mid, high; [] caches logits only."""
    shard_samples: int = 16
    """Samples per shard file, 1 or more: the unit of work, commit and repair."""
    encoding: str | dict[str, str] = "float16"
    """float16 (exact), int8 (half) or lowrank (compact: a tenth) for all of the teacher's answers, or by name: {low: int8}."""
    rank: RankConfig = field(default_factory=RankConfig)
    """Coefficients of lowrank levels."""
    codec: str = "auto"
    """Lossless: raw, blosc-lz4 (fast), blosc-zstd (small), another of zarr-python's (slow); auto is blosc-zstd beside lowrank."""
    check: Literal["always", "first", "never"] = "first"
    """Which readings of a sample training checks: always, the first of a process, never (damage may then pass unseen)."""

    def __post_init__(self) -> None:
        check_range("cache.shard_samples", self.shard_samples, 1, 65_536)
        unknown = [level for level in self.levels if level not in LEVELS]
        if unknown or len(set(self.levels)) != len(self.levels):
            raise refuse("cache.levels", self.levels, "a list without repetition of low, mid, high")
        named = self.encoding if isinstance(self.encoding, dict) else {"logits": self.encoding}
        known = all(isinstance(kind, str) and kind in (*KINDS, *PRESETS) for kind in named.values())
        if not set(named) <= {"logits", *LEVELS} or not known:
            expected = (
                "float16, int8, lowrank, exact, half or compact, or one of them for each of logits, low, mid, high"
            )
            raise refuse("cache.encoding", self.encoding, expected)
        if isinstance(self.encoding, dict) and self.kinds["logits"] == "lowrank":
            raise refuse("cache.encoding", self.encoding, "float16 or int8 for logits, which have no basis")

    @property
    def kinds(self) -> dict[str, str]:
        """Encoding of logits and of each cached level: float16, int8 or lowrank; "lowrank" for all is int8 for logits."""
        named = self.encoding if isinstance(self.encoding, dict) else dict.fromkeys(("logits", *LEVELS), self.encoding)
        kinds = {name: PRESETS.get(named.get(name), named.get(name, "float16")) for name in ("logits", *self.levels)}
        if not isinstance(self.encoding, dict) and kinds["logits"] == "lowrank":
            kinds["logits"] = "int8"
        return kinds

    @property
    def codec_name(self) -> str:
        """What `codec` means: small integers of lowrank are made to be coded."""
        if self.codec != "auto":
            return self.codec
        return "blosc-zstd" if "lowrank" in self.kinds.values() else "raw"


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """MobileNetV3-Small + ASPP + skip connections."""

    pretrained: bool = True
    """Start from torchvision's ImageNet weights (10 MB download, hash-checked)."""
    aspp_channels: int = 96
    """Channels of each ASPP branch, 8 or more; 96 gives 2.8 M parameters at 21 classes."""

    def __post_init__(self) -> None:
        check_range("student.aspp_channels", self.aspp_channels, 8, 4096)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """L = alpha CE + beta T^2 KL(teacher || student) + gamma mean over levels of (1 - cosine)."""

    alpha: float = 1.0
    """Weight of the cross-entropy with the labels, >= 0."""
    beta: float = 0.5
    """Weight of the divergence from the teacher's softened classes, >= 0; 0 reads no logits."""
    gamma: float = 0.3
    """Weight of the feature distance, >= 0; 0 reads no features."""
    temperature: float = 4.0
    """Softening T of both sides of the divergence, > 0."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            check_range(f"loss.{name}", getattr(self, name), 0, 1e6)
        check_positive("loss.temperature", self.temperature)
        if self.alpha == self.beta == self.gamma == 0:
            raise refuse("loss.alpha", 0.0, "one of loss.alpha, loss.beta, loss.gamma above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training of the student."""

    epochs: int = 30
    """Passes over the training samples, 1 or more."""
    batch_size: int = 8
    """Samples per step, 2 or more; a last batch of one sample joins the batch before it."""
    lr: float = 1e-3
    """Learning rate of Adam at the start of its cosine, > 0."""
    seed: int = 0
    """Seed of initialisation, data order, flips, crops and dropout, 0 to 2^63-1."""
    views: Literal["cycle", "random"] = "cycle"
    """Which of its cached views a sample shows in an epoch: each in turn, or one drawn anew."""
    flip: float = 0.0
    """Probability that a sample is flipped left-right in an epoch, its cached targets with it, 0 to 1; 0 is exact."""
    crop: SizePx | None = None
    """Random part of each view to train on, targets cut alike, pixels, N or [height, width], multiples of 16 (default: all)."""
    device: str = "auto"
    """auto (cuda where present), cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the student: auto is bfloat16 autocast on cuda and float32 on cpu."""
    residency: Literal["auto", "disk", "ram", "gpu"] = "auto"
    """Where samples stay after their first reading: auto takes GPU memory, else RAM (mapped files), where all fit, else disk."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for student and loss: auto is on for cuda, off for cpu, where it gains less than it takes; a run keeps it."""

    def __post_init__(self) -> None:
        check_range("train.epochs", self.epochs, 1, 1_000_000)
        check_range("train.batch_size", self.batch_size, 2, 65_536)
        check_range("train.seed", self.seed, 0, 2**63 - 1)
        check_range("train.flip", self.flip, 0, 1)
        check_size("train.crop", self.crop, stride=STRIDE)
        check_positive("train.lr", self.lr)

    @property
    def crop_hw(self) -> tuple[int, int] | None:
        """Height and width of what is trained on in pixels; None for whole views."""
        return None if self.crop is None else as_hw(self.crop)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a training run lives."""

    dir: Path = Path("runs/student_kd")
    """Folder of the run; baselines lie beside it in baseline-<hash>/."""
    resume: bool = False
    """Continue an interrupted run in run.dir."""
    baseline: bool = True
    """Train the same student without the teacher first (equal budget), unless that was done before."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All sections."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


def config_to_dict(config: object) -> dict:
    """Plain nested dict of a config or section, paths as text: fit for YAML and JSON."""
    return _plain(asdict(config))


def config_from_dict(values: dict, *, section: type = Config) -> object:
    """The inverse of `config_to_dict`; missing fields take their defaults. Raises SettingsError on bad values."""
    types = {"root": Path, "out": Path, "path": Path, "dir": Path}
    nested = {f.name: f.default_factory for f in fields(section) if isinstance(f.default_factory, type)}
    made = {}
    for name, value in values.items():
        if name in nested:
            made[name] = config_from_dict(value, section=nested[name])
        else:
            made[name] = types[name](value) if name in types else value
    return section(**made)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, Path) else value
