"""The checks of agreement find what they are for: in caches whose every checksum is right, but not
what was committed.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.layout import Group
from kdcache.cache.writer import GroupContents
from tests.integrity.agreement import (
    find_answers_of_other_views,
    find_answers_of_others,
    find_displaced_labels,
    find_exchanged_answers,
    find_exchanged_classes,
)
from tests.integrity.colour_set import NUM_CLASSES
from tests.integrity.opened import open_cache_whole
from tests.integrity.replay import find_data_set, find_unlike_replay
from tests.integrity.scenes import Scenes, read_scenes


def read_train(root: Path) -> Scenes:
    return read_scenes(open_cache_whole(root, seed=1), "train")


def find_all(scenes: Scenes) -> dict[str, list[str]]:
    """Findings of every check of agreement that found something."""
    found = {
        "others": find_answers_of_others(scenes),
        "exchanged": find_exchanged_answers(scenes),
        "views": find_answers_of_other_views(scenes),
        "classes": find_exchanged_classes(scenes, num_classes=NUM_CLASSES),
        "displaced": find_displaced_labels(scenes),
    }
    return {name: lines for name, lines in found.items() if lines}


def mirror_image(array: np.ndarray, views: list[dict], *, only: bool | None = None) -> None:
    """Exchange left and right inside the image, in place, of the samples with that flip (None:
    all).
    """
    for item, view in zip(array, views, strict=True):
        if only in (None, view["flip"]):
            _, _, bottom, right = view["image_box"]
            item[:bottom, :right] = item[:bottom, :right][:, ::-1].copy()


def test_a_true_cache_has_nothing_to_find(true_copy):
    for seed in range(5):
        opened = open_cache_whole(true_copy, seed=seed)
        assert all(not find_all(read_scenes(opened, split)) for split in ("train", "val"))


@pytest.mark.parametrize(
    ("order", "pairs"),
    [([0, 2, 1, 3], {(1, 2)}), ([3, 1, 2, 0], {(0, 3)}), ([0, 2, 3, 1], {(1, 2), (2, 3), (1, 3)})],
    ids=["two rare", "with the commonest", "three in a circle"],
)
def test_classes_in_another_order_are_found(doctor, order, pairs):
    def reorder(group: Group, contents: GroupContents) -> None:
        contents.arrays["logits"] = np.ascontiguousarray(contents.arrays["logits"][:, order])

    found = find_all(read_train(doctor(reorder)))["classes"]
    named = {
        tuple(map(int, re.search(r"classes (\d) and (\d) look exchanged", line).groups()))
        for line in found
    }
    assert named and named <= pairs


def test_answers_of_the_next_sample_are_found_everywhere(doctor):
    def shift(group: Group, contents: GroupContents) -> None:
        contents.arrays["logits"] = np.roll(contents.arrays["logits"], 1, axis=0)

    found = find_all(read_train(doctor(shift)))["others"]
    assert re.match(
        r"train: answers agree with their labels in 0\.\d+, expected 0\.\d+ or more", found[0]
    )
    assert len(found) > 1


def test_answers_of_the_next_sample_are_found_in_a_single_group(doctor):
    def shift_one(group: Group, contents: GroupContents) -> None:
        if group.name == "train-v0001-g00000":
            contents.arrays["logits"] = np.roll(contents.arrays["logits"], 1, axis=0)

    found = find_all(read_train(doctor(shift_one)))["others"]
    assert [line.split(":")[0] for line in found] == ["train view 1 samples 0 to 8"]


def test_two_exchanged_answers_are_found(doctor):
    def exchange(group: Group, contents: GroupContents) -> None:
        if group.name == "train-v0000-g00001":
            contents.arrays["logits"][[2, 5]] = contents.arrays["logits"][[5, 2]]

    found = find_all(read_train(doctor(exchange)))
    assert list(found) == ["exchanged"]
    assert found["exchanged"] == [
        "train view 0 samples 9 to 17: answers of 10 and 13 look exchanged"
    ]


def test_answers_of_another_view_are_found(doctor):
    first = {}

    def repeat(group: Group, contents: GroupContents) -> None:
        if group.split == "train":
            contents.arrays["logits"] = first.setdefault(group.index, contents.arrays["logits"])

    found = find_all(read_train(doctor(repeat)))["views"]
    assert len(found) == 1 and "train view 1: answers agree with its labels in" in found[0]


@pytest.mark.parametrize(("only", "kinds"), [(True, ["flipped"]), (None, ["flipped", "unflipped"])])
def test_labels_that_were_not_flipped_with_the_image_are_found(doctor, only, kinds):
    def mirror(group: Group, contents: GroupContents) -> None:
        if group.split == "train":
            mirror_image(contents.arrays["label"], contents.views, only=only)

    root = doctor(mirror)
    found = find_all(read_train(root))["displaced"]
    assert all(any(f"train, {kind} samples" in line for line in found) for kind in kinds)
    opened = open_cache_whole(root, seed=1)
    assert (
        "label differs in"
        in find_unlike_replay(opened, find_data_set(opened), "train", count=64)[0]
    )


def test_labels_moved_by_a_cell_are_found(doctor):
    def move(group: Group, contents: GroupContents) -> None:
        contents.arrays["label"] = np.roll(contents.arrays["label"], 8, axis=2)

    found = find_all(read_train(doctor(move)))["displaced"]
    assert any("with labels moved by 0 px down and -8 px right" in line for line in found)
