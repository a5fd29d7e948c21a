"""Masks whose numbers are not the classes: `dataset.label_map` says what they mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.cache.settings import dataset_facts
from kdcache.config import DatasetConfig, config_to_dict
from kdcache.config.options import override
from kdcache.config.parser import make_config, read_settings
from kdcache.data.labels import check_classes
from kdcache.data.pictures import read_sample
from kdcache.data.voc import read_split
from kdcache.errors import DataError, SettingsError
from tests.support.helpers import VOC, check_one_line, save_label, write_voc

MAP = {"0": 0, "7": 255, "40": 1, "255": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training images, whose masks hold 0, 7, 40 and 255."""
    base = write_voc(tmp_path, {"train": ["a", "b"]}, num_classes=2)
    label = np.zeros((20, 24), np.uint8)
    label[2:4], label[5:7], label[9:] = 7, 40, 255
    for name in ("a", "b"):
        save_label(base / "SegmentationClass" / f"{name}.png", label)
    return tmp_path


def config_for(root: Path, **changes) -> DatasetConfig:
    return DatasetConfig(root=root, num_classes=2, download=False, **changes)


def test_values_become_the_classes_they_are_mapped_to(root: Path):
    config = config_for(root, label_map=MAP)
    _, label = read_sample(config, read_split(config, "train").samples[0])
    assert label.dtype == np.uint8
    assert (label[2:4] == 255).all() and (label[5:7] == 1).all() and (label[9:] == 1).all()
    assert (label[:2] == 0).all() and (label[4] == 0).all()


@pytest.mark.parametrize(("left_out", "num_pixels"), [("7", 48), ("255", 264)])
def test_value_left_out_is_refused_with_its_pixels(root: Path, left_out: str, num_pixels: int):
    config = config_for(root, label_map={k: v for k, v in MAP.items() if k != left_out})
    with pytest.raises(DataError) as error:
        read_split(config, "train")
    parts = (f"a.png: value is {left_out} in {num_pixels} pixels", f"add {left_out}: CLASS")
    check_one_line(error, *parts, "dataset.label_map")


def test_map_is_a_part_of_the_identity_only_if_it_is_given(root: Path):
    plain, mapped = ({"dataset": config_to_dict(config_for(root, **given))}
                     for given in ({}, {"label_map": MAP}))  # fmt: skip
    before, after = (dataset_facts(make_config(given), train=True) for given in (plain, mapped))
    assert "label_map" not in before and after == {**before, "label_map": MAP}


def test_map_is_read_from_yaml_json_and_the_command_line(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("dataset: {label_map: {0: 0, 255: 1}}")
    expected = {"dataset": {"label_map": {"0": 0, "255": 1}}}
    assert read_settings(tmp_path / "a.yaml") == expected
    (tmp_path / "b.yaml").write_text('dataset: {label_map: {"0": 0, "255": 1}}')
    assert read_settings(tmp_path / "b.yaml") == expected
    assert override({}, {"dataset.label_map": "{0: 0, 255: 1}"}) == expected
    assert override({}, {"dataset.label_map.0": "0", "dataset.label_map.255": "1"}) == expected


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"label_map": {"65536": 0}}, ["dataset.label_map is", "values 0 to 65535"]),
        ({"label_map": {"cat": 0}}, ["dataset.label_map is"]),
        ({"label_map": {"0": 2}}, ["a class 0 to 1 or 255"]),
        ({"label_map": {"0": -1}}, ["a class 0 to 1 or 255"]),
        ({"label_map": {"0": 0}, "ignore_index": 9}, ["ignore_index is 9", "where void is 255"]),
        ({"label_map": "cityscapes"}, ["dataset.num_classes is 2", "19, as dataset.label_map"]),
        ({"label_map": "ade20k"}, ["dataset.num_classes is 2", "150, as dataset.label_map"]),
    ],
)
def test_map_onto_what_is_no_class_is_refused(given: dict, parts: list[str]):
    with pytest.raises(SettingsError) as error:
        DatasetConfig(num_classes=2, **given)
    check_one_line(error, *parts)


def test_map_onto_a_name_is_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("dataset: {label_map: {0: cat}}")
    with pytest.raises(SettingsError) as error:
        read_settings(tmp_path / "a.yaml")
    check_one_line(error, "a.yaml: dataset.label_map is")


