"""A data set whose classes are told by colour, a stand-in teacher that sees colours, and caches of
both, true or doctored.

Letters: N batch, H, W height and width, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.random import Generator, Philox
from PIL import Image
from torch import Tensor

from kdcache.cache.layout import Group
from kdcache.cache.writer import GroupContents, write_group
from kdcache.config.parser import make_config
from kdcache.precompute import build
from kdcache.precompute import group as shard_group
from kdcache.precompute.build import build_cache
from kdcache.storage import open_storage
from tests.support.helpers import VOC, save_label, write_list
from tests.support.quick import QuickTeacher

COLOURS_K3 = np.array([(95, 95, 95), (200, 50, 50), (50, 180, 60), (60, 70, 210)], np.uint8)
NUM_CLASSES = len(COLOURS_K3)
NUM_TRAIN, NUM_VAL, NUM_VIEWS, SHARD = 18, 8, 2, 8
IMAGE_HW, SIZE_HW, VAL_HW = (
    (56, 72),
    [64, 48],
    [64, 80],
)  # no square, so that exchanged sides are seen

Change = Callable[[Group, GroupContents], None]


class ColourTeacher(QuickTeacher):
    """Scores are minus the squared distance to each class's colour, at stride 8."""

    def __call__(self, image_NHWC: Tensor) -> dict[str, Tensor]:
        pooled_NCHW = F.avg_pool2d(image_NHWC.permute(0, 3, 1, 2).float(), 8)
        colours_KC11 = torch.from_numpy(COLOURS_K3).float()[:, :, None, None]
        distance_NKHW = (pooled_NCHW[:, None] - colours_KC11).square().mean(2)
        return {**super().__call__(image_NHWC), "logits": -distance_NKHW / 1000}


def write_colour_set(root: Path) -> Path:
    """A data set in VOC layout: rectangles of three colours on grey, a void patch in each label."""
    base, rng = root / VOC, Generator(Philox(5))
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        ids = [f"colour_{split}_{index:02d}" for index in range(count)]
        write_list(base, split, ids)
        for sample_id in ids:
            label_HW = _draw_label(rng)
            Image.fromarray(COLOURS_K3[label_HW]).save(
                base / "JPEGImages" / f"{sample_id}.jpg", quality=92
            )
            _put(label_HW, rng, 255, least_px=6, most_px=8)
            save_label(base / "SegmentationClass" / f"{sample_id}.png", label_HW)
    return root


def build_colour_cache(data_root: Path, cache_root: Path, *, change: Change | None = None) -> Path:
    """Build the cache with the stand-in teacher; `change` doctors what each group holds before it
    is committed.
    """

    def change_and_write(root, manifest, group, *, contents, lease):
        if change:
            change(group, contents)
        return write_group(open_storage(root), manifest, group, contents=contents, lease=lease)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_teacher", _make_teacher)
        patch.setattr(shard_group, "write_group", change_and_write)
        build_cache(make_config(_settings(data_root, cache_root)))
    return cache_root


def _draw_label(rng: Generator) -> np.ndarray:
    label_HW = np.zeros(IMAGE_HW, np.uint8)
    for k in rng.permutation(np.arange(1, NUM_CLASSES)):
        _put(label_HW, rng, int(k), least_px=20, most_px=36)
    return label_HW


def _put(label_HW: np.ndarray, rng: Generator, value: int, *, least_px: int, most_px: int) -> None:
    """A rectangle somewhere, in place."""
    height, width = rng.integers(least_px, most_px, size=2, endpoint=True)
    top, left = rng.integers(0, IMAGE_HW[0] - height + 1), rng.integers(0, IMAGE_HW[1] - width + 1)
    label_HW[top : top + height, left : left + width] = value


def _make_teacher(config: object, *, num_classes: int, levels: list[str], device: object):
    """In place of kdcache.models.teacher.build_teacher."""
    return ColourTeacher(num_classes, levels), {"colours": torch.from_numpy(COLOURS_K3).float()}


def _settings(data_root: Path, cache_root: Path) -> dict:
    return {
        "dataset": {
            "root": str(data_root),
            "num_classes": NUM_CLASSES,
            "size": SIZE_HW,
            "val_size": VAL_HW,
            "download": False,
        },
        "augment": {"views": NUM_VIEWS, "scale_min": 0.8, "scale_max": 1.25},
        "teacher": {"device": "cpu", "batch_size": 4},
        "cache": {"path": str(cache_root), "shard_samples": SHARD},
    }
