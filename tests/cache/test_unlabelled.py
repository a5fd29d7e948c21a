"""The third split of a cache: images without labels, added to a finished cache or built with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.facts import hash_facts
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.config.parser import make_config
from kdcache.data.sample_set import write_sample_set
from kdcache.data.voc import VOC_DIR
from kdcache.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    DataError,
)
from kdcache.precompute.build import build_cache
from kdcache.seals import seal_json
from kdcache.storage import open_storage
from kdcache.training.settings import resolve_config
from tests.support.helpers import check_one_line, write_list
from tests.support.quick import quick_given, snapshot, write_quick_data, write_unlabelled


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """3 training and 2 validation images, and 3 in no list. Read only."""
    return write_unlabelled(write_quick_data(tmp_path_factory.mktemp("unlabelled")))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "cache"


def build(data: Path, root: Path, unlabelled: str | None = None, *, views: int = 2, **sections):
    """Phase one; returns its summary."""
    given = quick_given(data, root, views=views)
    given["dataset"]["unlabelled"] = unlabelled
    return build_cache(make_config(given, sections))


def split_files(files: dict[str, bytes], split: str = "unlabelled") -> dict[str, bytes]:
    """The shards, records and zarr.json of a split."""
    return {name: data for name, data in files.items() if f"/{split}-" in name or split in name}


def test_a_cache_without_the_split_says_nothing_of_it(data, root, quick_teacher):
    build(data, root)
    document = json.loads((root / "manifest.json").read_text())
    assert document["format_version"] == 2 and list(document["splits"]) == ["train", "val"]
    with pytest.raises(CacheIncompleteError) as error:
        open_split(root, "unlabelled")
    check_one_line(error, "split unlabelled is missing", "dataset.unlabelled to add it")


def test_a_split_added_to_a_finished_cache_changes_no_other_file(data, root, quick_teacher):
    build(data, root)
    before, manifest = snapshot(root), read_manifest(root)
    assert build(data, root, "rest").num_samples == 2 * 3
    after, grown = snapshot(root), read_manifest(root)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == split_files(after).keys()
    assert grown.format_version == 4 and manifest.format_version == 2
    assert grown.identity_hash == manifest.identity_hash == hash_facts(manifest.identity)
    assert grown.pictures_hash == manifest.pictures_hash
    assert grown.complete_views == {"train": 2, "val": 1, "unlabelled": 2}


def test_added_later_or_built_at_once_the_bytes_are_the_same(data, root, quick_teacher, tmp_path):
    build(data, root)
    build(data, root, "rest")
    build(data, tmp_path / "at_once", "rest")
    assert snapshot(tmp_path / "at_once") == snapshot(root)


def test_an_unlabelled_image_is_stored_as_a_labelled_one_less_its_label(tmp_path, quick_teacher):
    """The same images, once with labels as train and once without."""
    data = tmp_path / "data"
    write_sample_set(data, num_train=3, num_val=4, size_px=48)
    for name, numbers in (("val", (0, 1)), ("other", (2, 3))):
        write_list(data / VOC_DIR, name, [f"sample_val_{number:04d}" for number in numbers])
    build(data, tmp_path / "with")
    swapped = {"dataset": {"train_split": "other", "unlabelled": "train"}}
    build(data, tmp_path / "without", **swapped)
    labelled, bare = snapshot(tmp_path / "with"), snapshot(tmp_path / "without")
    shards = {name: stored for name, stored in labelled.items() if name.startswith("train/")}
    kept = {name for name in shards if not name.startswith("train/label/")}
    assert len(kept) == 1 + 5 * (1 + 4) < len(shards)
    assert {name: bare[name.replace("train", "unlabelled")] for name in kept} == {
        name: shards[name] for name in kept
    }
    for view, sample in ((0, 0), (1, 2)):
        (ours, _), (theirs, _) = (
            open_split(tmp_path / folder, split).find_record(view, sample)
            for folder, split in (("without", "unlabelled"), ("with", "train"))
        )
        assert (ours.sample_ids, ours.views) == (theirs.sample_ids, theirs.views)
        assert ours.files == {k: v for k, v in theirs.files.items() if k != "label"}


def test_running_without_the_setting_leaves_the_split_as_it_is(data, root, quick_teacher):
    build(data, root, "rest")
    before = snapshot(root)
    assert build(data, root).num_samples == 0
    assert snapshot(root) == before
    assert build(data, root, views=3).num_samples == 3  # of train alone
    manifest = read_manifest(root)
    assert manifest.complete_views == {"train": 3, "val": 1, "unlabelled": 2}
    assert manifest.information["settings"]["dataset"]["unlabelled"] == "rest"
    assert build(data, root, "rest", views=3).num_samples == 3  # views cost only themselves
    assert read_manifest(root).complete_views["unlabelled"] == 3


def test_other_images_are_another_cache(data, root, quick_teacher):
    write_list(data / VOC_DIR, "one", ["bare_0001"])
    write_list(data / VOC_DIR, "others", ["bare_0000", "bare_0002"])
    build(data, root, "one")
    before = snapshot(root)
    with pytest.raises(CacheMismatchError) as error:
        build(data, root, "others")
    check_one_line(error, "unlabelled.dataset.sha256 is", "; rebuild it in another folder")
    assert snapshot(root) == before


def test_images_of_val_are_refused_before_anything_is_written(data, root, quick_teacher):
    with pytest.raises(DataError, match="sample id is 'sample_val_0000', expected no image of val"):
        build(data, root, "val")
    assert not root.exists()


def test_records_of_other_images_that_outlived_their_manifest_are_refused(
    data, root, quick_teacher, tmp_path
):
    """A manifest from before the split was added has come back."""
    write_list(data / VOC_DIR, "fewer", ["bare_0001"])
    build(data, root)
    old = (root / "manifest.json").read_bytes()
    build(data, root, "rest")
    (root / "manifest.json").write_bytes(old)
    with pytest.raises(CacheMismatchError, match="unlabelled-v0000-g00000.* not that of these"):
        build(data, root, "fewer")
    assert build(data, root, "rest").num_samples == 0
    assert read_manifest(root).complete_views["unlabelled"] == 2


def test_bases_are_those_of_train(data, root, quick_teacher, tmp_path):
    compact = {"cache": {"encoding": {"low": "lowrank"}, "rank": {"low": 2}}}
    build(data, root, **compact)
    basis = (root / "train" / "low_basis" / "c" / "0" / "0").read_bytes()
    build(data, root, "rest", **compact)
    assert (root / "train" / "low_basis" / "c" / "0" / "0").read_bytes() == basis
    reader = open_split(root, "unlabelled")
    assert np.array_equal(reader.bases["low"], open_split(root, "train").bases["low"])
    assert reader.decode("low", 1, 2).shape == (4, 8, 8)
    identity = read_manifest(root).identity
    assert identity["unlabelled"]["encoding"] == identity["train"]["encoding"]


@pytest.mark.parametrize(
    ("cached", "given", "parts"),
    [
        ("rest", "fewer", ("is 'rest', expected 'fewer'", "; leave it out")),
        (None, "rest", ("is None, expected 'rest'", "with it to add them")),
    ],
)
def test_training_refuses_other_unlabelled_images(data, root, quick_teacher, cached, given, parts):
    build(data, root, cached)
    manifest = read_manifest(root)
    with pytest.raises(CacheMismatchError) as error:
        resolve_config(open_storage(root), manifest, {"dataset": {"unlabelled": given}})
    check_one_line(error, "dataset.unlabelled", *parts)
    for same in (cached, None):
        resolve_config(open_storage(root), manifest, {"dataset": {"unlabelled": same}})


def test_a_folder_of_unlabelled_images_may_be_written_in_any_way(
    data, root, quick_teacher, tmp_path, monkeypatch
):
    (tmp_path / "more").mkdir()
    for image in (data / VOC_DIR / "JPEGImages").glob("bare_*"):
        shutil.copy(image, tmp_path / "more")
    monkeypatch.chdir(tmp_path)
    build(data, root, "more")
    manifest = read_manifest(root)
    for same in ("more", "./more/", str(tmp_path / "more"), f"../{tmp_path.name}/more"):
        resolve_config(open_storage(root), manifest, {"dataset": {"unlabelled": same}})
    with pytest.raises(CacheMismatchError):
        resolve_config(open_storage(root), manifest, {"dataset": {"unlabelled": "another"}})


@pytest.mark.parametrize("change", ["label", "version", "shape"])
def test_a_manifest_whose_split_is_not_as_train_is_damaged(data, root, quick_teacher, change):
    build(data, root, "rest")
    document = json.loads((root / "manifest.json").read_text())
    document.pop("sha256")
    arrays = document["splits"]["unlabelled"]["arrays"]
    if change == "label":
        arrays.insert(1, {"name": "label", "item_shape": [32, 32], "dtype": "uint8"})
    elif change == "version":
        document["format_version"] = 3
    else:
        arrays[0]["item_shape"][0] += 16
    (root / "manifest.json").write_bytes(seal_json(document))
    with pytest.raises(CacheCorruptError, match="manifest is damaged"):
        read_manifest(root)
