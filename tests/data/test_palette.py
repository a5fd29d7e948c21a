"""Masks whose colours say the classes: `dataset.palette`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.cache.settings import dataset_facts
from kdcache.config import DatasetConfig, config_to_dict
from kdcache.config.masks import CITYSCAPES_CLASSES, voc_colour
from kdcache.config.options import override
from kdcache.config.parser import make_config, read_settings
from kdcache.data.pictures import read_sample, voc_palette
from kdcache.data.voc import read_split
from kdcache.errors import DataError, SettingsError
from tests.support.helpers import VOC, check_one_line, write_voc

NAMES = ["sky", "road", "car"]
SKY, ROAD, CAR, LANE, EDGE = (
    [0, 0, 0], [128, 64, 128], [0, 0, 142], [128, 64, 129], [224, 224, 192]
)  # fmt: skip
PALETTE = {"sky": SKY, "1": [ROAD, LANE], "car": CAR, "255": EDGE}
CLASSES = np.repeat([0, 1, 2, 1, 255], 4)[:, None].repeat(24, axis=1).astype(np.uint8)
COLOURS = np.repeat([SKY, ROAD, CAR, LANE, EDGE], 4, axis=0)[:, None].repeat(24, axis=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training images, whose masks hold five colours."""
    base = write_voc(tmp_path, {"train": ["a", "b"]})
    for name in ("a", "b"):
        save_mask(tmp_path, name, COLOURS)
    assert base == tmp_path / VOC
    return tmp_path


def save_mask(root: Path, name: str, colours: np.ndarray, *, mode: str = "RGB") -> None:
    picture = Image.fromarray(colours.astype(np.uint8))
    picture = picture.quantize(256) if mode == "P" else picture.convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(root / VOC / "SegmentationClass" / f"{name}.png")


def config_for(root: Path, **changes) -> DatasetConfig:
    given = {"num_classes": 3, "class_names": NAMES, "palette": PALETTE, **changes}
    return DatasetConfig(root=root, download=False, **given)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_the_classes_that_have_them(root: Path, mode: str):
    """What is transparent has a colour, too."""
    save_mask(root, "a", COLOURS, mode=mode)
    split = read_split(config_for(root), "train")
    assert np.array_equal(read_sample(config_for(root), split.samples[0])[1], CLASSES)
    assert (split.pixels[1], split.pixels[255], sum(split.pixels)) == (384, 192, 960)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_masks_have_colours_too(root: Path, mode: str):
    for name in ("a", "b"):
        save_mask(root, name, np.where(CLASSES[..., None] == 1, [255] * 3, 0), mode=mode)
    config = config_for(root, palette={"sky": [0, 0, 0], "road": [255, 255, 255]})
    label = read_sample(config, read_split(config, "train").samples[0])[1]
    assert np.array_equal(label, CLASSES == 1)


def test_unknown_colours_are_refused_with_their_pixels(root: Path):
    colours = COLOURS.copy()
    colours[0, :5], colours[1, 0], colours[2, :2] = [1, 2, 3], [0, 0, 1], [255, 255, 255]
    save_mask(root, "b", colours)
    with pytest.raises(DataError) as error:
        read_split(config_for(root), "train")
    found = "b.png: colour of 'b' is [1, 2, 3] in 5 pixels, and 2 more unknown in 3"
    check_one_line(error, found, "a colour of dataset.palette", "255 for void")


@pytest.mark.parametrize("colour", [[0, 0, 143], [0, 0, 141], [255, 255, 255], [0, 0, 1]])
def test_no_colour_is_taken_for_its_neighbour(root: Path, colour: list[int]):
    save_mask(root, "a", np.where(CLASSES[..., None] == 2, colour, COLOURS))
    with pytest.raises(DataError) as error:
        read_split(config_for(root), "train")
    check_one_line(error, f"a.png: colour of 'a' is {colour} in 96 pixels, expected")


