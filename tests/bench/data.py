"""Caches and pictures made up for measurements: through kdcache's own writer, but no teacher is
asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from kdcache.cache.layout import ArraySpec, Group, SplitLayout
from kdcache.cache.lifecycle import complete_views, open_for_writing
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import CommitRecord, write_record
from kdcache.cache.settings import build_manifest
from kdcache.cache.writer import GroupContents, write_group
from kdcache.config import AugmentConfig, Config
from kdcache.config.parser import make_config
from kdcache.data.pictures import Sample, Split, voc_palette
from kdcache.data.views import draw
from kdcache.data.voc import VOC_DIR
from kdcache.storage import open_storage
from kdcache.storage.base import ShardFile
from tests.bench.adapter import LEVELS

NUM_CLASSES = 21
DIGITS = "0123456789abcdef"
NUM_PICTURES = 64  # different ones of a large data set; the others are names for the same files


def make_store(
    root: Path, *, px: int, num_samples: int, shard_samples: int, codec: str = "raw"
) -> Path:
    """A cache of one view with random numbers in it, whole and valid; made once."""
    if root.exists():
        return root
    manifest = _begin(
        root, px=px, num_samples=num_samples, shard_samples=shard_samples, num_views=1, codec=codec
    )
    rng = np.random.default_rng(0)
    for layout in manifest.layouts.values():
        for group in layout.groups():
            contents = _random_contents(rng, layout, group)
            with open_storage(root).take_lease(group.name, wait=True) as lease:
                write_group(open_storage(root), manifest, group, contents=contents, lease=lease)
    complete_views(root)
    return root


def make_documents(root: Path, *, num_samples: int, num_views: int, shard_samples: int) -> Path:
    """Manifest, zarr.json and commit records of a cache at 512x512, no shard files: what opening
    reads.
    """
    with without_flush():
        manifest = _begin(
            root, px=512, num_samples=num_samples, shard_samples=shard_samples, num_views=num_views
        )
        rng = np.random.default_rng(0)
        for layout in manifest.layouts.values():
            for group in layout.groups():
                write_record(
                    open_storage(root), group, _random_record(rng, manifest, layout, group)
                )
        complete_views(root)
    return root


def write_pictures(root: Path, *, lists: dict[str, range], px: int) -> Path:
    """A data set in VOC layout of plain pictures; a list of that name has these ids.

    Pictures 0 to NUM_PICTURES // 2 have one name each, so that a list of them can be val.
    """
    base, rng = root / VOC_DIR, np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)
    half = NUM_PICTURES // 2
    for number in range(max(numbers.stop for numbers in lists.values())):
        image, label = (
            (base / "JPEGImages" / f"{number:06d}.jpg"),
            (base / "SegmentationClass" / f"{number:06d}.png"),
        )
        if number < NUM_PICTURES:
            _write_picture(rng, image, label, px=px)
        else:
            image.hardlink_to(image.with_stem(f"{half + number % half:06d}"))
            label.hardlink_to(label.with_stem(f"{half + number % half:06d}"))
    for name, numbers in lists.items():
        ids = "".join(f"{number:06d}\n" for number in numbers)
        (base / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(ids)
    return root


@contextmanager
def without_flush() -> Iterator[None]:
    """Data that are thrown away afterwards need not survive a power loss."""
    with patch.object(os, "fsync", lambda descriptor: None):
        yield


def _begin(root: Path, **sizes: object) -> Manifest:
    """Manifest and zarr.json of a new cache."""
    _, manifest = plan_store(root, **sizes)
    return open_for_writing(root, manifest)


def plan_store(
    root: Path,
    *,
    px: int,
    num_samples: int,
    shard_samples: int,
    num_views: int,
    codec: str = "raw",
    levels: Mapping[str, tuple[int, int]] = LEVELS,
) -> tuple[Config, Manifest]:
    """Settings and manifest of a cache of made-up samples, one of them in val; levels -> (channels,
    stride).
    """
    given = {
        "dataset": {"size": px, "num_classes": NUM_CLASSES, "download": False},
        "augment": {"views": num_views},
        "cache": {
            "path": str(root),
            "shard_samples": shard_samples,
            "codec": codec,
            "levels": list(levels),
        },
    }
    config = make_config(given)
    manifest = build_manifest(
        config,
        splits={"train": _make_split("train", num_samples), "val": _make_split("val", 1)},
        weights_sha256="0" * 64,
        targets={"logits": (NUM_CLASSES, 8), **levels},
        device=torch.device("cpu"),
    )
    return config, manifest


def _make_split(name: str, num_samples: int) -> Split:
    samples = (
        Sample(f"2026_{number:06d}", Path("none.jpg"), Path("none.png"))
        for number in range(num_samples)
    )
    return Split(name, tuple(samples), "0" * 64)


def _random_contents(rng: np.random.Generator, layout: SplitLayout, group: Group) -> GroupContents:
    arrays = {
        spec.name: _random_block(rng, spec, group.stop - group.start) for spec in layout.arrays
    }
    return GroupContents(arrays, make_ids(group), _draw_views(layout, group))


def _random_block(rng: np.random.Generator, spec: ArraySpec, count: int) -> np.ndarray:
    shape = (count, *spec.item_shape)
    if spec.dtype == "uint8":
        return rng.integers(0, NUM_CLASSES if spec.name == "label" else 256, shape, np.uint8)
    if spec.codec:  # half of it zeros, as behind a ReLU: a codec must have something to do
        return np.maximum(rng.standard_normal(shape, np.float32), 0).astype(np.float16)
    return rng.random(shape, np.float32).astype(np.float16)


def _random_record(
    rng: np.random.Generator, manifest: Manifest, layout: SplitLayout, group: Group
) -> CommitRecord:
    """Numbers with as many digits as real ones have."""
    count = group.stop - group.start
    files, crcs = {}, {}
    for spec in layout.arrays:
        sha256 = "".join(DIGITS[i] for i in rng.integers(0, 16, 64))
        files[spec.name] = ShardFile(layout.shard_bytes(spec, group), sha256)
        crcs[spec.name] = [int(crc) for crc in rng.integers(0, 2**32, count)]
    views = _draw_views(layout, group)
    return CommitRecord(manifest.split_hash(layout.split), make_ids(group), files, crcs, views)


def make_ids(group: Group) -> list[str]:
    """Of a group's samples."""
    return [f"2026_{number:06d}" for number in range(group.start, group.stop)]


