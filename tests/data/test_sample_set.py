"""The sample data set on disk: VOC layout, determinism, class balance, and that colour gives no
class away.

N samples, H, W rows and columns, C red, green, blue.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.data.sample_set import CLASS_NAMES, VOID, write_sample_set

NUM_CLASSES = len(CLASS_NAMES)


def voc_folder(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2012"


def read_ids(root: Path, split: str) -> list[str]:
    return (voc_folder(root) / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()


def read_images(root: Path, split: str) -> np.ndarray:
    """uint8, NHWC."""
    folder = voc_folder(root) / "JPEGImages"
    return np.stack([read_pixels(folder / f"{i}.jpg") for i in read_ids(root, split)])


def read_labels(root: Path, split: str) -> np.ndarray:
    """uint8, NHW."""
    folder = voc_folder(root) / "SegmentationClass"
    return np.stack([read_pixels(folder / f"{i}.png") for i in read_ids(root, split)])


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def read_tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def colour_classifier_accuracy(root: Path) -> float:
    """Balanced accuracy on val, 0..1, of each colour's likeliest class on train; 16 steps a
    channel.
    """
    counts = np.zeros((NUM_CLASSES, 16**3))
    colours, labels = read_colours_and_labels(root, "train")
    np.add.at(counts, (labels, colours), 1)
    class_of_colour = np.argmax(counts / counts.sum(axis=1, keepdims=True), axis=0)
    colours, labels = read_colours_and_labels(root, "val")
    hits = class_of_colour[colours] == labels
    return float(np.mean([hits[labels == index].mean() for index in range(NUM_CLASSES)]))


def read_colours_and_labels(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantised colour, 0..4095, and class of every pixel that is not void; flat."""
    labels_NHW = read_labels(root, split)
    colours_NHW = (read_images(root, split) // 16).astype(np.int64) @ np.array([256, 16, 1])
    return colours_NHW[labels_NHW != VOID], labels_NHW[labels_NHW != VOID]


@pytest.fixture(scope="module")
def default_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("default")
    write_sample_set(root)
    return root


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    write_sample_set(tmp_path / "small", num_train=4, num_val=2)
    return tmp_path / "small"


def test_layout_is_complete_and_files_equal_the_lists(default_set: Path) -> None:
    train_ids, val_ids = read_ids(default_set, "train"), read_ids(default_set, "val")
    assert (len(train_ids), len(val_ids)) == (320, 80)
    assert len({*train_ids, *val_ids}) == 400
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        names = {path.name for path in (voc_folder(default_set) / folder).iterdir()}
        assert names == {i + suffix for i in train_ids + val_ids}


def test_image_is_rgb_jpeg_and_label_is_palette_png_of_the_same_size(small_set: Path) -> None:
    for sample_id in read_ids(small_set, "train") + read_ids(small_set, "val"):
        with Image.open(voc_folder(small_set) / "JPEGImages" / f"{sample_id}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))
        with Image.open(voc_folder(small_set) / "SegmentationClass" / f"{sample_id}.png") as label:
            assert (label.format, label.mode, label.size) == ("PNG", "P", (96, 96))


def test_palette_is_the_voc_colour_map(small_set: Path) -> None:
    with Image.open(voc_folder(small_set) / "SegmentationClass" / "sample_train_0000.png") as label:
        colours = np.reshape(label.getpalette(), (256, 3))
    # From the VOC 2012 development kit: background, aeroplane, bicycle, bird, boat; tv/monitor;
    # void.
    assert colours[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colours[20].tolist() == [0, 64, 128]
    assert colours[255].tolist() == [224, 224, 192]


def test_same_arguments_write_the_same_files(small_set: Path, tmp_path: Path) -> None:
    write_sample_set(tmp_path / "again", num_train=4, num_val=2)
    assert read_tree(tmp_path / "again") == read_tree(small_set)


def test_writing_twice_changes_nothing(small_set: Path) -> None:
    before = read_tree(small_set)
    write_sample_set(small_set, num_train=4, num_val=2)
    assert read_tree(small_set) == before


def test_longer_set_begins_with_the_shorter_one(small_set: Path, tmp_path: Path) -> None:
    write_sample_set(tmp_path / "longer", num_train=6, num_val=3)
    images_NHWC, labels_NHW = (
        read_images(tmp_path / "longer", "train"),
        read_labels(tmp_path / "longer", "val"),
    )
    np.testing.assert_array_equal(images_NHWC[:4], read_images(small_set, "train"))
    np.testing.assert_array_equal(labels_NHW[:2], read_labels(small_set, "val"))


def test_seed_changes_every_image(small_set: Path, tmp_path: Path) -> None:
    write_sample_set(tmp_path / "other", num_train=4, num_val=2, seed=1)
    for read in (read_images, read_labels):
        pairs = zip(read(small_set, "train"), read(tmp_path / "other", "train"), strict=True)
        assert not any(np.array_equal(mine, other) for mine, other in pairs)


def test_no_scene_occurs_twice(default_set: Path) -> None:
    labels = [*read_labels(default_set, "train"), *read_labels(default_set, "val")]
    assert len({label.tobytes() for label in labels}) == 400


def test_labels_hold_every_class_and_void_and_nothing_else(default_set: Path) -> None:
    for split in ("train", "val"):
        assert set(np.unique(read_labels(default_set, split))) == {*range(NUM_CLASSES), VOID}


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_share_the_pixels_fairly(default_set: Path, split: str) -> None:
    labels_NHW = read_labels(default_set, split)
    shares = np.array([np.mean(labels_NHW == index) for index in range(NUM_CLASSES)])
    assert 0.35 < shares[0] < 0.65
    assert shares[1:].min() > 0.5 * shares[1:].mean()
    assert shares[1:].max() < 1.5 * shares[1:].mean()


def test_void_is_a_thin_contour_between_regions(default_set: Path) -> None:
    labels_NHW = read_labels(default_set, "train")
    assert 0.01 < np.mean(labels_NHW == VOID) < 0.08
    left, right = labels_NHW[:, :, :-1], labels_NHW[:, :, 1:]
    assert np.all((left == right) | (left == VOID) | (right == VOID))


def test_colour_alone_does_not_tell_the_class(default_set: Path) -> None:
    """A colour-coded set scores near 1 here; chance is 0.125."""
    assert colour_classifier_accuracy(default_set) < 1.5 / NUM_CLASSES


def test_colour_classifier_would_catch_a_colour_coded_set(small_set: Path) -> None:
    """The test above means something: paint each class in one colour, and its classifier finds them
    all.
    """
    write_sample_set(small_set, num_train=20, num_val=20)
    for path in (voc_folder(small_set) / "SegmentationClass").iterdir():
        with Image.open(path) as label:
            label.convert("RGB").save(
                voc_folder(small_set) / "JPEGImages" / f"{path.stem}.jpg", quality=92
            )
    assert colour_classifier_accuracy(small_set) > 0.8


def test_foreign_files_survive(small_set: Path) -> None:
    foreign = voc_folder(small_set) / "JPEGImages" / "2007_000027.jpg"
    foreign.write_bytes(b"mine")
    write_sample_set(small_set, num_train=4, num_val=2)
    assert foreign.read_bytes() == b"mine"


def test_list_of_another_data_set_is_refused(small_set: Path) -> None:
    (voc_folder(small_set) / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n")
    with pytest.raises(
        ValueError, match=r"train\.txt: first id is '2007_000032', expected 'sample_\.\.\.'"
    ):
        write_sample_set(small_set, num_train=4, num_val=2)
    assert read_ids(small_set, "train") == ["2007_000032"]


@pytest.mark.parametrize(
    ("setting", "found"),
    [("num_train", 0), ("num_val", -1), ("size_px", 47), ("seed", -1), ("seed", 2**64)],
)
def test_argument_out_of_range_is_refused(tmp_path: Path, setting: str, found: int) -> None:
    with pytest.raises(ValueError, match=f"sample set: {setting} is {found}, expected"):
        write_sample_set(tmp_path, **{setting: found})
    assert not list(tmp_path.iterdir())


def test_another_size_is_drawn_at_that_size(tmp_path: Path) -> None:
    write_sample_set(tmp_path, num_train=2, num_val=1, size_px=160)
    assert read_images(tmp_path, "train").shape == (2, 160, 160, 3)
    assert read_labels(tmp_path, "val").shape == (1, 160, 160)
