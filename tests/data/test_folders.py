"""Images and masks in folders of their own: paired by their names, or refused in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.config import DatasetConfig, config_to_dict
from kdcache.config.parser import make_config
from kdcache.data.voc import VOC_DIR, find_samples, read_split, read_unlabelled
from kdcache.errors import CacheMismatchError, DataError, SettingsError
from kdcache.models import fit
from kdcache.precompute import build
from kdcache.precompute.build import build_cache
from kdcache.progress import Silent
from tests.support.helpers import check_one_line, save_label
from tests.support.quick import make_quick_teacher, quick_given, write_quick_data

NAMES = [f"img-{number}" for number in range(10)]


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)).save(path)


def save_mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_label(path, np.ones((9, 11), np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        save_image(tmp_path / "photos" / f"{name}.jpg", seed)
        save_mask(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def config_for(root: Path, **changes) -> DatasetConfig:
    folders = {name: str(root / name) for name in ("photos", "masks")}
    given = {"images": folders["photos"], "masks": folders["masks"], **changes}
    return DatasetConfig(root=root / "nowhere", num_classes=3, **given)


def list_ids(config: DatasetConfig, split: str) -> list[str]:
    return [sample.id for sample in find_samples(config, split)]


def check_refused(config: DatasetConfig, *parts: str, split: str = "train") -> None:
    with pytest.raises(DataError) as error:
        find_samples(config, split)
    check_one_line(error, *parts)


def test_val_is_a_part_that_a_seed_chooses(root: Path):
    config = config_for(root, val_fraction=0.3)
    train, val = list_ids(config, "train"), list_ids(config, "val")
    assert len(val) == 3 and sorted(train + val) == NAMES and train == sorted(train)
    assert list_ids(config, "val") == val
    others = [list_ids(config_for(root, val_fraction=0.3, val_seed=s), "val") for s in range(1, 6)]
    assert any(other != val for other in others)


def test_val_may_have_folders_of_its_own(root: Path):
    save_image(root / "val" / "v.png", 20)
    save_mask(root / "val_masks" / "v.png")
    config = config_for(root, val_images=str(root / "val"), val_masks=str(root / "val_masks"))
    assert (list_ids(config, "train"), list_ids(config, "val")) == (NAMES, ["v"])
    save_mask(root / "masks" / "v.png")
    config = config_for(root, val_images=str(root / "val"))
    assert find_samples(config, "val")[0].label_path == root / "masks" / "v.png"
    assert read_split(config, "val").samples[0].id == "v"


@pytest.mark.parametrize(
    "ending", ["JPG", "Jpeg", "jpeg", "PNG", "bmp", "BMP", "tif", "TIFF", "webp"]
)
def test_every_ending_in_any_case(root: Path, ending: str):
    save_image(root / "photos" / f"other.{ending}", 30)
    save_mask(root / "masks" / "other.PNG")
    config = config_for(root)
    found = find_samples(config, "train") + find_samples(config, "val")
    assert root / "photos" / f"other.{ending}" in [sample.image_path for sample in found]


@pytest.mark.parametrize("name", ["{stem}_mask", "{stem}_mask.png", "m.{stem}.png"])
def test_name_of_a_mask_by_its_image(root: Path, name: str):
    for path in (root / "masks").iterdir():
        new = name.replace("{stem}", path.stem).removesuffix(".png")
        path.rename(root / "masks" / f"{new}.png")
    config = config_for(root, mask_name=name)
    assert sorted(list_ids(config, "train") + list_ids(config, "val")) == NAMES


def test_images_and_masks_may_share_a_folder(root: Path):
    for path in (root / "masks").iterdir():
        path.rename(root / "photos" / f"{path.stem}_mask.png")
    photos = str(root / "photos")
    config = config_for(root, masks=photos, mask_name="{stem}_mask")
    assert sorted(list_ids(config, "train") + list_ids(config, "val")) == NAMES
    for path in list((root / "photos").glob("*_mask.png")):
        path.rename(root / "photos" / path.name.replace("_mask", ""))
    config = config_for(root, masks=photos, mask_name="{stem}.png")
    found = find_samples(config, "train")
    assert {s.image_path.suffix for s in found} == {".jpg"}
    assert {s.label_path.suffix for s in found} == {".png"}
    check_refused(config_for(root, masks=photos), "images is none")


def test_images_without_a_mask_are_the_rest(root: Path):
    (root / "masks" / "img-3.png").unlink()
    parts = ("img-3.jpg: mask is missing for 1 of 10 images", "dataset.unlabelled to rest")
    check_refused(config_for(root), *parts)
    config = config_for(root, unlabelled="rest")
    labelled = {name: read_split(config, name) for name in ("train", "val")}
    assert [sample.id for sample in read_unlabelled(config, labelled).samples] == ["img-3"]


def test_two_masks_for_an_image_are_refused(root: Path):
    save_mask(root / "masks" / "img-4.bmp")
    parts = ("img-4.png: mask is a second one, beside img-4.bmp", "one for img-4.jpg")
    check_refused(config_for(root), *parts, "dataset.mask_name")


def test_two_images_of_one_name_are_refused(root: Path):
    save_image(root / "photos" / "img-4.bmp", 4)
    check_refused(config_for(root), "img-4.jpg: sample id is img-4.bmp")


def test_no_pair_at_all_says_what_was_looked_for(root: Path):
    parts = ("masks: mask is of none of 10 images", "img-0_gt for img-0.jpg", "dataset.mask_name")
    check_refused(config_for(root, mask_name="{stem}_gt"), *parts)


def test_folders_that_are_missing_or_empty_are_named(root: Path):
    (root / "empty").mkdir()
    check_refused(config_for(root, images=str(root / "no")), "no: folder is", "dataset.images")
    check_refused(config_for(root, masks=str(root / "no")), "no: folder is", "dataset.masks")
    check_refused(config_for(root, images=str(root / "empty")), "images is none")
    for path in list((root / "photos").iterdir())[2:]:
        path.unlink()
    check_refused(config_for(root), "images of train with a mask is 1", "two or more")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"images": "a"}, ["dataset.images is 'a'", "dataset.masks beside it"]),
        ({"masks": "a"}, ["dataset.masks is 'a'", "dataset.images beside it"]),
        ({"val_images": "a"}, ["dataset.images beside it"]),
        ({"images": "", "masks": "b"}, ["dataset.images"]),
        ({"images": "a", "masks": "b", "val_masks": "c"}, ["dataset.val_images beside it"]),
        ({"images": "a", "masks": "b", "val_split": "train"}, ["dataset.val_split is 'train'"]),
        ({"mask_name": "mask.png"}, ["dataset.mask_name is 'mask.png'", "{stem}"]),
        ({"mask_name": "../{stem}"}, ["dataset.mask_name is '../{stem}'"]),
        ({"val_fraction": 1.0}, ["dataset.val_fraction is 1.0"]),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(given: dict, parts: list[str]):
    with pytest.raises(SettingsError) as error:
        DatasetConfig(**given)
    check_one_line(error, *parts)


def test_the_same_samples_in_folders_are_the_same_cache(tmp_path: Path, monkeypatch):
    """Of both layouts, with one image of validation; another part for validation is refused."""
    monkeypatch.setattr(build, "build_teacher", make_quick_teacher)
    base = write_quick_data(tmp_path / "data") / VOC_DIR
    for folder in ("JPEGImages", "SegmentationClass"):
        shutil.copytree(base / folder, tmp_path / folder)
    given = quick_given(tmp_path / "none", tmp_path / "cache")
    folders = {"images": tmp_path / "JPEGImages", "masks": tmp_path / "SegmentationClass"}
    given["dataset"] |= {name: str(folder) for name, folder in folders.items()}
    config = make_config(given)
    assert build_cache(config).num_samples == 2 * 4 + 1
    for split in ("train", "val"):
        ids = "\n".join(list_ids(config.dataset, split))
        (base / "ImageSets/Segmentation" / f"{split}.txt").write_text(ids)
    assert (
        build_cache(make_config(quick_given(tmp_path / "data", tmp_path / "cache"))).num_samples
        == 0
    )
    with pytest.raises(CacheMismatchError):
        build_cache(make_config(given, {"dataset": {"val_fraction": 0.4}}))


@pytest.mark.parametrize("unlabelled", [None, "rest"])
def test_no_image_of_val_is_left_out_for_want_of_a_mask(root: Path, unlabelled: str | None):
    for seed, name in enumerate(("v", "w")):
        save_image(root / "val" / f"{name}.png", 20 + seed)
    save_mask(root / "masks" / "v.png")
    config = config_for(root, val_images=str(root / "val"), unlabelled=unlabelled)
    check_refused(config, "val/w.png: mask is missing for 1 of 2 images", split="val")


def test_phase_one_and_fit_say_what_the_labels_lack(root: Path, caplog):
    """Every mask holds class 1 alone, of three."""
    config = make_config({"dataset": config_to_dict(config_for(root))})
    for read in (build.read_splits, fit._read_splits):
        caplog.clear()
        read(config, Silent())
        assert "2 of 3 classes: 0 (class 0), 2 (class 2)" in caplog.text
    for path in (root / "masks").iterdir():
        save_label(path, np.full((9, 11), 255, np.uint8))
    for read in (build.read_splits, fit._read_splits):
        with pytest.raises(DataError, match="labels of val is all void"):
            read(config, Silent())


def test_train_and_val_that_share_a_picture_are_refused(root: Path):
    """By content, whatever its name."""
    save_mask(root / "val_masks" / "v.png")
    (root / "val").mkdir()
    shutil.copy(root / "photos" / "img-3.jpg", root / "val" / "v.jpg")
    folders = {"val_images": str(root / "val"), "val_masks": str(root / "val_masks")}
    config = make_config({"dataset": config_to_dict(config_for(root, **folders))})
    for read in (build.read_splits, fit._read_splits):
        with pytest.raises(DataError) as error:
            read(config, Silent())
        check_one_line(error, "v.jpg: image 'v' of val is also 'img-3' of train")
