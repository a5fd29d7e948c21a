"""Masks whose numbers are not the classes: `dataset.label_map` says what they mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.settings import dataset_facts
from kdcache.config import DatasetConfig, config_to_dict
from kdcache.config.options import override
from kdcache.config.parser import make_config, read_settings
from kdcache.data.pictures import read_sample
from kdcache.data.voc import read_split
from kdcache.errors import DataError, SettingsError
from tests.support.helpers import check_one_line, save_label, write_voc

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
        ({"label_map": {"256": 0}}, ["dataset.label_map is", "values 0 to 255"]),
        ({"label_map": {"cat": 0}}, ["dataset.label_map is"]),
        ({"label_map": {"0": 2}}, ["a class 0 to 1 or 255"]),
        ({"label_map": {"0": -1}}, ["a class 0 to 1 or 255"]),
        ({"label_map": {"0": 0}, "ignore_index": 9}, ["dataset.ignore_index is 9", "VALUE: 255"]),
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