def test_numbers_in_a_mask_are_no_classes_beside_a_palette(root: Path):
    Image.fromarray(np.ones((20, 24), np.uint8)).save(root / VOC / "SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"colour of 'a' is \[1, 1, 1\] in 480 pixels"):
        read_split(config_for(root), "train")


def test_palette_is_a_part_of_the_identity_only_if_it_is_given():
    """As classes by number: by name, in another order and by a table's name it is the same."""
    written = {"0": [[0, 0, 0]], "1": [[128, 0, 0]], "255": [[224, 224, 192]]}
    same = [
        {"palette": written},
        {"palette": "voc"},
        {"palette": {"255": EDGE, "b": [128, 0, 0], "a": SKY}, "class_names": ["a", "b"]},
    ]
    plain, *given = (
        dataset_facts(
            make_config({"dataset": config_to_dict(DatasetConfig(num_classes=2, **changes))}),
            train=True,
        )
        for changes in ({}, *same)
    )
    assert "palette" not in plain and given == [{**plain, "palette": written}] * 3


def test_palettes_that_have_a_name():
    voc = DatasetConfig(palette="voc").colours
    assert len(voc) == 22 and voc[15] == [(192, 128, 128)] and voc[255] == [(224, 224, 192)]
    assert [voc_colour(number) for number in range(256)] == [tuple(c) for c in voc_palette()]
    config = DatasetConfig(palette="cityscapes", num_classes=19)
    assert config.names == CITYSCAPES_CLASSES and config.colours[0] == [tuple(ROAD)]
    all_colours = [colour for colours in config.colours.values() for colour in colours]
    assert len(set(all_colours)) == len(all_colours) == 29


def test_palette_is_read_from_yaml_and_the_command_line(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("dataset: {palette: {0: [0, 0, 0], car: [[1, 2, 3]]}}")
    expected = {"dataset": {"palette": {"0": [0, 0, 0], "car": [[1, 2, 3]]}}}
    assert read_settings(tmp_path / "a.yaml") == expected
    assert override({}, {"dataset.palette": "{0: [0, 0, 0], car: [[1, 2, 3]]}"}) == expected
    words = {"dataset.palette.0": "[0, 0, 0]", "dataset.palette.car": "[[1, 2, 3]]"}
    assert override({}, words) == expected
    named = {"dataset": {"palette": "voc"}}
    assert override({}, {"dataset.palette": "voc"}) == named
    for given, more in ((named, {}), ({}, {"dataset.palette": "voc"})):
        with pytest.raises(SettingsError) as error:
            override(given, words | more)
        check_one_line(error, "dataset.palette is 'voc'", "beside --dataset.palette.0")


@pytest.mark.parametrize("given", ["other", "[0, 0, 0]", "{sky: blue}", "1"])
def test_what_is_no_palette_is_refused(given: str):
    with pytest.raises(SettingsError) as error:
        override({}, {"dataset.palette": given})
    check_one_line(error, "dataset.palette is", "voc or cityscapes or names with values")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"palette": {"sky": SKY, "car": SKY}}, ["palette.car is [0, 0, 0]", "than that of sky"]),
        ({"palette": {"sky": [CAR, SKY], "255": CAR}}, ["palette.255 is [0, 0, 142]"]),
        ({"palette": {"sky": SKY, "0": CAR}}, ["class 0 once, with a list of its colours"]),
        ({"palette": {"cat": SKY}}, ["dataset.palette is 'cat'", "0 to 2, or 255 for void"]),
        ({"palette": {"3": SKY}}, ["dataset.palette is '3'"]),
        ({"palette": {"sky": [0, 0]}}, ["dataset.palette.sky is [0, 0]", "[R, G, B]"]),
        ({"palette": {"sky": []}}, ["dataset.palette.sky is []"]),
        ({"palette": {"sky": [0, 0, 256]}}, ["dataset.palette.sky is"]),
        ({"palette": {"sky": [0, 0, True]}}, ["dataset.palette.sky is"]),
        ({"palette": {"sky": [SKY, 3]}}, ["dataset.palette.sky is"]),
        ({"palette": {"1": SKY}, "class_names": ["1", "b", "c"]}, ["the name of class 0, not"]),
        ({"label_map": {"0": 0}}, ["dataset.label_map is", "none beside dataset.palette"]),
        ({"ignore_index": 0}, ["dataset.ignore_index is 0", "255 beside dataset.palette"]),
        ({"palette": "cityscapes"}, ["dataset.num_classes is 3", "19, as dataset.palette"]),
    ],
)
def test_ambiguous_palettes_are_refused_by_name(given: dict, parts: list[str]):
    with pytest.raises(SettingsError) as error:
        config_for(Path("nowhere"), **given)
    check_one_line(error, *parts)
