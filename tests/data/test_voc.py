"""The VOC folder layout: what is wrong is met before the first batch, by the name of its file."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import voc as torchvision_voc

from kdcache.config import DatasetConfig
from kdcache.data.pictures import read_sample
from kdcache.data.voc import VOC_ARCHIVE, VOC_DIR, download_voc, find_samples, read_split
from kdcache.errors import DataError
from tests.support.helpers import (
    ARCHIVE,
    NOBODY_LISTENS,
    check_one_line,
    point_torchvision_at,
    save_label,
    serve,
    write_list,
    write_sample,
    write_voc,
)

IDS = ["2007_000027", "2007_000032", "b-3.x"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_voc(tmp_path / "data", {"train": IDS}, num_classes=3)
    return tmp_path / "data"


def config_for(root: Path, **changes) -> DatasetConfig:
    return DatasetConfig(**{"root": root, "num_classes": 3, "download": False, **changes})


def image_file(root: Path, sample_id: str) -> Path:
    return root / VOC_DIR / "JPEGImages" / f"{sample_id}.jpg"


def label_file(root: Path, sample_id: str, folder: str = "SegmentationClass") -> Path:
    return root / VOC_DIR / folder / f"{sample_id}.png"


def list_file(root: Path, split: str = "train") -> Path:
    return root / VOC_DIR / "ImageSets" / "Segmentation" / f"{split}.txt"


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def check_refused(root: Path, *parts: str, **changes) -> None:
    """Reading the training split fails with one line that holds all parts."""
    with pytest.raises(DataError) as error:
        read_split(config_for(root, **changes), "train")
    check_one_line(error, *parts)


# --- what is right


def test_samples_come_in_the_order_of_the_list(root: Path):
    write_list(root / VOC_DIR, "train", IDS[::-1])
    samples = find_samples(config_for(root), "train")
    assert [sample.id for sample in samples] == IDS[::-1]
    assert samples[0].image_path == image_file(root, IDS[2]) and samples[
        0
    ].label_path == label_file(root, IDS[2])


def test_sample_is_the_decoded_files(root: Path):
    sample = find_samples(config_for(root), "train")[0]
    image, label = read_sample(config_for(root), sample)
    assert (image.shape, image.dtype, label.shape, label.dtype) == (
        (20, 24, 3),
        np.uint8,
        (20, 24),
        np.uint8,
    )
    np.testing.assert_array_equal(image, read_pixels(sample.image_path))
    np.testing.assert_array_equal(label, read_pixels(sample.label_path))
    assert (label[:2] == 255).all() and set(np.unique(label)) == {0, 1, 2, 255}


def test_every_checked_sample_is_reported(root: Path):
    reports = []
    split = read_split(config_for(root), "train", advance=reports.append)
    assert reports == [1, 1, 1]
    assert (split.name, [sample.id for sample in split.samples]) == ("train", IDS)


def test_trainaug_reads_the_augmented_labels(root: Path):
    write_list(root / VOC_DIR, "trainaug", IDS[:2])
    for sample_id in IDS[:2]:
        save_label(
            label_file(root, sample_id, "SegmentationClassAug"), np.full((20, 24), 2, np.uint8)
        )
    config = config_for(root)
    split = read_split(config, "trainaug")
    assert {sample.label_path.parent.name for sample in split.samples} == {"SegmentationClassAug"}
    assert (read_sample(config, split.samples[0])[1] == 2).all()


def test_labels_may_stand_in_another_folder_of_the_layout(root: Path):
    (root / VOC_DIR / "Raw").mkdir()
    for sample_id in IDS:
        save_label(label_file(root, sample_id, "Raw"), np.full((20, 24), 7, np.uint8))
    config = config_for(root, label_folder="Raw", label_map={"7": 1})
    split = read_split(config, "train")
    assert {sample.label_path.parent.name for sample in split.samples} == {"Raw"}
    assert (read_sample(config, split.samples[0])[1] == 1).all()


@pytest.mark.parametrize("name", ["Raw", "..", "a/b", "/tmp"])
def test_a_folder_of_labels_that_is_not_there_is_refused(root: Path, name: str):
    with pytest.raises(DataError, match=f"folder of labels is '{name}', expected a folder beside"):
        find_samples(config_for(root, label_folder=name), "train")


def test_ignore_index_other_than_255_becomes_255_and_255_stays_void(root: Path):
    label = np.zeros((20, 24), np.uint8)
    label[3:6], label[10:] = 7, 255
    save_label(label_file(root, IDS[0]), label)
    config = config_for(root, ignore_index=7)
    read_split(config, "train")
    found = read_sample(config, find_samples(config, "train")[0])[1]
    np.testing.assert_array_equal(found == 255, (label == 7) | (label == 255))
    assert (found[found != 255] == 0).all()


def test_ignored_class_below_num_classes_becomes_255(root: Path):
    config = config_for(root, ignore_index=0)
    sample = find_samples(config, "train")[0]
    raw = read_pixels(sample.label_path)
    np.testing.assert_array_equal(read_sample(config, sample)[1] == 255, (raw == 0) | (raw == 255))


def test_grey_png_label_and_grey_jpeg_image_are_read(root: Path):
    label = np.ones((20, 24), np.uint8)
    Image.fromarray(label).save(label_file(root, IDS[0]))
    Image.fromarray(np.full((20, 24), 80, np.uint8)).save(image_file(root, IDS[0]))
    image, found = read_sample(config_for(root), find_samples(config_for(root), "train")[0])
    assert image.shape == (20, 24, 3) and abs(image.astype(int) - 80).max() <= 2
    np.testing.assert_array_equal(found, label)


def test_list_may_have_windows_line_ends_and_no_last_one(root: Path):
    list_file(root).write_bytes("\r\n".join(IDS).encode())
    assert [sample.id for sample in find_samples(config_for(root), "train")] == IDS


# --- the fingerprint


def fingerprint(root: Path) -> str:
    return read_split(config_for(root), "train").fingerprint


def test_fingerprint_does_not_change_with_the_folder(root: Path, tmp_path: Path):
    shutil.copytree(root, tmp_path / "elsewhere")
    assert fingerprint(tmp_path / "elsewhere") == fingerprint(root)


def test_fingerprint_does_not_change_with_files_outside_the_list(root: Path):
    before = fingerprint(root)
    write_sample(root / VOC_DIR, "other", hw=(20, 24), num_classes=3)
    write_list(root / VOC_DIR, "val", [IDS[0], "other"])
    assert fingerprint(root) == before


def test_fingerprint_changes_with_the_order(root: Path):
    before = fingerprint(root)
    write_list(root / VOC_DIR, "train", IDS[::-1])
    assert fingerprint(root) != before


@pytest.mark.parametrize("find", [image_file, label_file])
def test_fingerprint_changes_with_one_pixel(root: Path, find):
    before = fingerprint(root)
    pixels = read_pixels(find(root, IDS[1])).copy()
    pixels[10:18, 10:18] = 1
    if pixels.ndim == 2:
        save_label(find(root, IDS[1]), pixels)
    else:
        Image.fromarray(pixels).save(find(root, IDS[1]))
    assert fingerprint(root) != before


def test_fingerprint_changes_with_a_sample_id(root: Path):
    """Views are drawn from the id: the same pixels under another id are another training set."""
    before = fingerprint(root)
    for find in (image_file, label_file):
        find(root, IDS[0]).rename(find(root, "renamed"))
    write_list(root / VOC_DIR, "train", ["renamed", *IDS[1:]])
    assert fingerprint(root) != before


def test_fingerprint_changes_with_swapped_files(root: Path):
    before, found = fingerprint(root), set()
    for find in (image_file, label_file):
        find(root, IDS[0]).rename(root / "aside")
        find(root, IDS[1]).rename(find(root, IDS[0]))
        (root / "aside").rename(find(root, IDS[1]))
        found.add(fingerprint(root))
    assert len({before, *found}) == 3


# --- what is wrong


def test_missing_data_set_names_the_archive_and_the_demo(tmp_path: Path):
    parts = ("nowhere", "folder is missing", VOC_ARCHIVE, "https://", "`make demo`")
    check_refused(tmp_path / "nowhere", *parts, download=True)


def test_missing_split_list_is_named(root: Path):
    list_file(root).unlink()
    check_refused(root, "train.txt: split list is missing", "dataset.train_split")


def test_empty_list_is_refused(root: Path):
    list_file(root).write_text("\n\n")
    check_refused(root, "train.txt: list is 0 ids", "two or more")


def test_list_of_one_is_refused(root: Path):
    write_list(root / VOC_DIR, "train", IDS[:1])
    check_refused(root, "train.txt: list is 1 ids", "two or more")


def test_duplicate_ids_are_refused(root: Path):
    write_list(root / VOC_DIR, "train", [*IDS, IDS[0]])
    check_refused(root, "train.txt: sample id is '2007_000027' twice", "all different")


@pytest.mark.parametrize(
    "bad", ["../x", "/etc/x", "a/b", "..", ".hidden", "a\\b", "x\0y", "~root/x:y"]
)
def test_id_that_could_leave_its_folder_is_refused(root: Path, bad: str):
    write_list(root / VOC_DIR, "train", [*IDS, bad])
    check_refused(root, f"train.txt: sample id is {bad!r}", "expected letters")


def test_list_that_is_not_utf8_is_refused(root: Path):
    list_file(root).write_bytes(b"2007_000027\n\xff\xfe\xe9\n")
    check_refused(root, "train.txt: split list is no text, expected UTF-8", "UTF-8")


def test_missing_image_is_named(root: Path):
    image_file(root, IDS[1]).unlink()
    check_refused(root, f"{IDS[1]}.jpg: file is missing", "split list")


def test_image_without_label_is_named(root: Path):
    label_file(root, IDS[1]).unlink()
    check_refused(root, f"SegmentationClass/{IDS[1]}.png: file is missing", "split list")


def test_trainaug_without_augmented_labels_is_refused(root: Path):
    write_list(root / VOC_DIR, "trainaug", IDS)
    with pytest.raises(DataError, match=rf"SegmentationClassAug/{IDS[0]}\.png: file is missing"):
        read_split(config_for(root), "trainaug")


@pytest.mark.parametrize("bad", [3, 20, 254])
def test_class_beyond_num_classes_is_refused(root: Path, bad: int):
    label = np.zeros((20, 24), np.uint8)
    label[19, 23] = bad
    save_label(label_file(root, IDS[2]), label)
    check_refused(root, f"{IDS[2]}.png: class is {bad}, expected 0 to 2", "dataset.num_classes")


def test_255_is_void_and_not_a_class_whatever_ignore_index_says(root: Path):
    assert read_split(config_for(root, ignore_index=9), "train").samples


def test_image_and_label_of_different_size_are_refused(root: Path):
    save_label(label_file(root, IDS[0]), np.zeros((24, 20), np.uint8))
    check_refused(root, f"{IDS[0]}.png: size is 20x24, expected 24x20", f"{IDS[0]}.jpg")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("find", [image_file, label_file])
def test_truncated_file_is_refused(root: Path, find, share: float):
    data = find(root, IDS[1]).read_bytes()
    find(root, IDS[1]).write_bytes(data[: int(share * len(data))])
    check_refused(
        root, f"{find(root, IDS[1]).name}: image is unreadable or truncated", "restore the file"
    )


@pytest.mark.parametrize("find", [image_file, label_file])
def test_file_that_is_no_picture_is_refused(root: Path, find):
    find(root, IDS[1]).write_text("<html>404</html>")
    check_refused(root, f"{find(root, IDS[1]).name}: image is unreadable")


@pytest.mark.parametrize(("mode", "shown"), [("RGB", "'RGB'"), ("RGBA", "'RGBA'"), ("LA", "'LA'")])
def test_label_that_is_no_numbers_is_refused(root: Path, mode: str, shown: str):
    Image.new(mode, (24, 20)).save(label_file(root, IDS[0]))
    parts = ("'P' or 'L'", "8-bit palette", "dataset.palette for colours")
    check_refused(root, f"{IDS[0]}.png: mode is {shown}", *parts)


def test_folder_in_place_of_a_file_is_refused(root: Path):
    image_file(root, IDS[0]).unlink()
    image_file(root, IDS[0]).mkdir()
    check_refused(root, f"{IDS[0]}.jpg: file is no file, expected a plain file")


def test_reading_a_sample_that_changed_since_the_check_is_refused(root: Path):
    config = config_for(root)
    split = read_split(config, "train")
    image_file(root, IDS[0]).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{IDS[0]}\.jpg: image is unreadable"):
        read_sample(config, split.samples[0])


# --- the download


@pytest.fixture
def archive(root: Path, tmp_path: Path) -> Path:
    """A tar of the small set in a folder to serve."""
    (tmp_path / "served").mkdir()
    with tarfile.open(tmp_path / "served" / ARCHIVE, "w") as tar:
        tar.add(root / "VOCdevkit", "VOCdevkit")
    return tmp_path / "served" / ARCHIVE


def test_absent_data_set_is_downloaded_and_unpacked(
    root: Path, archive: Path, tmp_path: Path, monkeypatch
):
    config = config_for(tmp_path / "new" / "voc", download=True)
    with serve(archive.parent, monkeypatch) as url:
        point_torchvision_at(monkeypatch, url, hashlib.md5(archive.read_bytes()).hexdigest())
        download_voc(config)
    assert read_split(config, "train").fingerprint == fingerprint(root)


def test_download_with_a_wrong_md5_is_refused(archive: Path, tmp_path: Path, monkeypatch):
    config = config_for(tmp_path / "new", download=True)
    with serve(archive.parent, monkeypatch) as url:
        point_torchvision_at(monkeypatch, url, "0" * 32)
        with pytest.raises(DataError) as error:
            download_voc(config)
    check_one_line(
        error,
        "folder is missing",
        "the download failed",
        "corrupted",
        VOC_ARCHIVE,
        str(config.root),
        "`make demo`",
    )
    assert not (config.root / VOC_DIR).exists()


def test_file_missing_on_the_server_is_one_line(archive: Path, tmp_path: Path, monkeypatch):
    archive.unlink()
    with serve(archive.parent, monkeypatch) as url:
        point_torchvision_at(monkeypatch, url, "0" * 32)
        with pytest.raises(DataError) as error:
            download_voc(config_for(tmp_path / "new", download=True))
    check_one_line(error, "the download failed", "404", VOC_ARCHIVE)
    error.value.__context__.close()  # the server's answer: urllib leaves its socket open


def test_unreachable_server_is_one_line_with_the_way_by_hand(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    point_torchvision_at(monkeypatch, NOBODY_LISTENS, "0" * 32)
    with pytest.raises(DataError) as error:
        download_voc(config_for(tmp_path / "new", download=True))
    check_one_line(
        error, "the download failed", "refused", VOC_ARCHIVE, "by hand", str(tmp_path / "new")
    )


def test_archive_put_there_by_hand_is_unpacked_without_network(
    root: Path, archive: Path, tmp_path: Path, monkeypatch
):
    """What the message of a failed download tells people to do."""
    point_torchvision_at(monkeypatch, NOBODY_LISTENS, hashlib.md5(archive.read_bytes()).hexdigest())
    config = config_for(tmp_path / "new", download=True)
    config.root.mkdir()
    shutil.copy(archive, config.root)
    download_voc(config)
    assert read_split(config, "train").fingerprint == fingerprint(root)


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_downloaded_where_the_data_set_is_there_or_unwanted(
    root: Path, tmp_path: Path, monkeypatch, there: bool
):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr(torchvision_voc, "download_and_extract_archive", refuse)
    download_voc(
        config_for(root, download=True) if there else config_for(tmp_path / "new", download=False)
    )
    with pytest.raises(AssertionError, match="a download was started"):
        download_voc(config_for(tmp_path / "new", download=True))