def test_maps_that_have_a_name():
    """Of Cityscapes, whose masks of train ids are refused, since 255 is no label id; of ADE20K."""
    table = DatasetConfig(num_classes=19, label_map="cityscapes").class_of_value
    assert list(table) == list(range(34)) and set(table.values()) == {*range(19), 255}
    assert (table[7], table[26], table[33], table[0], table[30]) == (0, 13, 18, 255, 255)
    table = DatasetConfig(num_classes=150, label_map="ade20k").class_of_value
    assert table == {0: 255} | {number: number - 1 for number in range(1, 151)}


def test_named_map_is_the_map_it_stands_for():
    """In the identity; names of classes come with it."""
    named = DatasetConfig(num_classes=19, label_map="cityscapes")
    written = {str(value): number for value, number in named.class_of_value.items()}
    by_hand = DatasetConfig(num_classes=19, label_map=written)
    one, other = (dataset_facts(make_config({"dataset": config_to_dict(config)}), train=True)
                  for config in (named, by_hand))  # fmt: skip
    assert one == other and one["label_map"] == written
    assert named.names[13] == "car" and by_hand.names[13] == "class 13"


@pytest.mark.parametrize("bits", [1, 16])
def test_grey_masks_of_1_and_16_bits_are_read_exactly(root: Path, bits: int):
    numbers = np.zeros((20, 24), np.uint16)
    numbers[5:] = 1 if bits == 1 else 40_000
    for name in ("a", "b"):
        picture = Image.fromarray(numbers.astype(bool) if bits == 1 else numbers)
        picture.save(root / VOC / "SegmentationClass" / f"{name}.png")
    config = config_for(root, label_map={} if bits == 1 else {"0": 0, "40000": 1})
    split = read_split(config, "train")
    assert split.pixels[:2] == (240, 720) and sum(split.pixels) == 960
    label = read_sample(config, split.samples[0])[1]
    assert label.dtype == np.uint8 and np.array_equal(label, np.minimum(numbers, 1))


def test_value_of_16_bits_that_is_no_class_is_refused(root: Path):
    deep = Image.fromarray(np.full((20, 24), 256, np.uint16))
    deep.save(root / VOC / "SegmentationClass" / "a.png")
    for given, parts in (({}, "a.png: class is 256"), ({"label_map": MAP}, "a.png: value is 256")):
        with pytest.raises(DataError) as error:
            read_split(config_for(root, **given), "train")
        check_one_line(error, parts, "dataset.label_map")


def check_pixels(train: dict, val: dict, **changes) -> list[str]:
    given = {"root": Path("mine"), "num_classes": 2, **changes}
    counts = {"train": train, "val": val}
    pixels = {role: tuple(of.get(k, 0) for k in range(256)) for role, of in counts.items()}
    return check_classes(DatasetConfig(**given), pixels)


def test_pixels_of_a_split_are_counted_by_class(root: Path):
    pixels = read_split(config_for(root, label_map=MAP), "train").pixels
    assert (pixels[0], pixels[1], pixels[255], sum(pixels)) == (240, 624, 96, 960)
    assert read_split(config_for(root, label_map=MAP | {"7": 0}), "train").pixels[255] == 0


def test_masks_of_0_and_255_with_two_classes_are_refused():
    with pytest.raises(DataError) as error:
        check_pixels({0: 9, 255: 3}, {0: 9})
    check_one_line(error, "mine: labels of train", "0 and 255 alone", "label_map to {0: 0, 255: 1}")
    assert check_pixels({0: 9, 1: 1, 255: 3}, {0: 9, 1: 1}) == []


@pytest.mark.parametrize("val", [{}, {255: 9}])
def test_val_without_a_labelled_pixel_is_refused(val: dict):
    with pytest.raises(DataError) as error:
        check_pixels({0: 9, 1: 9}, val)
    check_one_line(error, "mine: labels of val is all void", "dataset.label_map")


def test_classes_that_no_label_holds_are_said():
    names = {"num_classes": 4, "class_names": ["sky", "road", "car", "bus"]}
    all_four = dict.fromkeys(range(4), 1)
    (line,) = check_pixels({0: 9, 2: 1, 255: 1}, all_four, **names)
    assert line.endswith("no training label holds a pixel of 2 of 4 classes: 1 (road), 3 (bus)")
    (line,) = check_pixels(all_four, {0: 9, 1: 1, 2: 1, 255: 9}, **names)
    assert line.startswith("no label of val holds a pixel of 1 of 4 classes: 3 (bus); ")
    assert line.endswith("mIoU is the mean over the other 3")
    lines = check_pixels({0: 9}, {1: 9}, num_classes=20)
    assert lines[0].endswith("8 (class 8), ...") and lines[1].endswith("the other 1")
    assert check_pixels(all_four, all_four, **names) == []
