"""The report of a run says and shows what the run's files say, whatever they lack."""

import base64
import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcache.config.parser import make_config, merge
from kdcache.data.pictures import choose_extremes, space_evenly
from kdcache.data.sample_set import write_sample_set
from kdcache.metrics import VOID, compute_iou_per_class, compute_miou, count_confusion
from kdcache.precompute.build import build_cache
from kdcache.report.classes import DARK_VOID, LONGEST_PX, class_map_uri, photo_uri, voc_palette
from kdcache.report.run_page import write_report
from kdcache.report.template import Curve, build_chart, find_ticks
from kdcache.training.checkpoint import BEST
from kdcache.training.distill import DistillationResult, distill
from kdcache.training.run_folder import write_result
from tests.support.html_pages import Page, decode, parse, parse_text, render
from tests.support.tiny_teacher import build_tiny_fcn

NASTY = ['<b>hinter & "grund"</b>', "車 </table><script>alert(1)</script>"]


@dataclass
class Finished:
    """A finished run and what its report was made from."""

    folder: Path
    call: dict
    outcome: DistillationResult

    def page(self) -> Page:
        return parse(self.folder / "report.html")


@pytest.fixture(scope="module")
def finished(base_given, tmp_path_factory) -> Finished:
    """Five validation images of 48x48 in views of 48x64, a student and its baseline."""
    root = tmp_path_factory.mktemp("run")
    return train(merge(base_given, {"dataset": {"val_size": [48, 64]}}), root)


@pytest.fixture(scope="module")
def bare(base_given, tmp_path_factory) -> Finished:
    """Two classes with nasty names, one epoch, labels only, no baseline."""
    root = tmp_path_factory.mktemp("bare")
    write_sample_set(root / "data", num_train=4, num_val=3, size_px=48)
    for path in (root / "data").rglob("SegmentationClass/*.png"):
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == VOID, label, np.minimum(label, 1))).save(path)
    torch.manual_seed(1)
    torch.save(
        build_tiny_fcn("fcn_resnet50", num_classes=2, aux_head=True).state_dict(),
        root / "teacher.pth",
    )
    given = {
        "dataset": {"root": str(root / "data"), "num_classes": 2, "class_names": NASTY},
        "teacher": {"weights": str(root / "teacher.pth")},
        "augment": {"views": 1},
        "cache": {"levels": []},
        "loss": {"beta": 0.0, "gamma": 0.0},
        "train": {"epochs": 1},
    }
    return train(merge(base_given, given), root)


def train(given: dict, root: Path) -> Finished:
    given = merge(
        given,
        {"cache": {"path": str(root / "cache")}, "run": {"dir": str(root / "runs" / "a <run>")}},
    )
    build_cache(make_config(given))
    outcome = distill(given, root=root / "cache")
    call = {
        name: getattr(outcome, name) for name in ("config", "data", "folder", "baseline_folder")
    }
    write_report(**call)
    return Finished(root / "runs" / "a <run>", call, outcome)


def count_over(page: Page, who: str, num_classes: int) -> torch.Tensor:
    """Confusion over the pictures of a page; hatched pixels do not count."""
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for alt, label in page.pictures.items():
        if alt.startswith("label of "):
            void = np.where(label >= DARK_VOID, VOID, label)
            answer = page.pictures[alt.replace("label", who, 1)]
            total += count_confusion(
                torch.tensor(answer)[None], torch.tensor(void)[None], num_classes=num_classes
            )
    return total


def test_page_needs_nothing_but_itself(finished, bare):
    for run in (finished, bare):
        page, text = run.page(), (run.folder / "report.html").read_text()
        assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
        assert page.links and all(link.startswith("data:image/") for link in page.links)
        assert (
            "url(" not in text
            and "@import" not in text
            and "http://" not in text
            and "https://" not in text
        )
        assert "prefers-color-scheme: dark" in text and "width=device-width" in text
        assert len(text) < 5e6
        assert not (run.folder / "report.html.partial").exists()


