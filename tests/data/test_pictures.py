"""Pictures: a few formats, 8 bits a channel, a limit on pixels before any is decoded; by everybody
who reads one.
"""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from kdcache.config import DatasetConfig
from kdcache.data.pictures import ENDINGS, FORMATS, MOST_PIXELS, decode_image, decode_label
from kdcache.data.voc import read_split, read_unlabelled
from kdcache.deploy.predict import read_picture
from kdcache.errors import DataError
from tests.support.helpers import check_one_line, write_voc

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n%%EOF\n"


def write_deep(path: Path, kind: type) -> None:
    Image.fromarray(np.full((20, 24), 300, kind)).save(path, "TIFF")


def write_huge(path: Path) -> None:
    """A PNG of a few bytes that says it has 100000 x 100000 pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        crc = struct.pack(">I", zlib.crc32(name + body))
        data += struct.pack(">I", len(body)) + name + body + crc
    path.write_bytes(data)


def _link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


WAYS = {
    "postscript": (lambda path: path.write_bytes(EPS), "it is none of JPEG, PNG"),
    "gif": (lambda path: Image.new("P", (24, 20)).save(path, "GIF"), "it is none of"),
    "ppm": (lambda path: Image.new("RGB", (24, 20)).save(path, "PPM"), "it is none of"),
    "16 bits": (lambda path: write_deep(path, np.uint16), "mode is 'I;16', expected"),
    "32 bits": (lambda path: write_deep(path, np.int32), "mode is 'I', expected"),
    "float": (lambda path: write_deep(path, np.float32), "mode is 'F', expected"),
    "huge": (write_huge, f"expected {MOST_PIXELS} pixels at most; make it smaller"),
    "large": (lambda path: Image.new("1", (8192, 8193)).save(path, "PNG"), "size is 8192x8193"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:300]), "unreadable or truncated"),
    "empty": (lambda path: path.write_bytes(b""), "it is none of"),
    "pipe": (os.mkfifo, "file is no file, expected a plain file"),
    "folder": (Path.mkdir, "file is no file, expected a plain file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "file is no file, expected a plain file"),
    "missing": (_link_to_nothing, "file is missing"),
}


@pytest.fixture
def base(tmp_path) -> Path:
    return write_voc(tmp_path, {"train": ["a", "b"], "val": ["c", "d"]})


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["image", "label", "unlabelled", "predict"])
def test_what_is_no_picture_for_us_is_one_line_for_everybody(base, tmp_path, where, way):
    config = DatasetConfig(root=tmp_path, num_classes=3, unlabelled=str(tmp_path / "more"))
    (tmp_path / "more").mkdir()
    shutil.copy(base / "JPEGImages/a.jpg", tmp_path / "more/other.jpg")
    path = {
        "image": base / "JPEGImages/b.jpg",
        "label": base / "SegmentationClass/b.png",
    }.get(where, tmp_path / "more/other.jpg")
    write, words = WAYS[way]
    if way != "cut":
        path.unlink()
    write(path)
    if where == "label" and way == "16 bits":
        words = "class is 300, expected 0 to 2"  # they are numbers
    with pytest.raises(DataError) as error:
        if where == "predict":
            read_picture(path)
        elif where == "unlabelled":
            read_unlabelled(config, {})
        else:
            read_split(config, "train")
    check_one_line(error, str(path), words)


def test_formats_and_their_endings_are_those_that_pillow_names():
    known = Image.registered_extensions()
    assert set(ENDINGS) == {ending for ending, form in known.items() if form in FORMATS}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pixels_are_those_of_pillow_and_labels_are_numbers(tmp_path, mode):
    drawn = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
    picture = drawn.quantize(16) if mode == "P" else drawn.convert(mode)
    picture.save(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read a YCbCr TIFF that it has written")
    image = decode_image(tmp_path / "a.tif", data, cure="")
    assert np.array_equal(image, np.asarray(picture.convert("RGB")))
    if mode in ("1", "L", "P"):
        assert np.array_equal(decode_label(tmp_path, data, cure=""), np.asarray(picture))


@pytest.mark.parametrize("form", [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_labels_of_16_bits_are_their_numbers(tmp_path, form):
    numbers = np.arange(65_280, 65_280 + 480, dtype=np.uint16).reshape(20, 24)
    data = numbers.astype(">u2" if form[1] == "I;16B" else "<u2").tobytes()
    Image.frombytes(form[1], (24, 20), data).save(tmp_path / "a", form[0])
    found = decode_label(tmp_path, (tmp_path / "a").read_bytes(), cure="")
    assert found.dtype == np.uint16 and np.array_equal(found, numbers)


@pytest.mark.parametrize("name", ["../../../../outside", "a/../../../../../outside", "{root}/x"])
@pytest.mark.parametrize("where", ["train", "unlabelled"])
def test_a_list_outside_of_the_data_set_is_not_read(base, tmp_path, where, name):
    (tmp_path / "outside.txt").write_text("secret\n")
    name = name.format(root=tmp_path)
    config = DatasetConfig(root=tmp_path, num_classes=3, unlabelled=name)
    with pytest.raises(DataError) as error:
        read_split(config, name) if where == "train" else read_unlabelled(config, {})
    words = "expected a list inside the data set" if where == "train" else "list is missing"
    check_one_line(error, words)
    assert "secret" not in str(error.value)
