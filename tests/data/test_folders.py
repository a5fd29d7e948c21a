"""Images and masks in folders of their own: paired by their names, or refused in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.cache.index import read_group_record
from kdcache.cache.manifest import read_manifest
from kdcache.cache.verify import verify_cache
from kdcache.config import DatasetConfig, config_to_dict
from kdcache.config.parser import make_config
from kdcache.data.voc import VOC_DIR, find_samples, read_split, read_unlabelled
from kdcache.errors import DataError, SettingsError
from kdcache.models import fit
from kdcache.precompute import build
from kdcache.precompute.build import build_cache
from kdcache.progress import Silent
from kdcache.storage import open_storage
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


def write_cityscapes(root: Path) -> DatasetConfig:
    """Three frames in two cities of train, one in val; beside each mask the other files."""
    for seed, frame in enumerate(("train/aachen/aachen_000", "train/aachen/aachen_001",
                                  "train/bonn/bonn_000", "val/lindau/lindau_000")):  # fmt: skip
        save_image(root / "leftImg8bit" / f"{frame}_leftImg8bit.png", seed)
        for kind in ("labelIds", "color", "instanceIds"):
            save_mask(root / "gtFine" / f"{frame}_gtFine_{kind}.png")
    folders = {"images": "leftImg8bit/train", "masks": "gtFine/train"}
    folders |= {"val_images": "leftImg8bit/val", "val_masks": "gtFine/val"}
    names = {"image_name": "{stem}_leftImg8bit.png", "mask_name": "{stem}_gtFine_labelIds.png"}
    return config_for(root, **{k: str(root / v) for k, v in folders.items()}, **names)


def test_cityscapes_as_it_is(root: Path):
    config = write_cityscapes(root)
    assert list_ids(config, "train") == ["aachen/aachen_000", "aachen/aachen_001", "bonn/bonn_000"]
    assert list_ids(config, "val") == ["lindau/lindau_000"]
    for split in ("train", "val"):
        assert read_split(config, split).pixels[1] > 0
        for sample in find_samples(config, split):
            city, frame = sample.id.split("/")
            assert sample.image_path.name == f"{frame}_leftImg8bit.png"
            assert sample.label_path.name == f"{frame}_gtFine_labelIds.png"
            assert sample.image_path.parent.name == sample.label_path.parent.name == city


def test_images_of_one_name_in_two_folders_are_two(root: Path):
    """As frames of films; the mask is in the same folder below, and nowhere else."""
    for seed, film in enumerate(("one", "two/part")):
        save_image(root / "photos" / film / "img-1.jpg", 50 + seed)
        save_mask(root / "masks" / film / "img-1.png")
    config = config_for(root)
    found = {s.id: s for split in ("train", "val") for s in find_samples(config, split)}
    assert sorted(found) == sorted([*NAMES, "one/img-1", "two/part/img-1"])
    assert found["two/part/img-1"].label_path == root / "masks/two/part/img-1.png"
    (root / "masks/one/img-1.png").rename(root / "masks/two/img-1.png")
    check_refused(config, "one/img-1.jpg: mask is missing for 1 of 12 images")


def test_folders_that_are_named_are_not_a_part_of_others(root: Path):
    """Masks and val below the images; links are followed, but not in a circle."""
    (root / "masks").rename(root / "photos" / "masks")
    save_image(root / "photos" / "val" / "v.jpg", 20)
    save_mask(root / "photos" / "val" / "truth" / "v.png")
    (root / "photos" / "again").symlink_to(root / "photos")
    (root / "photos" / ".hidden").mkdir()
    save_image(root / "photos" / ".hidden" / "h.jpg", 21)
    save_image(root / "elsewhere" / "e.jpg", 22)
    (root / "photos" / "link").symlink_to(root / "elsewhere")
    save_mask(root / "photos" / "masks" / "link" / "e.png")
    folders = {"masks": "masks", "val_images": "val", "val_masks": "val/truth"}
    config = config_for(root, **{k: str(root / "photos" / v) for k, v in folders.items()})
    assert list_ids(config, "train") == [*NAMES, "link/e"]
    assert list_ids(config, "val") == ["v"]


def test_what_fits_both_names_is_what_the_longer_one_says(root: Path):
    photos = root / "photos"
    for path in list(photos.iterdir()):
        path.rename(photos / f"{path.stem}_rgb.jpg")
        (root / "masks" / f"{path.stem}.png").rename(photos / f"{path.stem}.png")
    config = config_for(root, masks=str(photos), image_name="{stem}_rgb")
    assert sorted(list_ids(config, "train") + list_ids(config, "val")) == NAMES
    save_mask(photos / "orphan_mask.png")
    config = config_for(root, masks=str(photos), mask_name="{stem}_mask", unlabelled="rest")
    check_refused(config, "mask is of none of 20 images", "img-0_mask for img-0.png")


def test_a_mask_has_one_image(root: Path):
    """Patterns that fit two files of a stem name both of them."""
    names = {"image_name": "{stem}_rgb", "mask_name": "{stem}_gt"}
    for path in list((root / "photos").iterdir()):
        path.rename(path.with_name(f"{path.stem}_rgb.jpg"))
        mask = root / "masks" / f"{path.stem}.png"
        mask.rename(mask.with_name(f"{path.stem}_gt.png"))
    assert len(find_samples(config_for(root, **names), "train")) == 8
    save_image(root / "photos" / "img-2_rgb.png", 60)
    check_refused(config_for(root, **names), "img-2_rgb.png: sample id is that of img-2_rgb.jpg")
    (root / "photos" / "img-2_rgb.png").unlink()
    save_mask(root / "masks" / "img-2_gt.tif")
    parts = ("img-2_gt.tif: mask is a second one, beside img-2_gt.png", "dataset.image_name or")
    check_refused(config_for(root, **names), *parts)


def test_no_image_of_that_name_says_what_was_looked_for(root: Path):
    config = config_for(root, image_name="{stem}_leftImg8bit.png")
    check_refused(config, "photos: images is none", "like {stem}_leftImg8bit.png", "image_name")


def test_images_without_a_mask_are_the_rest(root: Path):
    (root / "masks" / "img-3.png").unlink()
    parts = ("img-3.jpg: mask is missing for 1 of 10 images", "dataset.unlabelled to rest")
    check_refused(config_for(root), *parts)
    config = config_for(root, unlabelled="rest")
    labelled = {name: read_split(config, name) for name in ("train", "val")}
    assert [sample.id for sample in read_unlabelled(config, labelled).samples] == ["img-3"]


def test_two_masks_for_an_image_are_refused(root: Path):
    save_mask(root / "masks" / "img-4.bmp")
    parts = ("img-4.png: mask is a second one, beside img-4.bmp", "one for image img-4")
    check_refused(config_for(root), *parts, "dataset.mask_name")


def test_two_images_of_one_name_are_refused(root: Path):
    save_image(root / "photos" / "img-4.bmp", 4)
    check_refused(config_for(root), "img-4.jpg: sample id is that of img-4.bmp")


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
        ({"mask_name": "{stem}_{stem}"}, ["dataset.mask_name is", "{stem} in it, once"]),
        ({"mask_name": "{image_path.stem}_mask.png"}, ["dataset.mask_name is", "{stem}"]),
        ({"image_name": "*_leftImg8bit.png"}, ["dataset.image_name is", "{stem}"]),
        ({"val_fraction": 1.0}, ["dataset.val_fraction is 1.0"]),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(given: dict, parts: list[str]):
    with pytest.raises(SettingsError) as error:
        DatasetConfig(**given)
    check_one_line(error, *parts)


def test_the_same_samples_in_folders_are_the_same_cache(tmp_path: Path, monkeypatch):
    """Of both layouts, with one image of validation; another part for validation grows by one."""
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
    grown = build_cache(make_config(given, {"dataset": {"val_fraction": 0.4}}))
    assert grown.num_samples == 1


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


def test_a_cache_of_images_in_folders_below_is_whole(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build, "build_teacher", make_quick_teacher)
    base = write_quick_data(tmp_path / "data") / VOC_DIR
    given = quick_given(tmp_path / "none", tmp_path / "cache")
    for folder, name in (("JPEGImages", "images"), ("SegmentationClass", "masks")):
        shutil.copytree(base / folder, tmp_path / folder / "day" / "one")
        given["dataset"][name] = tmp_path / folder
    build_cache(make_config(given))
    findings, manifest = (
        verify_cache(tmp_path / "cache", data=True),
        read_manifest(tmp_path / "cache"),
    )
    assert findings.num_groups > 0 and not findings.damage
    group = manifest.layouts["train"].group(0, 0)
    ids = read_group_record(open_storage(tmp_path / "cache"), manifest, group).sample_ids
    assert ids and all(id.startswith("day/one/") for id in ids)
