"""Images as they come are asked about: masks of their size, one line for each that cannot be, and a
page over the rest.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.data.pictures import voc_palette
from kdcache.deploy.predict import (
    find_classes,
    find_images,
    fit_picture,
    predict_pictures,
    read_picture,
)
from kdcache.deploy.student import TrainedStudent, load_student
from kdcache.errors import TrainingError
from kdcache.models.inputs import resize_to
from kdcache.report.panels import write_predictions
from tests.support.helpers import check_one_line
from train_student.cli import main


@pytest.fixture(scope="module")
def student(trained_run) -> TrainedStudent:
    return load_student(trained_run)


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


def draw_picture(height: int = 40, width: int = 56) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    )


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        assert mask.mode == "P" and np.array_equal(
            np.reshape(mask.getpalette(), (-1, 3)), voc_palette()
        )
        return np.asarray(mask)


def test_an_image_of_validation_gets_the_classes_that_were_scored(student):
    image = find_images(student, [])[0]
    expected = student.ask(image[None]).argmax(1)[0].to(torch.uint8).numpy()
    assert np.array_equal(find_classes(student, image, size=None), expected)


def test_a_larger_image_is_shrunk_and_its_scores_enlarged(student):
    image = np.asarray(draw_picture(90, 131))
    seen, hw = fit_picture(image, (48, 48))
    assert hw == (32, 48)
    logits = resize_to(student.ask(seen[None])[..., :32, :48], (90, 131))
    assert np.array_equal(find_classes(student, image, size=None), logits.argmax(1)[0].numpy())


def test_the_size_that_the_student_sees_can_be_chosen(student, monkeypatch):
    seen = []
    ask = TrainedStudent.ask
    monkeypatch.setattr(
        TrainedStudent,
        "ask",
        lambda self, image, **k: seen.append(image.shape[1:3]) or ask(self, image, **k),
    )
    for size in (None, 64, "original"):
        assert find_classes(student, np.asarray(draw_picture(90, 131)), size=size).shape == (
            90,
            131,
        )
    assert seen == [(48, 48), (64, 64), (96, 144)]
    assert find_classes(student, np.asarray(draw_picture(1, 1)), size="original").shape == (1, 1)


def test_masks_are_as_large_as_the_images_and_overlays_half_colour(run, folder, capsys):
    draw_picture().save(folder / "one.png")
    assert main(["predict", str(run), str(folder / "one.png")]) == 0
    mask = read_mask(run / "predictions/masks/one.png")
    overlay = np.asarray(Image.open(run / "predictions/overlays/one.png")).astype(int)
    assert mask.shape == (40, 56) and mask.max() < 8
    assert np.abs(overlay - (np.asarray(draw_picture()) / 2 + voc_palette()[mask] / 2)).max() <= 1
    out, err = capsys.readouterr()
    assert "one.png -> " in out and "index.html: 1 images" in out and not err
    shares = [float(share) for share in re.findall(r"([\d.]+) %", out)]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.jpg", "CMYK"),
        ("a.jpg", "L"),
        ("a.png", "1"),
        ("a.png", "P"),
        ("a.tif", "P"),
        ("a.tif", "YCbCr"),
        ("a.webp", "RGB"),
        ("a.bmp", "RGB"),
    ],
)
def test_eight_bit_images_of_any_kind_become_rgb(folder, name, mode):
    drawn = Image.linear_gradient("L").resize((56, 40)).convert("RGB")
    (drawn.quantize(64) if mode == "P" else drawn.convert(mode)).save(folder / name)
    rgb = read_picture(folder / name)
    assert rgb.shape == (40, 56, 3) and rgb.dtype == np.uint8
    if mode != "1":
        assert np.abs(rgb.astype(int) - np.asarray(drawn)).max() <= 12


def test_a_palette_with_transparent_colours_keeps_them(folder):
    picture = draw_picture().quantize(16)
    picture.save(folder / "a.png", transparency=bytes(range(16)))
    assert np.array_equal(read_picture(folder / "a.png"), np.asarray(picture.convert("RGB")))


def test_pictures_are_upright_and_the_first_frame_is_taken_and_said(folder, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_picture().save(folder / "turned.png", exif=exif)
    draw_picture().save(
        folder / "moving.webp", save_all=True, append_images=[draw_picture(41).resize((56, 40))]
    )
    upright = np.asarray(draw_picture().transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(read_picture(folder / "turned.png"), upright)
    with Image.open(folder / "moving.webp") as moving:
        assert np.array_equal(
            read_picture(folder / "moving.webp"), np.asarray(moving.convert("RGB"))
        )
    (said,) = caplog.messages
    assert "moving.webp: the first of 2 frames is taken" in said


def write_bad(folder: Path) -> dict[str, str]:
    """Files that no student can be asked about -> what is said of each."""
    draw_picture().save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "spoilt.png").write_bytes(whole[:60] + b"\0" * 40 + whole[100:])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").write_bytes(b"")
    Image.fromarray(np.full((40, 50), 40_000, np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.zeros((40, 50), np.float32)).save(folder / "float.tif")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    return {
        "cut.png": "truncated",
        "spoilt.png": "unreadable",
        "text.jpg": "it is none of JPEG, PNG",
        "empty.jpg": "it is none of",
        "deep.png": "mode is 'I;16', expected 8 bits a channel",
        "float.tif": "mode is 'F'",
        "huge.png": "size is 10000x10000, expected 67108864 pixels at most",
    }


def test_what_cannot_be_read_is_a_line_each_and_the_rest_is_done(run, folder, tmp_path, capsys):
    words = write_bad(folder)
    draw_picture().save(folder / "good.png")
    (tmp_path / "none").mkdir()
    given = [folder, tmp_path / "none", tmp_path / "away.png"]
    assert main(["predict", str(run), *map(str, given), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert (
        all(line.startswith("train_student predict: ") for line in lines)
        and len(lines) == len(words) + 2
    )
    for name, word in {**words, "none": "without images", "away.png": "file is missing"}.items():
        (line,) = [line for line in lines if f"/{name}: " in line]
        assert word in line
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["good.png"]
    assert f"1 images, {len(words) + 2} refused" in out


def test_names_that_collide_are_numbered_and_no_file_is_asked_twice(student, folder, tmp_path):
    (folder / "b").mkdir()
    for name in ("a.png", "a.bmp", "A.tif", "b/a.png"):
        draw_picture().save(folder / name)
    given = [folder, folder / "a.png", folder / "b"]
    _, errors = predict_pictures(student, given, out=tmp_path / "out", size=None)
    assert not errors
    names = {path.name for path in (tmp_path / "out/masks").iterdir()}
    assert len(names) == 4 and {name.casefold() for name in names} == {
        "a.png",
        "a-2.png",
        "a-3.png",
        "a-4.png",
    }


def test_the_page_escapes_names_and_finds_its_pictures(student, folder, tmp_path):
    names = ["улица 1.png", "a#b?c%41 <b>&'.png", "x" * 120 + ".png"]
    for name in names:
        draw_picture().save(folder / name)
    named = replace(
        student.config.dataset, class_names=["<i>небо</i>", *student.config.dataset.names[1:]]
    )
    all_first = torch.zeros(1, 8, 48, 48).index_fill(1, torch.tensor([0]), 1.0)
    config = replace(student.config, dataset=named)
    other = replace(student, config=config, module=lambda image: all_first)
    done, _ = predict_pictures(other, [folder], out=tmp_path / "out", size=None)
    write_predictions(done, other, folder=tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert (
        "<b>" not in page
        and "&lt;b&gt;&amp;" in page
        and "&lt;i&gt;небо&lt;/i&gt; <small>100.0 %" in page
    )
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    found = [unquote(address) for address in re.findall(r'<img[^>]* src="([^"]+)"', page)]
    assert sorted(found) == sorted(
        f"{part}/{name}" for part in ("masks", "overlays") for name in names
    )
    assert all((tmp_path / "out" / address).is_file() for address in found)


@pytest.mark.parametrize("size", ["0", "31", "100", "huge", "-32", "³²"])
def test_a_size_that_no_student_takes_is_refused(size, capsys):
    assert main(["predict", "x", "y", f"--size={size}"]) == 2
    error = capsys.readouterr().err
    assert (
        "expected original or a multiple of 16 from 32 to 16384" in error and error.count("\n") == 1
    )


def test_a_folder_that_cannot_be_written_is_one_line(run, folder, tmp_path, capsys):
    draw_picture().save(folder / "a.png")
    (tmp_path / "out").write_text("a file")
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "out: --out is unwritable" in error and error.count("\n") == 1


def test_a_student_that_fails_at_a_size_says_at_which(student):
    def fail(image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("too\nsmall")

    with pytest.raises(TrainingError) as error:
        find_classes(replace(student, module=fail), np.asarray(draw_picture()), size=64)
    check_one_line(
        error, "student fails on an image of 64x64 (RuntimeError: too)", "try another size"
    )
