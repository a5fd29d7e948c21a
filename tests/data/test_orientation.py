"""Photographs that a camera has turned are seen upright, by whoever reads them."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from kdcache.config import DatasetConfig
from kdcache.config.parser import make_config
from kdcache.data import pictures
from kdcache.data.orientation import read_orientation
from kdcache.data.pictures import decode_image, decode_label, read_sample
from kdcache.data.voc import VOC_DIR, read_split, read_unlabelled
from kdcache.errors import DataError
from kdcache.precompute import build
from kdcache.precompute.build import build_cache
from tests.support.helpers import check_one_line, write_voc
from tests.support.quick import make_quick_teacher, quick_given, write_quick_data

TAG, ROTATE_90, ROTATE_270 = 0x0112, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270


def exif_of(orientation: int, *, big_endian: bool = False) -> bytes:
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    exif[0x010F] = "a camera"
    exif[TAG] = orientation
    return exif.tobytes()


def encode(picture: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def draw() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_voc(tmp_path, {"train": ["a", "b"], "val": ["c"]})


def turn_file(path: Path, orientation: int, turn: Image.Transpose) -> None:
    """Store the picture on its side, with the tag that brings it upright again; lossless."""
    with Image.open(path) as picture:
        turned = picture.transpose(turn)
    path.write_bytes(encode(turned, "PNG", exif=exif_of(orientation)))


def read(base: Path, split: str = "train"):
    return read_split(DatasetConfig(root=base.parents[1], num_classes=3), split)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pixels_are_those_of_pillows_upright_picture(tmp_path: Path, form: str, orientation: int):
    options = {"tiffinfo": {TAG: orientation}} if form == "TIFF" else {"exif": exif_of(orientation)}
    data = encode(draw(), form, **options)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    assert expected.shape[:2] == ((20, 24) if orientation < 5 else (24, 20))
    assert np.array_equal(decode_image(tmp_path, data, cure=""), expected)
    if form in ("PNG", "TIFF"):
        numbers = encode(draw().getchannel("R"), form, **options)
        assert np.array_equal(decode_label(tmp_path, numbers, cure=""), expected[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("big_endian", [False, True])
def test_orientation_is_read_in_either_order_of_bytes(orientation: int, big_endian: bool):
    exif = exif_of(orientation, big_endian=big_endian)
    assert exif.startswith(b"Exif\0\0MM" if big_endian else b"Exif\0\0II")
    assert read_orientation(exif) == read_orientation(exif[6:]) == orientation


def test_damaged_exif_turns_nothing():
    """Wherever it ends; no number but 1 to 8 is an orientation, and no other kind of value."""
    exif = exif_of(6)
    found = [read_orientation(exif[:end]) for end in range(len(exif) + 1)]
    assert set(found) == {1, 6} and found == sorted(found)
    assert [read_orientation(exif_of(number)) for number in (0, 9, 65_535)] == [1, 1, 1]
    assert read_orientation(exif.replace(b"\x12\x01\x03\x00", b"\x12\x01\x04\x00")) == 1
    assert read_orientation(b"") == read_orientation(b"Exif\0\0nothing at all") == 1


def test_image_on_its_side_is_the_image_and_its_mask_is_upright(base: Path, caplog):
    path = base / "JPEGImages" / "a.jpg"
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB"))
    config = DatasetConfig(root=base.parents[1], num_classes=3)
    _, label = read_sample(config, read(base).samples[0])
    assert not caplog.messages
    turn_file(path, 6, ROTATE_90)
    split = read(base)
    (said,) = caplog.messages
    assert said.startswith("train: 1 of 2 images are turned upright by their EXIF orientation")
    image, seen = read_sample(config, split.samples[0])
    assert np.array_equal(image, expected) and np.array_equal(seen, label)


def test_mask_beside_the_stored_pixels_is_refused_in_words_of_exif(base: Path):
    """It fits if it has the tag, too."""
    mask = base / "SegmentationClass" / "a.png"
    turn_file(base / "JPEGImages" / "a.jpg", 8, ROTATE_270)
    before = mask.read_bytes()
    with Image.open(mask) as picture:
        mask.write_bytes(encode(picture.transpose(ROTATE_270), "PNG"))
    with pytest.raises(DataError) as error:
        read(base)
    check_one_line(error, "a.png: size is 20x24, expected 24x20 as a.jpg, turned by EXIF "
                   "orientation 8", "take the tag out of the image")  # fmt: skip
    mask.write_bytes(before)
    whole = read(base)
    turn_file(mask, 8, ROTATE_270)
    assert read(base).pixels == whole.pixels


@pytest.mark.parametrize("orientation", [None, 1, 3])
def test_identity_has_the_orientation_only_of_what_is_turned(base: Path, orientation: int | None):
    """Else it is that of before; the content by which images are told apart is the file's."""
    path = base / "JPEGImages" / "a.jpg"
    exif = {} if orientation is None else {"exif": exif_of(orientation)}
    path.write_bytes(encode(draw(), "JPEG", **exif))
    digests = {
        name: [hashlib.sha256(file.read_bytes()).hexdigest() for file in (
            base / "JPEGImages" / f"{name}.jpg", base / "SegmentationClass" / f"{name}.png")]
        for name in ("a", "b")
    }  # fmt: skip
    split = read(base)
    assert split.digests == (digests["a"][0], digests["b"][0])
    digests["a"][0] += "@3" if orientation == 3 else ""
    lines = "".join(f"{name} {' '.join(words)}\n" for name, words in digests.items())
    assert split.fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def test_unlabelled_photographs_are_turned_too(base: Path, tmp_path: Path, caplog):
    (tmp_path / "more").mkdir()
    shutil.copy(base / "JPEGImages" / "a.jpg", tmp_path / "more" / "x.jpg")
    turn_file(tmp_path / "more" / "x.jpg", 6, ROTATE_90)
    config = DatasetConfig(root=tmp_path, num_classes=3, unlabelled=str(tmp_path / "more"))
    (sample,) = read_unlabelled(config, {"train": read(base)}).samples
    assert read_sample(config, sample)[0].shape == (20, 24, 3)
    assert "1 of 1 images are turned" in caplog.text


def test_cache_of_before_is_asked_again_about_what_is_turned_now(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build, "build_teacher", make_quick_teacher)
    base = write_quick_data(tmp_path / "data") / VOC_DIR
    config = make_config(quick_given(tmp_path / "data", tmp_path / "cache"))
    upright = pictures.turn_upright
    with monkeypatch.context() as before:
        before.setattr(pictures, "turn_upright", lambda picture: (picture, 1))
        build_cache(config)
    assert build_cache(config).num_samples == 0
    shutil.rmtree(tmp_path / "cache")
    image = sorted((base / "JPEGImages").iterdir())[0]
    with Image.open(image) as picture:
        image.write_bytes(encode(picture, "JPEG", exif=exif_of(3)))
    with monkeypatch.context() as before:
        before.setattr(pictures, "turn_upright", lambda picture: (picture, 1))
        build_cache(config)
    assert pictures.turn_upright is upright
    assert build_cache(config).num_samples == 2  # both views of that image
