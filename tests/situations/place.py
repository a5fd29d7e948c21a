"""Where a situation is made: a folder with a small data set in VOC layout, as a new user has it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kdcache.config.options import Parser, read_given
from kdcache.config.parser import make_config
from kdcache.errors import KdcacheError
from kdcache.precompute.build import read_splits
from kdcache.progress import Silent
from tests.support.helpers import VOC, save_label, write_list, write_voc

TRAIN, VAL = ["a", "b", "c"], ["d", "e"]
HW = (20, 24)


@dataclass(frozen=True)
class Situation:
    """A row of the table.

    name: the situation in a user's words. make: makes its files, and returns settings or whatever
    `do` wants. expected: "" if it works, else a pattern of the one line that is said.
    """

    name: str
    make: Callable
    expected: str = ""


def rows(*triples: tuple) -> list[Situation]:
    """Rows of (name, make[, expected])."""
    return [Situation(*triple) for triple in triples]


def read_data(dataset: dict | None) -> None:
    """Read train and val as phase one does: what is said is a warning or an error."""
    given = {"root": ".", "num_classes": 3, "size": 32, "download": False, **(dataset or {})}
    read_splits(make_config({"dataset": given}), Silent())


def read_settings(given: str | list[str]) -> dict:
    """Settings from the text of a file, or from words."""
    words = given
    if isinstance(given, str):
        Path("my.yaml").write_bytes(given.encode())
        words = ["--config", "my.yaml"]
    parser = Parser(prog="program", description="", settings=True)
    found = read_given(parser.parse_args(words))
    make_config(found)
    return found


def find_line(work: Callable[[], object], caplog) -> str:
    """All that is said: warnings, then the line of the error; a traceback fails the test."""
    with caplog.at_level(logging.WARNING, "kdcache"):
        caplog.clear()
        try:
            work()
        except KdcacheError as error:
            assert "\n" not in str(error)
            return "\n".join([*caplog.messages, str(error)])
    return "\n".join(caplog.messages)


# --- the data set, and what people do to it


def write_data() -> Path:
    """The data set that every situation of data begins with; the folder VOC2012."""
    return write_voc(Path(), {"train": TRAIN, "val": VAL}, hw=HW)


def image(name: str, ending: str = "jpg") -> Path:
    return VOC / "JPEGImages" / f"{name}.{ending}"


def mask(name: str) -> Path:
    return VOC / "SegmentationClass" / f"{name}.png"


def list_file(name: str = "train") -> Path:
    return VOC / "ImageSets" / "Segmentation" / f"{name}.txt"


def put_list(text: str | bytes, name: str = "train") -> None:
    list_file(name).write_bytes(text if isinstance(text, bytes) else text.encode())


def put_image(name: str, mode: str = "RGB", ending: str = "jpg", hw: tuple = HW, **save) -> None:
    noise = np.random.default_rng(len(name) + ord(name[0])).integers(0, 256, (*hw, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(image(name, ending), **save)


def put_mask(name: str, value: int = 1, hw: tuple = HW, values: list | None = None) -> None:
    label = np.full(hw, value, np.uint8)
    for row, other in enumerate(values or []):
        label[row] = other
    save_label(mask(name), label)


def rename_sample(old: str, new: str, split: str = "train") -> None:
    """Rename a picture, its mask and its line."""
    image(old).rename(image(new))
    mask(old).rename(mask(new))
    ids = TRAIN if split == "train" else VAL
    write_list(VOC, split, [new if name == old else name for name in ids])


def folders(**names: str) -> dict:
    """The same pictures in two folders, `photos` and `masks`; the settings that say so."""
    photos, masks = (Path(names.get(name, name)) for name in ("photos", "masks"))
    for folder in (photos, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for name in (*TRAIN, *VAL):
        image(name).rename(photos / f"{name}.jpg")
        mask(name).rename(masks / f"{name}.png")
    return {"images": str(photos), "masks": str(masks)}


def save_weights(path: str, change: Callable[[dict], object] = dict, *, classes: int = 3) -> Path:
    """A checkpoint of the tiny teacher, changed as people change them."""
    from kdcache.models.teacher import build_fcn

    torch.manual_seed(7)
    model = build_fcn("fcn_resnet50", num_classes=classes, aux_head=True)
    torch.save(change(model.state_dict()), path)
    return Path(path)