def _draw_views(layout: SplitLayout, group: Group) -> list[dict]:
    """Parameters as phase one keeps them, of images of VOC's usual size."""
    size_hw, image_hw = layout.array("label").item_shape, (375, 500)
    if layout.split == "val":
        whole = {"image_box": (0, 0, *size_hw), "image_hw": size_hw}
        return [whole for _ in make_ids(group)]
    views = []
    for id in make_ids(group):
        view = draw(
            AugmentConfig(), sample_id=id, view=group.view, image_hw=image_hw, size_hw=size_hw
        )
        views.append({**view.to_dict(), "image_box": view.image_box})
    return views


def _write_picture(rng: np.random.Generator, image: Path, label: Path, *, px: int) -> None:
    coarse = Image.fromarray(rng.integers(0, 256, (px // 8, px // 8, 3), np.uint8))
    coarse.resize((px, px)).save(image)
    classes = Image.fromarray(rng.integers(0, NUM_CLASSES, (px // 8, px // 8), np.uint8)).resize(
        (px, px), Image.NEAREST
    )
    classes.putpalette(voc_palette().tobytes())
    classes.save(label)


def find_shards(root: Path, split: str = "train") -> list[Path]:
    """All shard files of a split."""
    return sorted(
        path for path in (root / split).rglob("*") if path.is_file() and path.suffix != ".json"
    )
