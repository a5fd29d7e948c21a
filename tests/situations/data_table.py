"""Situations of lists, pictures, masks and folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.situations.place import (
    HW,
    TRAIN,
    VAL,
    folders,
    image,
    list_file,
    mask,
    put_image,
    put_list,
    put_mask,
    rename_sample,
    rows,
)
from tests.support.helpers import VOC

ABC = "a\nb\nc\n"


def each(work, names=(*TRAIN, *VAL)):
    for name in names:
        work(name)


def grey(bits: int, name: str = "a") -> None:
    value = {1: np.zeros(HW, bool), 16: np.zeros(HW, np.uint16)}[bits]
    Image.fromarray(value).save(mask(name))


def rgb_masks() -> None:
    for name in (*TRAIN, *VAL):
        colours = np.zeros((*HW, 3), np.uint8)
        colours[:5], colours[5:9] = (255, 0, 0), (0, 255, 0)
        Image.fromarray(colours).save(mask(name))


COLOURS = {"0": [0, 0, 0], "1": [255, 0, 0], "2": [0, 255, 0]}


def linked(target: Path) -> None:
    image("a").rename(target)
    image("a").symlink_to(target.resolve())


LISTS = rows(
    ("blank lines between ids", lambda: put_list("a\n\n\nb\n \n\tc\n\n")),
    ("spaces around ids", lambda: put_list("  a \nb\t\n c\n")),
    ("all ids in one line", lambda: put_list("a b c")),
    ("no line end at the end", lambda: put_list("a\nb\nc")),
    ("line ends of an old Mac", lambda: put_list("a\rb\rc\r")),
    ("a byte order mark and Windows line ends", lambda: put_list("\ufeffa\r\nb\r\nc\r\n")),
    ("UTF-16 from Notepad", lambda: put_list(ABC.encode("utf-16"))),
    ("UTF-16, big end first", lambda: put_list(b"\xfe\xff" + ABC.encode("utf-16-be"))),
    ("comments at the top and behind ids", lambda: put_list("# mine\na # good\nb\nc\n")),
    ("names of pictures", lambda: put_list("a.jpg\nb.jpg\nc.jpg\n")),
    ("names of masks", lambda: put_list("a.png\nb.png\nc.png\n")),
    ("endings in capitals", lambda: put_list("a.JPG\nb.jpeg\nc.JPEG\n")),
    (
        "pairs of paths",
        lambda: put_list(
            "".join(f"/JPEGImages/{n}.jpg /SegmentationClass/{n}.png\n" for n in TRAIN)
        ),
    ),
    (
        "pairs of a picture and another's mask",
        lambda: put_list("JPEGImages/a.jpg SegmentationClass/b.png\n"),
        "expected that of a.jpg",
    ),
    (
        "absolute paths of another machine",
        lambda: put_list(
            "".join(f"/me/JPEGImages/{n}.jpg /me/SegmentationClass/{n}.png\n" for n in TRAIN)
        ),
        "VOC2012/me/JPEGImages/a.jpg: file is missing",
    ),
    ("one path a line", lambda: put_list("JPEGImages/a.jpg\nJPEGImages/b.jpg\n"), "sample id"),
    ("an id with a comma behind it", lambda: put_list("a,\nb,\nc\n"), "sample id is 'a,'"),
    ("an id in quotes", lambda: put_list('"a"\n"b"\n'), "sample id is"),
    ("an id with a space", lambda: put_list("my photo\na\nb\n"), "missing"),
    (
        "VOC's list of one class, with 1 and -1",
        lambda: put_list("a 1\nb -1\nc 1\n"),
        "line is 'a 1', expected an id alone",
    ),
    ("an id twice", lambda: put_list("a\nb\na\n"), "sample id is 'a' twice"),
    ("an empty list", lambda: put_list(""), "0 ids"),
    ("a list of comments alone", lambda: put_list("# a\n# b\n"), "0 ids"),
    ("a list of one training image", lambda: put_list("a\n"), "expected two or more"),
    ("a list of one validation image", lambda: put_list("d\n", "val")),
    ("a list that is missing", lambda: list_file("val").unlink(), "split list is missing"),
    (
        "a folder in place of a list",
        lambda: _unlinked(list_file()).mkdir(),
        "split list is missing",
    ),
    (
        "a list in Latin-1",
        lambda: put_list("caf\xe9\na\n".encode("latin-1")),
        "split list is no text, expected UTF-8; write an id a line$",
    ),
    ("a picture in place of a list", lambda: put_list(image("a").read_bytes()), "is no text"),
    (
        "an accent in two code points in the list",
        lambda: [rename_sample("a", "\u00e9t\u00e9"), put_list("e\u0301te\u0301\nb\nc\n")][:0],
    ),
    (
        "an accent in two code points in the names of files",
        lambda: [rename_sample("a", "e\u0301te\u0301"), put_list("\u00e9t\u00e9\nb\nc\n")][:0],
    ),
    ("an accent in two code points in both", lambda: rename_sample("a", "e\u0301te\u0301")),
    ("an id of no picture", lambda: put_list("a\nb\nzebra\n"), "zebra.jpg.*missing"),
    ("an id in other capitals", lambda: put_list("A\nb\nc\n"), "A.jpg.*missing"),
    ("train and val in one list", lambda: put_list("a\nb\nd\n"), "also 'd' of train"),
    ("train in place of val", lambda: {"val_split": "train"}, "also 'a' of train"),
    (
        "a list that is named with its ending",
        lambda: {"train_split": "train.txt"},
        "train.txt.txt.*missing",
    ),
    ("a list elsewhere", lambda: {"train_split": "/tmp/train"}, "expected a list inside"),
    (
        "a list that may not be read",
        lambda: os.mkfifo(_unlinked(list_file("val"))),
        "split list is",
    ),
    (
        "a link to a list",
        lambda: list_file().rename("t") and list_file().symlink_to(Path("t").resolve()) and None,
    ),
    ("a NUL between ids", lambda: put_list("a\0b\n"), "sample id"),
    ("a list that is gzipped", lambda: put_list(b"\x1f\x8b\x08\x00rubbish\xff"), "is no text"),
    ("no VOCdevkit at all", lambda: shutil.rmtree("VOCdevkit"), "folder is missing, expected VOC"),
    (
        "root that is VOCdevkit itself",
        lambda: {"root": "VOCdevkit"},
        "VOCdevkit/VOCdevkit.*missing",
    ),
    ("VOC2012 alone, without VOCdevkit", lambda: {"root": str(VOC)}, "folder is missing"),
    (
        "VOC2007 in place of VOC2012",
        lambda: Path("VOCdevkit/VOC2012").rename("VOCdevkit/VOC2007") and None,
        "VOC2012.*missing",
    ),
    (
        "trainaug without its masks",
        lambda: {"train_split": _copy_list("trainaug")},
        "SegmentationClassAug",
    ),
)


def _unlinked(path: Path) -> Path:
    path.unlink()
    return path


def _copy_list(name: str) -> str:
    shutil.copy(list_file(), list_file(name))
    return name


IDS = rows(
    *(
        (f"an id like {name}", lambda name=name: rename_sample("a", name), said)
        for name, said in {
            "2007_000032": "",
            "IMG-0001": "",
            "a.b": "",
            "a.b.c.jpg": "",
            "0": "",
            "007": "",
            "_x": "",
            "\u00fcber": "",
            "\u65e5\u672c": "",
            "x" * 200: "",
            "a+b": "sample id",
            "a@2x": "sample id",
            "(1)": "sample id",
            ".hidden": "sample id",
            "-x": "",
        }.items()
    ),
)

PICTURES = rows(
    *(
        (f"a picture of mode {mode}", lambda mode=mode: put_image("a", mode, quality=90))
        for mode in ("L", "CMYK", "YCbCr")
    ),
    *(
        (
            f"a {mode} PNG that is called .jpg",
            lambda mode=mode: Image.new(mode, HW[::-1]).save(image("a"), "PNG"),
        )
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
    ),
    ("a WebP that is called .jpg", lambda: Image.new("RGB", HW[::-1]).save(image("a"), "WEBP")),
    ("a BMP that is called .jpg", lambda: Image.new("RGB", HW[::-1]).save(image("a"), "BMP")),
    ("a TIFF that is called .jpg", lambda: Image.new("RGB", HW[::-1]).save(image("a"), "TIFF")),
    (
        "a GIF that is called .jpg",
        lambda: Image.new("P", HW[::-1]).save(image("a"), "GIF"),
        "none of JPEG, PNG, BMP",
    ),
    (
        "a picture of 16 bits",
        lambda: Image.fromarray(np.zeros(HW, np.uint16)).save(image("a"), "PNG"),
        "8 bits a channel",
    ),
    (
        "a float picture",
        lambda: Image.fromarray(np.zeros(HW, np.float32)).save(image("a"), "TIFF"),
        "8 bits a channel",
    ),
    ("an empty picture", lambda: image("a").write_bytes(b""), "unreadable or truncated"),
    (
        "half a picture",
        lambda: image("a").write_bytes(image("a").read_bytes()[:300]),
        "a.jpg: image is unreadable or truncated",
    ),
    (
        "a page of HTML that was downloaded",
        lambda: image("a").write_text("<html>404</html>"),
        "none of JPEG, PNG",
    ),
    (
        "a pointer of Git LFS",
        lambda: image("a").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        ),
        "none of JPEG, PNG",
    ),
    ("a picture that is missing", lambda: image("a").unlink(), "a.jpg.*missing"),
    (
        "a folder in place of a picture",
        lambda: _unlinked(image("a")).mkdir(),
        "a.jpg: file is no file",
    ),
    ("a link to a picture elsewhere", lambda: linked(Path("elsewhere.jpg"))),
    (
        "a link to nothing",
        lambda: _unlinked(image("a")).symlink_to("nowhere"),
        "a.jpg: file is missing",
    ),
    ("a named pipe", lambda: os.mkfifo(_unlinked(image("a"))), "a.jpg: file is no file"),
    (
        "a .jpeg in place of a .jpg",
        lambda: image("a").rename(image("a", "jpeg")) and None,
        "a.jpg.*missing",
    ),
    ("a picture of one pixel", lambda: [put_image("a", hw=(1, 1)), put_mask("a", hw=(1, 1))][:0]),
    ("a picture of one row", lambda: [put_image("a", hw=(1, 90)), put_mask("a", hw=(1, 90))][:0]),
    ("a progressive picture", lambda: put_image("a", progressive=True)),
    (
        "the same picture in train and val",
        lambda: shutil.copy(image("a"), image("d")) and None,
        "also 'a' of train",
    ),
    ("the same picture twice in train", lambda: shutil.copy(image("a"), image("b")) and None),
)

MASKS = rows(
    ("a mask that is missing", lambda: mask("a").unlink(), "a.png.*missing"),
    ("a mask of another size", lambda: put_mask("a", hw=(10, 10)), "size is 10x10, expected 24x20"),
    (
        "a mask that lies on its side",
        lambda: put_mask("a", hw=HW[::-1]),
        "size is 20x24, expected 24x20",
    ),
    ("a grey mask", lambda: Image.fromarray(np.ones(HW, np.uint8)).save(mask("a"))),
    ("a mask of 1 bit", lambda: grey(1)),
    ("a mask of 16 bits", lambda: grey(16)),
    (
        "a mask of 32 bits",
        lambda: Image.new("I", HW[::-1]).save(mask("a"), "TIFF"),
        "mode is 'I', expected 'P' or 'L'",
    ),
    (
        "a JPEG in place of a mask",
        lambda: Image.fromarray(np.arange(480, dtype=np.uint8).reshape(HW) % 3 * 100).save(
            mask("a"), "JPEG"
        ),
        "class is [0-9]+, expected 0 to 2",
    ),
    (
        "an RGB mask",
        lambda: Image.new("RGB", HW[::-1]).save(mask("a")),
        "set dataset.palette for colours",
    ),
    (
        "an RGBA mask",
        lambda: Image.new("RGBA", HW[::-1]).save(mask("a")),
        "set dataset.palette for colours",
    ),
    ("a grey mask with alpha", lambda: Image.new("LA", HW[::-1]).save(mask("a")), "'LA'"),
    ("a class too many", lambda: put_mask("a", values=[3]), "a.png: class is 3, expected 0 to 2"),
    (
        "class numbers from 1",
        lambda: each(lambda n: put_mask(n, values=[1, 2, 3])),
        "class is 3, expected 0 to 2",
    ),
    (
        "a mask of 0 and 255, two classes",
        lambda: each(lambda n: put_mask(n, 0, values=[255] * 9)) or {"num_classes": 2},
        "0 and 255 alone, and 255 is void.*label_map",
    ),
    (
        "the same, with a map",
        lambda: (
            each(lambda n: put_mask(n, 0, values=[255] * 9))
            or {"num_classes": 2, "label_map": {"0": 0, "255": 1}}
        ),
    ),
    ("a val that is void", lambda: each(lambda n: put_mask(n, 255), VAL), "labels of val"),
    ("one void mask in val", lambda: put_mask("d", 255), ""),
    (
        "a class in no training mask",
        lambda: each(lambda n: put_mask(n, 0, values=[1] * 5)) or None,
        "no training label holds.*2 .class 2.",
    ),
    (
        "a class in no mask of val",
        lambda: each(lambda n: put_mask(n, 0, values=[1] * 5), VAL),
        "no label of val holds.*class 2.*mean over the other 2",
    ),
    (
        "masks in which all is background",
        lambda: each(lambda n: put_mask(n, 0)),
        "no training label holds",
    ),
    (
        "a void that is 0",
        lambda: each(lambda n: put_mask(n, 1, values=[0, 2])) or {"ignore_index": 0},
        "0 .class 0",
    ),
    ("a void that is 254", lambda: put_mask("a", 1, values=[254]) or {"ignore_index": 254}),
    (
        "values that the map leaves out",
        lambda: {"label_map": {"0": 0, "1": 1, "255": 255}},
        "value is 2 in .* add 2: CLASS",
    ),
    (
        "a map of several values to one class",
        lambda: {"num_classes": 2, "label_map": {"0": 0, "1": 1, "2": 1, "255": 255}},
    ),
    ("a map to a class that is not there", lambda: {"label_map": {"0": 7}}, "label_map"),
    ("a map of names", lambda: {"label_map": {"road": 0}}, "label_map"),
    ("RGB masks with their colours", lambda: rgb_masks() or {"palette": COLOURS}),
    (
        "RGB masks with a colour left out",
        lambda: rgb_masks() or {"palette": {"0": [0, 0, 0], "1": [255, 0, 0]}},
        r"\[0, 255, 0\] in 96 pixels",
    ),
    ("two classes of one colour", lambda: {"palette": {**COLOURS, "2": [0, 0, 0]}}, "palette"),
    (
        "a palette and a map",
        lambda: {"palette": COLOURS, "label_map": {"0": 0}},
        "expected none beside dataset.palette",
    ),
    (
        "21 classes in masks, 20 in the settings",
        lambda: put_mask("a", values=[20]) or {"num_classes": 20},
        "class is 20, expected 0 to 19",
    ),
    ("class names that are too few", lambda: {"class_names": ["a", "b"]}, "3 different names"),
    ("class names in several alphabets", lambda: {"class_names": ["\u9053", "d\u011b", "\u0627"]}),
)


def _pair(stem: str, folder: str = "photos") -> None:
    shutil.copy(Path(folder, "a.jpg"), Path(folder, f"{stem}.jpg"))


def _folders(change, **more: object):
    """Two folders, changed, and their settings."""

    def make() -> dict:
        given = folders()
        return given | (change() or {}) | more

    return make


FOLDERS = rows(
    ("images and masks in two folders", _folders(lambda: None, val_fraction=0.4)),
    ("folders whose names have spaces", lambda: folders(photos="my photos", masks="my masks")),
    (
        "a folder of images without one of masks",
        lambda: {"images": folders()["images"]},
        "dataset.images is .* expected dataset.masks beside it",
    ),
    ("a folder that is missing", _folders(lambda: {"masks": "msks"}), "msks: folder is unreadable"),
    (
        "an image without a mask",
        _folders(lambda: Path("masks/a.png").unlink()),
        "mask is missing for 1 of 5 images",
    ),
    ("a mask without an image", _folders(lambda: Path("photos/a.jpg").unlink() and None)),
    (
        "no mask fits",
        _folders(lambda: {"mask_name": "{stem}_label"}),
        "of none of 5 images, expected as a_label",
    ),
    (
        "masks with a name of their own",
        _folders(
            lambda: (
                [Path(f"masks/{n}.png").rename(f"masks/{n}_mask.png") for n in (*TRAIN, *VAL)]
                and {"mask_name": "{stem}_mask.png"}
            )
        ),
    ),
    ("a name of masks without {stem}", _folders(lambda: {"mask_name": "mask.png"}), "stem"),
    (
        "a file of notes among images",
        _folders(lambda: Path("photos/notes.txt").write_text("x") and None),
    ),
    (
        "a hidden file of a Mac",
        _folders(lambda: Path("photos/.DS_Store").write_bytes(b"x") and None),
    ),
    (
        "a resource fork of a Mac",
        _folders(lambda: Path("photos/._a.jpg").write_bytes(b"x") and None),
    ),
    (
        "an empty folder of images",
        _folders(lambda: [path.unlink() for path in Path("photos").iterdir()] and None),
        "photos: images is none",
    ),
    (
        "two images of one name",
        _folders(lambda: Image.new("RGB", HW[::-1]).save("photos/a.png")),
        "sample id is that of a.jpg",
    ),
    ("endings in capitals", _folders(lambda: Path("photos/a.jpg").rename("photos/a.JPG") and None)),
    ("another seed of the split", _folders(lambda: None, val_seed=7)),
    ("a fraction of nothing", _folders(lambda: None, val_fraction=0.0), "val_fraction"),
    ("a fraction in percent", _folders(lambda: None, val_fraction=20), "val_fraction"),
    ("one folder for images and masks", lambda: _together()),
    ("val in folders of its own", lambda: _apart()),
    ("val's folder without masks", lambda: _apart() | {"val_masks": "nowhere"}, "nowhere"),
    (
        "val's folder that is train's",
        _folders(lambda: {"val_images": "photos"}),
        "image .a. of val is also .a. of train",
    ),
    ("images in folders below", _folders(lambda: _below())),
    (
        "a folder through a link",
        _folders(lambda: Path("link").symlink_to("photos") or {"images": "link"}),
    ),
)


def _together() -> dict:
    given = folders(masks="photos")
    for name in (*TRAIN, *VAL):
        Path(f"photos/{name}.png").rename(f"photos/{name}_mask.png")
    return {**given, "mask_name": "{stem}_mask.png"}


def _apart() -> dict:
    given = folders()
    Path("val").mkdir()
    Path("val masks").mkdir()
    for name in VAL:
        Path(f"photos/{name}.jpg").rename(f"val/{name}.jpg")
        Path(f"masks/{name}.png").rename(f"val masks/{name}.png")
    return {**given, "val_images": "val", "val_masks": "val masks"}


def _below() -> None:
    for top, ending in (("photos", "jpg"), ("masks", "png")):
        Path(top, "x").mkdir()
        for name in ("a", "b"):
            Path(top, f"{name}.{ending}").rename(Path(top, "x", f"{name}.{ending}"))


DATA = [*LISTS, *IDS, *PICTURES, *MASKS, *FOLDERS]