def test_headline_is_the_result(finished):
    text, result = finished.page().text, finished.outcome.student
    for name in ("teacher_miou", "baseline_miou", "miou"):
        assert f"{result[name]:.4f}" in text
    assert f"{result['improvement_points']:+.2f} points" in text
    assert f"{result['improvement_percent']:+.1f} % of the baseline" in text
    assert "One seed; differences of the size of the spread between seeds mean nothing." in text
    assert result["cache_identity"] in text and "philox" in text
    assert all(
        name in text for name in ("loss.temperature", "Made with", torch.__version__.split("+")[0])
    )


def test_pictures_are_the_answers_that_were_scored(finished):
    page, num_classes = finished.page(), finished.call["config"].dataset.num_classes
    assert (
        len(page.pictures) == 5 * 6
    )  # all five samples, so that the counts must agree with those of the whole split
    for who, folder in (
        ("student", finished.folder),
        ("baseline", finished.call["baseline_folder"]),
    ):
        saved = torch.load(folder / BEST, weights_only=True)
        assert torch.equal(count_over(page, who, num_classes), saved["confusion"])
    teacher = count_over(page, "teacher", num_classes)
    assert compute_miou(teacher) == finished.outcome.student["teacher_miou"]
    stored = finished.call["data"].manifest.information["teacher_per_class_iou"]
    assert compute_iou_per_class(teacher) == stored


def test_pictures_are_cropped_to_the_image(finished):
    assert finished.call["config"].dataset.val_hw == (48, 64)
    assert {picture.shape[:2] for picture in finished.page().pictures.values()} == {(48, 48)}


def test_samples_fall_from_most_to_least_disagreement(finished):
    pictures, text = finished.page().pictures, finished.page().text
    ids = [alt.removeprefix("student of ") for alt in pictures if alt.startswith("student of ")]
    shares = [np.mean(pictures[f"student of {id}"] != pictures[f"teacher of {id}"]) for id in ids]
    assert shares == sorted(shares, reverse=True)
    for id, share in zip(ids, shares, strict=True):
        assert f"{id} student and teacher differ on {100 * share:.1f} % of the pixels" in text


def test_class_table_has_every_iou(finished):
    text = finished.page().text
    for run in (finished.outcome.student, finished.outcome.baseline):
        for name, iou in run["per_class_iou"].items():
            assert name in text and ("-" if iou is None else f"{iou:.4f}") in text


