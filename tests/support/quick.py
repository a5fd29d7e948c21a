"""Caches in milliseconds: a stand-in for the teacher, three groups of tiny arrays, and what may
happen to their files.

For tests of what is around the teacher. Nothing here knows pytest, so that child processes can use
it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kdcache.config import Config
from kdcache.config.parser import make_config
from kdcache.data.sample_set import CLASS_NAMES, write_sample_set
from kdcache.data.voc import VOC_DIR
from kdcache.precompute import build
from kdcache.precompute.build import build_cache

CHANNELS = {"low": 4, "mid": 6, "high": 8}
STRIDES = {"low": 4, "mid": 8, "high": 16}
NUM_TRAIN, NUM_VAL, NUM_VIEWS, SHARD = 3, 2, 2, 2
GROUPS = {"val-v0000-g00000", *(f"train-v{v:04d}-g{g:05d}" for v in range(2) for g in range(2))}


class QuickTeacher:
    """Answers are sums of the image's cells: as exact, deterministic and different by sample as a
    network's.
    """

    def __init__(self, num_classes: int, levels: list[str]) -> None:
        self.channels = {"logits": num_classes, **{level: CHANNELS[level] for level in levels}}
        self.strides = {"logits": 8, **STRIDES}
        self.device = torch.device("cpu")

    def __call__(self, image_NHWC: Tensor) -> dict[str, Tensor]:
        x = image_NHWC.permute(0, 3, 1, 2).float().mean(1, keepdim=True) / 255
        return {
            name: F.avg_pool2d(x, self.strides[name])
            * torch.arange(1.0, count + 1)[None, :, None, None]
            for name, count in self.channels.items()
        }

    def probe_targets(self, *sizes: tuple[int, int]) -> dict[str, tuple[int, int]]:
        return {name: (count, self.strides[name]) for name, count in self.channels.items()}


def use_quick_teacher() -> None:
    """Replace the teacher in this process; a test undoes it with `monkeypatch.setattr(build,
    "build_teacher", ...)`.
    """
    build.build_teacher = make_quick_teacher


def make_quick_teacher(config: object, *, num_classes: int, levels: list[str], device: object):
    """In place of kdcache.models.teacher.build_teacher."""
    return QuickTeacher(num_classes, levels), {"quick": torch.ones(1)}


def write_quick_data(root: Path) -> Path:
    """A sample data set of 3 training and 2 validation images."""
    write_sample_set(root, num_train=NUM_TRAIN, num_val=NUM_VAL, size_px=48)
    return root


def write_unlabelled(root: Path, *, num: int = NUM_TRAIN) -> Path:
    """`num` more images in JPEGImages, in no list: `dataset.unlabelled rest` finds them."""
    images = root / VOC_DIR / "JPEGImages"
    for index in range(num):
        image = np.random.default_rng(index).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(image).resize((48, 40)).save(images / f"bare_{index:04d}.jpg")
    return root


def quick_given(
    data_root: Path, cache_root: Path, *, views: int = NUM_VIEWS, unlabelled: str | None = None
) -> dict:
    """Settings of a cache of five groups (three with one view): a view of train is two groups, the
    second one short. With 3 unlabelled images it has nine (five).
    """
    return {
        "dataset": {
            "root": str(data_root),
            "num_classes": len(CLASS_NAMES),
            "class_names": list(CLASS_NAMES),
            "size": 32,
            "val_size": 48,
            "unlabelled": unlabelled,
            "download": False,
        },
        "augment": {"views": views},
        "teacher": {"device": "cpu", "batch_size": 2},
        "cache": {"path": str(cache_root), "shard_samples": SHARD},
        "student": {"pretrained": False, "aspp_channels": 16},
        "train": {"epochs": 2, "batch_size": 2, "device": "cpu"},
    }


def build_quick(
    data_root: Path, cache_root: Path, *, views: int = NUM_VIEWS, unlabelled: str | None = None
) -> Config:
    """Build the cache with the quick teacher (which must be in use); returns its settings."""
    config = make_config(quick_given(data_root, cache_root, views=views, unlabelled=unlabelled))
    build_cache(config)
    return config


def snapshot(root: Path, *, documents: bool = True) -> dict[str, bytes]:
    """Contents of every file by its path: shards and, with `documents`, records and zarr.json; no
    manifest, locks, leases.
    """
    skipped = {"manifest.json", ".lock"}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in skipped and path.parent.name != "leases"
        and (documents or path.suffix != ".json")
    }  # fmt: skip
