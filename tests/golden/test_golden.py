"""A cache once written stays readable: the golden cache of every released format, by us and by
others' Zarr readers.
"""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from kdcache.cache.layout import FORMAT_VERSION, find_role
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader, open_split
from kdcache.cache.settings import dataset_facts, read_config, teacher_facts, train_view_rule
from kdcache.cache.verify import verify_cache

GOLDEN = Path(__file__).parent
FIRST_RELEASED = 2  # format 1 never left the house
RELEASED = range(FIRST_RELEASED, FORMAT_VERSION + 1)
CASES = [
    (version, split, array.name)
    for version in RELEASED
    for split, layout in read_manifest(GOLDEN / f"v{version}").layouts.items()
    for array in layout.arrays
]
SPLIT_CASES = sorted({case[:2] for case in CASES})


def read_recorded(version: int) -> dict:
    """What make.py found in the cache when it was made."""
    return json.loads((GOLDEN / f"v{version}.json").read_text())


def read_with_kdcache(root: Path, split: str, name: str) -> np.ndarray:
    reader = CacheReader(root, read_manifest(root), split, check="always", stored=True)
    grid = [
        [reader.read(name, view, n) for n in range(reader.layout.num_samples)]
        for view in range(reader.num_views)
    ]
    return np.array(grid)


def read_with_zarr(root: Path, split: str, name: str) -> np.ndarray:
    return zarr.open_group(root, mode="r")[f"{split}/{name}"][:]


def read_with_tensorstore(root: Path, split: str, name: str) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(root / split / name)}}
    return np.asarray(tensorstore.open(spec, open=True, read=True).result().read().result())


def test_every_released_format_has_a_golden_cache_and_nothing_else_has():
    folders = {
        path.name for path in GOLDEN.iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert folders == {f"v{version}" for version in RELEASED}
    assert {path.stem for path in GOLDEN.glob("*.json")} == folders


@pytest.mark.parametrize("version", RELEASED)
def test_golden_cache_is_of_its_version_and_unharmed(version):
    root = GOLDEN / f"v{version}"
    assert json.loads((root / "manifest.json").read_text())["format_version"] == version
    findings = verify_cache(root, data=True)
    assert not findings.damage and not findings.unwritten
    assert findings.num_groups == {2: 5, 3: 5, 4: 9, 5: 13}[version]


@pytest.mark.parametrize(("version", "split", "name"), CASES)
@pytest.mark.parametrize("read", [read_with_kdcache, read_with_zarr, read_with_tensorstore])
def test_readers_return_the_recorded_arrays(version, split, name, read):
    root = GOLDEN / f"v{version}"
    array = read(root, split, name)
    spec = read_manifest(root).layouts[split].array(name)
    views, samples = (1 if split == "val" else 2), {"val": 2, "train": 3, "unlabelled": 3}
    assert array.shape == (views, samples.get(split, 1), *spec.item_shape)
    assert array.dtype == spec.dtype
    stored = array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert hashlib.sha256(stored).hexdigest() == read_recorded(version)[split]["sha256"][name]


@pytest.mark.parametrize(("version", "split", "name"), CASES)
def test_readers_agree(version, split, name):
    root = GOLDEN / f"v{version}"
    ours = read_with_kdcache(root, split, name)
    assert np.any(ours)
    assert np.array_equal(ours, read_with_zarr(root, split, name))
    assert np.array_equal(ours, read_with_tensorstore(root, split, name))


@pytest.mark.parametrize(("version", "split"), SPLIT_CASES)
def test_samples_images_and_labels_look_as_recorded(version, split):
    root, recorded = GOLDEN / f"v{version}", read_recorded(version)[split]
    reader = CacheReader(root, read_manifest(root), split, stored=True)
    assert reader.sample_ids == recorded["sample_ids"]
    images, labels = read_with_kdcache(root, split, "image"), []
    if find_role(split) != "unlabelled":
        labels = read_with_kdcache(root, split, "label")
        labels = labels.reshape(-1, *labels.shape[2:])
    looks = recorded["looks"]
    assert images.reshape(-1, *images.shape[2:])[:, 0, 0].tolist() == [
        look["top_left_rgb"] for look in looks
    ]
    assert images.sum((2, 3), dtype=np.int64).reshape(-1, 3).tolist() == [
        look["sums_rgb"] for look in looks
    ]
    counts = [np.bincount(label.reshape(-1)) for label in labels]
    assert [{str(k): int(count[k]) for k in np.flatnonzero(count)} for count in counts] == [
        x["label_px"] for x in looks if find_role(split) != "unlabelled"
    ]


@pytest.mark.parametrize("version", RELEASED)
def test_the_settings_of_a_released_cache_still_ask_for_it(version):
    """A setting that was added since must leave the caches of before what they are."""
    manifest = read_manifest(GOLDEN / f"v{version}")
    config, identity = read_config(manifest), manifest.identity["train"]
    now = {
        "dataset": dataset_facts(config, train=True),
        "augment": train_view_rule(config),
        "teacher": teacher_facts(config, train=True),
    }
    data = {"sha256", "weights_sha256"}  # of files, which are not here
    then = {part: {k: v for k, v in identity[part].items() if k not in data} for part in now}
    assert now == then, (
        "every cache of before would be another one: in kdcache/cache/settings.py leave a new "
        "setting out of the identity where its value does what was done before (as high_stride is)"
    )


@pytest.mark.parametrize("version", RELEASED)
def test_golden_cache_names_no_place_on_the_machine_that_made_it(version):
    settings = read_manifest(GOLDEN / f"v{version}").information["settings"]
    places = [
        settings["dataset"]["root"],
        settings["teacher"]["weights"],
        settings["cache"]["path"],
        settings["run"]["dir"],
    ]
    assert not any(Path(place).is_absolute() for place in places)


def test_the_golden_cache_of_version_5_has_the_lists_of_the_day_it_was_made():
    root, expected = GOLDEN / "v5", read_recorded(5)["listed"]
    assert {split: open_split(root, split).sample_ids for split in expected} == expected
    assert expected["train"][0] == "bare_0001" and "bare_0001" not in expected["unlabelled"]
    train = open_split(root, "train")
    assert np.array_equal(train.read("image", 1, 0), read_with_zarr(root, "train_2", "image")[1, 0])
    assert np.array_equal(train.read("image", 1, 1), read_with_zarr(root, "train", "image")[1, 0])


def test_the_golden_cache_of_version_3_has_one_of_each_encoding():
    root = GOLDEN / "v3"
    reader = open_split(root, "train")
    kinds = {name: encoding.kind for name, encoding in reader.encodings.items()}
    assert kinds == {"logits": "int8", "low": "lowrank", "mid": "int8", "high": "float16"}
    basis = read_with_zarr(root, "train", "low_basis")
    assert basis.shape == (4, 3) and np.array_equal(basis, reader.bases["low"])
    coefficients, scale = (read_with_zarr(root, "train", name) for name in ("low", "mid_scale"))
    low = np.einsum("cr,vnrhw->vnchw", basis, 0.09 * coefficients.astype(np.float32))
    np.testing.assert_allclose(low[1, 2], reader.decode("low", 1, 2), rtol=1e-5, atol=1e-6)
    mid = read_with_zarr(root, "train", "mid")[0, 1] * scale[0, 1][:, None, None]
    np.testing.assert_allclose(mid, reader.decode("mid", 0, 1), rtol=1e-6)


def test_the_maker_of_golden_caches_finds_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    make = runpy.run_path(str(Path(__file__).with_name("make.py")))
    assert callable(make["build_golden"])
