"""The checks of files, records and contents find what they are for, also where every checksum is
right.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from kdcache.cache.layout import Group
from kdcache.cache.manifest import read_manifest, write_manifest
from kdcache.cache.verify import verify_cache
from kdcache.cache.writer import GroupContents
from kdcache.precompute.score import TeacherScore
from tests.integrity.colour_set import NUM_CLASSES, NUM_TRAIN
from tests.integrity.opened import open_cache_whole
from tests.integrity.replay import find_data_set, find_unlike_replay
from tests.integrity.stored import find_bad_padding, find_nonfinite, find_unknown_labels
from tests.integrity.structure import (
    choose_within,
    find_id_disorder,
    find_missing_records,
    find_strays,
)


def test_images_and_labels_that_the_data_set_does_not_give_are_found(doctor):
    def spoil(group: Group, contents: GroupContents) -> None:
        if group.index == 0:
            contents.arrays["image"][3, 5, 5, 1] ^= 1
            contents.arrays["label"][4, 0, :2] ^= 1

    opened = open_cache_whole(doctor(spoil), seed=1)
    for split, places in (("train", [(0, 3), (0, 4), (1, 3), (1, 4)]), ("val", [(0, 3), (0, 4)])):
        found = find_unlike_replay(opened, find_data_set(opened), split, count=64)
        what = {3: "image differs in 1 pixels", 4: "label differs in 2 pixels"}
        assert found == [
            f"{opened.name(split, v, n)}: {what[n]} from the one drawn again" for v, n in places
        ]


def test_parameters_that_were_not_drawn_are_found(doctor):
    def lie(group: Group, contents: GroupContents) -> None:
        contents.views[1] = {**contents.views[1], "image_box": (0, 0, 48, 48)}

    opened = open_cache_whole(doctor(lie), seed=1)
    found = find_unlike_replay(opened, find_data_set(opened), "val", count=64)
    assert len(found) == 1 and "val view 0 sample 1 (colour_val_01): record says" in found[0]


def test_another_data_set_is_found_and_an_absent_one_is_none(
    true_copy, colour_data, tmp_path, monkeypatch
):
    opened = open_cache_whole(true_copy, seed=1)
    root = shutil.copytree(colour_data, tmp_path / "data")
    monkeypatch.setitem(opened.manifest.information["settings"]["dataset"], "root", str(root))
    names = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    names.write_text("\n".join(reversed(names.read_text().split())))
    found = find_unlike_replay(opened, find_data_set(opened), "train", count=64)
    assert found == [f"train: sample ids are not those of the data set at {root}"]
    shutil.rmtree(root)
    assert find_data_set(opened) is None


def test_unknown_labels_are_found(doctor, monkeypatch):
    monkeypatch.setattr(
        "kdcache.precompute.build.score_teacher", lambda *args, **kwargs: TeacherScore(0.0, 0.0, [])
    )

    def spoil(group: Group, contents: GroupContents) -> None:
        if group.split == "train":
            contents.arrays["label"][0, 7, 7] = (254, NUM_CLASSES, 255)[group.index]

    found = find_unknown_labels(open_cache_whole(doctor(spoil), seed=1), "train", count=256)
    told = [line.replace(" (colour_train_", " (") for line in found]
    assert told[:2] == [
        f"train view 0 sample {n} ({n:02d}): labels [{k}], expected 0 to 3 or 255"
        for n, k in ((0, 254), (8, 4))
    ]
    assert len(found) == 4


def test_values_that_are_not_finite_are_found(doctor):
    names = ["logits", "low", "mid", "high"]

    def spoil(group: Group, contents: GroupContents) -> None:
        if group.name == "train-v0001-g00001":
            for row, name in enumerate(names):
                contents.arrays[name][row, 0, 0, 0] = np.inf
                contents.arrays[name][row + 4, -1, -1, -1] = np.nan

    found = find_nonfinite(open_cache_whole(doctor(spoil), seed=1), "train", count=64)
    where = [f"train view 1 sample {n} (colour_train_{n:02d})" for n in range(8, 16)]
    assert found == [
        f"{w}: {name} has values that are not finite"
        for w, name in zip(where, names * 2, strict=True)
    ]


def test_padding_that_is_not_where_the_record_says_is_found(doctor):
    def spoil(group: Group, contents: GroupContents) -> None:
        contents.arrays["image"][0, -1, -1] = 0
        contents.arrays["label"][1, -1, -1] = 0

    found = find_bad_padding(open_cache_whole(doctor(spoil), seed=1), "val", count=64)
    assert [line.split("): ")[1][:20] for line in found] == [
        "image goes on outsid",
        "label has classes ou",
    ]


def test_ids_that_occur_twice_are_found(doctor):
    def rename(group: Group, contents: GroupContents) -> None:
        if group.split == "val":
            contents.ids[3] = contents.ids[0]

    root = doctor(rename)
    assert find_id_disorder(root, read_manifest(root)) == [
        "val-v0000-g00000: sample 'colour_val_00' occurs twice in val",
    ]


def test_of_a_half_built_cache_only_complete_views_are_looked_at(true_copy):
    write_manifest(
        true_copy, replace(read_manifest(true_copy), complete_views={"train": 1, "val": 0})
    )
    for name in ("train-v0001-g00002", "val-v0000-g00000"):
        (true_copy / "commits" / f"{name}.json").unlink()
    opened = open_cache_whole(true_copy, seed=1)
    assert {split: reader.num_views for split, reader in opened.readers.items()} == {"train": 1}
    assert not find_missing_records(true_copy, opened.manifest) and not find_id_disorder(
        true_copy, opened.manifest
    )


def test_lost_commit_records_are_found(true_copy):
    (true_copy / "commits" / "train-v0001-g00002.json").unlink()
    assert find_missing_records(true_copy, read_manifest(true_copy)) == [
        "train-v0001-g00002: commit record is missing"
    ]


@pytest.mark.parametrize(
    "name",
    ["train/low/c/2/0/0/0/0", "val/label/c/0/1/0/0", "train/image/c/0/3/0/0/0", "val/mid/c/x"],
)
def test_files_beyond_the_grid_are_found_and_half_written_ones_are_not(true_copy, name):
    stray = true_copy / name
    stray.parent.mkdir(parents=True)
    stray.with_name(f"{stray.name}.partial").write_bytes(b"torn")
    assert not find_strays(true_copy, read_manifest(true_copy))
    stray.write_bytes(b"stray")
    assert find_strays(true_copy, read_manifest(true_copy)) == [f"{name}: file is beyond the grid"]


def test_of_a_large_cache_only_some_groups_are_read(true_copy):
    manifest = read_manifest(true_copy)
    layout = manifest.layouts["train"]
    size_bytes = 2 * layout.group_bytes(layout.group(0, 0))
    chosen = [choose_within(manifest, size_bytes=size_bytes, seed=seed) for seed in range(10)]
    read = [verify_cache(true_copy, data=True, choose=choose).num_bytes for choose in chosen]
    assert 0 < min(read) < max(read) <= size_bytes
    assert (
        verify_cache(
            true_copy, data=True, choose=choose_within(manifest, size_bytes=1, seed=0)
        ).num_bytes
        > 0
    )


def test_more_places_than_there_are_are_all_places(true_copy):
    opened = open_cache_whole(true_copy, seed=3)
    assert opened.draw_places("train", count=1000) == [
        (v, n) for v in range(2) for n in range(NUM_TRAIN)
    ]
    assert len(set(opened.draw_places("val", count=5))) == 5