def test_every_term_has_a_chart_with_every_epoch(finished):
    text = (finished.folder / "report.html").read_text()
    assert text.count("<svg") == 6
    for line in (finished.folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name in ("miou", "ce", "kd", "feature", "total"):
            assert f"student, epoch {entry['epoch']}: {entry[name]:.4f}" in text
    baseline = json.loads(
        (finished.call["baseline_folder"] / "metrics.jsonl").read_text().splitlines()[1]
    )
    assert f"baseline, epoch 2: {baseline['miou']:.4f}" in text
    assert f"teacher: {finished.outcome.student['teacher_miou']:.4f}" in text


def test_report_of_a_bare_run(bare):
    text, html = bare.page().text, (bare.folder / "report.html").read_text()
    assert bare.outcome.baseline is None and "No baseline was trained." in text
    assert (
        html.count("<svg") == 4 and "KD divergence" not in text and "feature distance" not in text
    )
    assert "points" not in text.split("Over the epochs")[0].replace("a point is 0.01", "")
    assert len(bare.page().pictures) == 3 * 5
    assert "nan" not in html.split("<body>")[1].split("<img")[0]


def test_names_are_text_not_html(bare):
    page = bare.page()
    assert all(page.text.count(name) >= 2 for name in NASTY)  # table and legend
    assert "script" not in page.tags and "b>hinter" not in page.tags
    assert "a <run>" in page.text


def test_unknown_numbers_are_dashes(finished, tmp_path):
    nobody = dict.fromkeys(finished.outcome.student["per_class_iou"])
    unknown = {"teacher_miou": None, "improvement_percent": None, "per_class_iou": nobody}
    data = finished.call["data"]
    manifest = replace(
        data.manifest, information={**data.manifest.information, "teacher_per_class_iou": None}
    )
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    write_result(folder, {**finished.outcome.student, **unknown})
    path = write_report(
        **{**finished.call, "data": replace(data, manifest=manifest), "folder": folder}
    )
    page, html = parse(path), path.read_text()
    assert "the class is in neither labels nor predictions" in page.text
    assert "None" not in page.text.split("The run")[0] and 'class="line teacher"' not in html


def test_baseline_without_its_checkpoint_keeps_its_numbers(finished):
    checkpoint = finished.call["baseline_folder"] / BEST
    aside = checkpoint.rename(checkpoint.with_suffix(".aside"))
    try:
        page = parse(write_report(**finished.call))
    finally:
        aside.rename(checkpoint)
    assert len(page.pictures) == 5 * 5
    assert f"{finished.outcome.baseline['miou']:.4f}" in page.text


def test_extremes_are_half_most_half_least_and_deterministic():
    shares = {10: 0.5, 20: 0.9, 30: 0.1, 40: 0.5, 50: 0.3, 60: 0.0, 70: 0.7, 80: 0.2}
    assert choose_extremes(shares, 6) == [20, 70, 10, 80, 30, 60]
    assert choose_extremes(shares, 3) == [20, 70, 60]
    assert choose_extremes(dict(reversed(shares.items())), 6) == choose_extremes(shares, 6)
    assert choose_extremes({3: 0.2}, 6) == [3]


def test_a_large_split_is_scanned_evenly_and_not_wholly():
    assert space_evenly(5, 64) == [0, 1, 2, 3, 4]
    scanned = space_evenly(1449, 64)
    assert len(set(scanned)) == 64 and scanned[0] == 0 and scanned[-1] < 1449
    assert set(np.diff(scanned)) == {22, 23}


def test_class_map_keeps_class_numbers_and_hatches_void():
    classes = np.array([[0, 5], [20, 253]], np.uint8).repeat(30, 0).repeat(30, 1)
    classes[:30, :30] = VOID
    shown = decode(class_map_uri(classes))
    labelled = classes != VOID
    assert np.array_equal(shown[labelled], classes[labelled])
    assert set(shown[~labelled]) == {VOID, DARK_VOID}
    file = io.BytesIO(base64.b64decode(class_map_uri(classes).split(",")[1]))
    palette = np.reshape(Image.open(file).getpalette(), (-1, 3))
    assert palette[15].tolist() == [192, 128, 128]  # person
    assert np.array_equal(palette[:254], voc_palette()[:254])


def test_large_pictures_shrink():
    noise = np.random.default_rng(0).integers(0, 21, (700, 1400), dtype=np.uint8)
    shown = decode(class_map_uri(noise))
    assert shown.shape == (LONGEST_PX // 2, LONGEST_PX) and set(np.unique(shown)) <= set(range(21))
    image = np.random.default_rng(1).integers(0, 256, (800, 400, 3), dtype=np.uint8)
    assert decode(photo_uri(image)).shape == (LONGEST_PX, LONGEST_PX // 2, 3)
    assert decode(photo_uri(image, longest_px=100)).shape == (100, 50, 3)


@pytest.mark.parametrize(
    "low, high", [(0.0, 0.0), (0.5, 0.5), (0.02, 0.6), (3.1, 1234.5), (0.4999, 0.5001), (-1, 1)]
)
def test_ticks_enclose_the_data_in_a_few_even_steps(low, high):
    ticks = find_ticks(low, high, most=5)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 8
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


@pytest.mark.parametrize(
    "values", [[0.0], [0.3], [0.5, 0.5], [0.1, 0.9, 0.2], [0.001 * n for n in range(1000)]]
)
def test_chart_stays_inside_its_box(values):
    curve = Curve("student", values, best=1)
    chart = build_chart("<mIoU>", "", [curve], height_px=200, level=0.7)
    html = render("line_chart", chart, template="parts.html.j2")
    assert "<mIoU>" in parse_text(html).text
    line = html.split('class="line student" d="M')[1].split('"')[0]
    places = [float(n) for point in line.split("L") for n in point.split()]
    assert len(places) == 2 * len(values) and all(0 <= place <= 100 for place in places)
    assert html.count("dot student") == (len(values) if len(values) <= 40 else 1)
