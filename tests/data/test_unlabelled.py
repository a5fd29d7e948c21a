"""Unlabelled images are found three ways, and none of them is an image of train or val."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.config import DatasetConfig
from kdcache.data.pictures import Split, read_sample
from kdcache.data.voc import check_apart, read_split, read_unlabelled
from kdcache.errors import DataError, SettingsError
from tests.support.helpers import check_one_line, write_list, write_sample, write_voc


@pytest.fixture
def base(tmp_path) -> Path:
    """2 training and 2 validation images, and 3 more in no list, one of them with a label."""
    base = write_voc(tmp_path, {"train": ["a", "b"], "val": ["c", "d"]})
    for sample_id in ("x", "y", "z"):
        write_sample(base, sample_id, hw=(20, 24), num_classes=3)
    for sample_id in ("y", "z"):
        (base / "SegmentationClass" / f"{sample_id}.png").unlink()
    return base


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two images, one of them grey, and of other files."""
    folder = tmp_path / "frames"
    folder.mkdir()
    save(folder / "n2.png", 2)
    Image.fromarray(pixels(3)[..., 0]).save(folder / "n1.jpg")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".n3.png").write_bytes(b"hidden")
    return folder


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)


def save(path: Path, seed: int) -> None:
    Image.fromarray(pixels(seed)).save(path)


def config_for(base: Path, unlabelled: str) -> DatasetConfig:
    return DatasetConfig(root=base.parents[1], num_classes=3, download=False, unlabelled=unlabelled)


def read(base: Path, unlabelled: object) -> Split:
    config = config_for(base, str(unlabelled))
    return read_unlabelled(config, {name: read_split(config, name) for name in ("train", "val")})


def refuse(base: Path, unlabelled: object, *parts: object) -> None:
    with pytest.raises(DataError) as error:
        read(base, unlabelled)
    check_one_line(error, *map(str, parts))


def test_a_list_needs_no_labels_and_keeps_its_order(base):
    write_list(base, "more", ["z", "x"])
    split = read(base, "more")
    assert [sample.id for sample in split.samples] == ["z", "x"]
    assert all(sample.label_path is None for sample in split.samples)


def test_one_image_is_enough(base):
    write_list(base, "more", ["z"])
    assert len(read(base, "more").samples) == 1


def test_rest_is_every_image_in_neither_list(base):
    assert [sample.id for sample in read(base, "rest").samples] == ["x", "y", "z"]


def test_a_folder_gives_its_images_by_name_and_grey_as_rgb(base, folder):
    split = read(base, folder)
    assert [sample.id for sample in split.samples] == ["n1", "n2"]
    image, label = read_sample(config_for(base, str(folder)), split.samples[0])
    assert image.shape == (9, 11, 3) and label is None
    assert np.array_equal(image[..., 0], image[..., 2])


def test_the_fingerprint_says_which_images_in_which_order(base):
    write_list(base, "more", ["x", "y"])
    write_list(base, "turned", ["y", "x"])
    before = read(base, "more").fingerprint
    assert read(base, "more").fingerprint == before != read(base, "turned").fingerprint
    save(base / "JPEGImages" / "y.jpg", 5)
    assert read(base, "more").fingerprint != before


@pytest.mark.parametrize(("sample_id", "role"), [("a", "train"), ("d", "val")])
def test_images_of_train_and_val_are_refused_by_id(base, sample_id, role):
    write_list(base, "more", ["x", sample_id])
    refuse(base, "more", "more.txt", f"sample id is '{sample_id}'", f"no image of {role}")


def test_images_of_val_are_refused_by_content(base, folder):
    (folder / "copy.jpg").write_bytes((base / "JPEGImages" / "d.jpg").read_bytes())
    refuse(base, folder, "copy.jpg", "'copy' of unlabelled", "'d' of val")


def test_copies_of_train_are_left_out_and_said(base, folder, caplog):
    before = read(base, folder)
    (folder / "copy.jpg").write_bytes((base / "JPEGImages" / "a.jpg").read_bytes())
    assert not caplog.messages
    assert read(base, folder) == before
    (line,) = caplog.messages
    assert "1 of 3 images are left out: they are in train, too, as 'copy'" in line


def test_nothing_but_copies_of_train_is_refused(base, folder):
    for path in folder.iterdir():
        path.unlink()
    (folder / "copy.jpg").write_bytes((base / "JPEGImages" / "a.jpg").read_bytes())
    refuse(base, folder, "copy.jpg", "'copy' of unlabelled", "'a' of train")


@pytest.mark.parametrize("by", ["id", "content"])
def test_train_and_val_share_no_image(base, by):
    if by == "id":
        write_list(base, "val", ["c", "b"])
    else:
        images = base / "JPEGImages"
        (images / "d.jpg").write_bytes((images / "b.jpg").read_bytes())
    config, shared = config_for(base, "rest"), "b" if by == "id" else "d"
    with pytest.raises(DataError) as error:
        check_apart({name: read_split(config, name) for name in ("train", "val")})
    check_one_line(error, f"{shared}.jpg: image '{shared}' of val is also 'b' of train", "; take")


def test_nothing_at_all_is_refused(base, tmp_path):
    write_list(base, "more", [])
    refuse(base, "more", "more.txt", "0 ids", "one or more")
    (tmp_path / "empty").mkdir()
    refuse(base, tmp_path / "empty", "unlabelled images is none", "change dataset.unlabelled")
    for sample_id in ("x", "y", "z"):
        (base / "JPEGImages" / f"{sample_id}.jpg").unlink()
    refuse(base, "rest", "JPEGImages", "is none", "change dataset.unlabelled")
    refuse(base, "nowhere", "nowhere.txt", "a folder of images, or rest")
    with pytest.raises(SettingsError, match="dataset.unlabelled is ''"):
        config_for(base, "")


def test_bad_images_are_refused_by_name(base, folder):
    (folder / "n2.png").write_bytes((folder / "n2.png").read_bytes()[:60])
    refuse(base, folder, "n2.png: image is unreadable or truncated")


@pytest.mark.parametrize(
    ("kind", "mode"), [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")]
)
def test_more_than_8_bits_are_refused_by_name(base, folder, kind, mode):
    Image.fromarray(pixels(4)[..., 0].astype(kind)).save(folder / "deep.tif")
    refuse(base, folder, "deep.tif", f"mode is '{mode}", "8-bit RGB or grey")


def test_folders_below_a_folder_are_looked_at_but_not_below_jpegimages(base, folder):
    (folder / "film").mkdir()
    save(folder / "film" / "n2.png", 7)
    assert [sample.id for sample in read(base, folder).samples] == ["film/n2", "n1", "n2"]
    (base / "JPEGImages" / "film").mkdir()
    save(base / "JPEGImages" / "film" / "n2.jpg", 7)
    assert [sample.id for sample in read(base, "rest").samples] == ["x", "y", "z"]


def test_names_that_are_no_ids_or_the_same_id_are_refused(base, folder):
    save(folder / "n1.png", 6)
    refuse(base, folder, "n1.png", "sample id is that of n1.jpg", "rename or remove")
    (folder / "n1.png").rename(folder / "n 3.png")
    refuse(base, folder, "n 3.png", "letters, digits, _ - .", "rename it")
