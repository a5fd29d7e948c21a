"""Makes the golden cache of the present format: `python tests/golden/make.py`, with no golden
folder of that version.

Run once per format version, never again for an old one: the files must stay those that this
    version's first release wrote. A stand-in for the teacher, sides that differ, no path of the
    machine: sample data in a temporary folder, relative to it.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from kdcache.cache.layout import FORMAT_VERSION  # noqa: E402
from kdcache.cache.manifest import read_manifest  # noqa: E402
from kdcache.cache.reader import CacheReader, open_split  # noqa: E402
from kdcache.config.parser import make_config, merge  # noqa: E402
from kdcache.data.voc import VOC_DIR  # noqa: E402
from kdcache.precompute.build import build_cache  # noqa: E402
from kdcache.storage.base import LEASES  # noqa: E402
from kdcache.storage.lock import LOCK  # noqa: E402
from tests.support.quick import (  # noqa: E402
    quick_given,
    use_quick_teacher,
    write_quick_data,
    write_unlabelled,
)

NAME = f"v{FORMAT_VERSION}"
GIVEN = {
    # What version 5 has and version 4 had not are parts and lists: see build_golden
    # What version 4 has and version 3 had not: a split of unlabelled images
    "dataset": {"size": [32, 16], "val_size": [32, 48], "unlabelled": "rest"},
    "teacher": {"weights": "stand-in"},
    # What version 3 has and version 2 had not: codecs and encodings, one of each
    "cache": {
        "codec": "blosc-zstd",
        "encoding": {"logits": "int8", "low": "lowrank", "mid": "int8"},
        "rank": {"low": 3},
    },
}


def build_golden(cache_root: Path) -> None:
    """3 training samples in 2 views, 2 of val, 3 without label in 2 views, 2 a shard: full groups
    and a short one, padding and scaled-down images. Then one without label gets one and goes first
    in train, and one more without label is found.
    """
    torch.set_num_threads(1)
    use_quick_teacher()
    data = write_unlabelled(write_quick_data(Path("data")))
    config = make_config(merge(quick_given(data, cache_root), GIVEN))
    build_cache(config)
    folder = data / VOC_DIR
    label = next((folder / "SegmentationClass").glob("sample_train_*"))
    Image.open(label).crop((0, 0, 48, 40)).save(folder / "SegmentationClass" / "bare_0001.png")
    train = folder / "ImageSets" / "Segmentation" / "train.txt"
    train.write_text(f"bare_0001\n{train.read_text()}")
    write_unlabelled(data, num=4)
    build_cache(config)
    (cache_root / LOCK).unlink()
    (cache_root / LEASES).rmdir()


def describe_contents(cache_root: Path) -> dict:
    """What readers must find: ids, sha256 of each array's bytes in C order, and what images and
    labels look like.
    """
    described, manifest = {}, read_manifest(cache_root)
    for split, layout in manifest.layouts.items():
        reader = CacheReader(cache_root, manifest, split, check="always", stored=True)
        grid = [
            (view, sample)
            for view in range(layout.num_views)
            for sample in range(layout.num_samples)
        ]
        items = {
            spec.name: [reader.read(spec.name, *place) for place in grid] for spec in layout.arrays
        }
        described[split] = {
            "sample_ids": reader.sample_ids,
            "sha256": {name: hash_arrays(arrays) for name, arrays in items.items()},
            "looks": [
                look(image, label)
                for image, label in zip(
                    items["image"], items.get("label", [None] * len(grid)), strict=True
                )
            ],
        }
    listed = {split: open_split(cache_root, split).sample_ids for split in manifest.lists}
    return described | ({"listed": listed} if listed else {})


def hash_arrays(arrays: list[np.ndarray]) -> str:
    """sha256 (hex) over their bytes, in C order and little endian."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


def look(image_HWC: np.ndarray, label_HW: np.ndarray | None) -> dict:
    """Top left pixel, sum of each colour, and how many pixels each label has, if there is one."""
    looks = {
        "top_left_rgb": image_HWC[0, 0].tolist(),
        "sums_rgb": image_HWC.sum((0, 1), dtype=np.int64).tolist(),
    }
    if label_HW is None:
        return looks
    values, counts = np.unique(label_HW, return_counts=True)
    pixels = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
    return {**looks, "label_px": pixels}


def main() -> None:
    """Build in a temporary folder, move the cache here, describe it beside."""
    if (HERE / NAME).exists():
        sys.exit(f"{HERE / NAME}: folder exists, expected none; a golden cache is made once")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        build_golden(Path(NAME))
        described = describe_contents(Path(NAME))
        shutil.copytree(NAME, HERE / NAME)
    (HERE / f"{NAME}.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
