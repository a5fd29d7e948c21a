"""The parts of a report: confusion, time, pictures within the page's size, legible colours."""

import re
from pathlib import Path

import numpy as np
import pytest

from kdcache.metrics import VOID
from kdcache.report.classes import (
    ERROR_COLOURS,
    MOST_CLASSES,
    MOST_PAIRS,
    RIGHT,
    TINTS,
    WRONG,
    error_map_uri,
    find_most_confused,
    heat_colours,
    normalize_rows,
    view_confusion,
)
from kdcache.report.finished import Finished, measure_budget, view_budget
from kdcache.report.panels import Panel, view_samples
from kdcache.report.run_page import view_classes
from kdcache.report.template import LONGEST_NAME, MOST_POINTS, Curve, build_chart, read_asset
from tests.support.html_pages import decode, parse_text, render

CSS = read_asset("pages.css")
TINTS_PERCENT = [int(percent) for percent in re.findall(r"\.tint\d \{ --mix: (\d+)%", CSS)]

HOSTILE = ['"><script>alert(1)</script>', "車 & مركبة", "x" * 300]


def draw_confusion(names: list[str], student: Finished, baseline: Finished | None) -> str:
    return render("confusion", view_confusion(names, student, baseline)).strip()


def draw_class_table(names: list[str], ious: dict[str, list], mious: dict) -> str:
    return render("classes", view_classes(names, ious, mious))


def draw_samples(names: list[str], panels: list[Panel], *, total: int) -> str:
    return render("samples", view_samples(names, panels, total=total))


def draw_budget(runs: dict[str, Finished], *, num_samples: int) -> str:
    return render("budget", view_budget(runs, num_samples=num_samples)).strip()


def finish(confusion: object, history: list[dict] | None = None) -> Finished:
    return Finished(
        Path("runs/kd"),
        {},
        history or [],
        None if confusion is None else np.array(confusion, np.int64),
    )


def test_rows_of_the_confusion_are_shares_of_a_labels_pixels():
    shares = normalize_rows(np.array([[3, 1, 0], [0, 0, 0], [5, 0, 15]]))
    assert shares[0].tolist() == [0.75, 0.25, 0] and shares[2].tolist() == [0.25, 0, 0.75]
    assert np.isnan(shares[1]).all()
    assert find_most_confused(shares, 5) == [(0, 1), (2, 0)]
    assert find_most_confused(shares, 1) == [(0, 1)]


def test_matrix_and_pairs_say_what_the_counts_say():
    student, baseline = (
        finish([[90, 10, 0], [40, 60, 0], [0, 1, 299]]),
        finish([[70, 30, 0], [50, 50, 0], [3, 0, 297]]),
    )
    html = draw_confusion(["sky", "road", "car"], student, baseline)
    page = parse_text(html)
    assert (
        'title="sky called sky: 90.00 %">90<' in html
        and 'title="road called sky: 40.00 %">40<' in html
    )
    assert 'title="car called road: 0.33 %"><' in html  # a tint, no number
    assert "sky called car" not in html and "A row is a label" in page.text
    assert "road → sky 40.0 50.0 78.4 sky → road 10.0 30.0 19.6 car → road 0.3 0.0 2.0" in page.text
    alone = parse_text(draw_confusion(["sky", "road", "car"], student, None)).text
    assert "road → sky 40.0 78.4" in alone and "baseline" not in alone


@pytest.mark.parametrize("num_classes", [2, 12, 13, MOST_CLASSES, MOST_CLASSES + 1, 150])
def test_many_classes_are_told_by_pairs_alone(num_classes):
    counts = np.random.default_rng(0).integers(0, 50, (num_classes, num_classes)) + 500 * np.eye(
        num_classes, dtype=int
    )
    html = draw_confusion(
        [f"class {k}" for k in range(num_classes)], finish(counts), finish(counts)
    )
    assert parse_text(html).tags.count("table") == (2 if num_classes <= MOST_CLASSES else 1)
    assert html.count("→") == 1 + min(MOST_PAIRS, num_classes * (num_classes - 1))
    assert ("A row is a label" in html) == (num_classes <= MOST_CLASSES)
    assert ('"matrix many"' in html) == (12 < num_classes <= MOST_CLASSES)
    assert len(html) < 300_000


def test_faultless_and_unknown_confusions():
    assert "No pixel is called another class" in draw_confusion(
        ["a", "b"], finish([[5, 0], [0, 7]]), None
    )
    assert draw_confusion(["a", "b"], finish(None), None) == ""
    without = draw_confusion(["a", "b"], finish([[5, 1], [0, 7]]), finish(None))
    assert "a → b 16.7 100.0" in parse_text(without).text


def test_names_stay_text_and_short():
    counts = np.arange(9).reshape(3, 3) + 1
    table = draw_class_table(HOSTILE, {"student": [0.5, None, 0.1]}, {"student": 0.3})
    image = np.zeros((8, 8, 3), np.uint8)
    panel = Panel(
        HOSTILE[0],
        0.5,
        image,
        dict.fromkeys(("label", "student"), np.arange(64).reshape(8, 8) % 3 % 255),
    )
    panel.maps["student"] = panel.maps["label"] = panel.maps["label"].astype(np.uint8)
    for html in (
        draw_confusion(HOSTILE, finish(counts), None),
        table,
        draw_samples(HOSTILE, [panel], total=9),
    ):
        page = parse_text(html)
        assert "script" not in page.tags and HOSTILE[0] in page.text and HOSTILE[1] in page.text
        assert "x" * (LONGEST_NAME - 1) + "…" in page.text and "x" * LONGEST_NAME not in html


def test_table_of_many_classes_scrolls_and_can_be_reached_by_keyboard():
    few, many = (
        draw_class_table([f"c{k}" for k in range(n)], {"student": [0.5] * n}, {"student": 0.5})
        for n in (40, 41)
    )
    assert 'class="scroll" tabindex="0"' in many and "scroll" not in few


def history(**fields: float) -> list[dict]:
    fields = {"time_s": 10.0, "validation_s": 2.0, "data_wait_s": 1.0, "step_s": 0.1, **fields}
    return [
        {**fields, "epoch": 1, "step_s": 0.9, "time_s": 50.0},
        {**fields, "epoch": 2},
        {**fields, "epoch": 3},
    ]


def test_time_budget_adds_up_and_forgives_a_slow_first_epoch():
    budget = measure_budget(history(), num_samples=400)
    assert (
        budget.seconds == {"wait": 3.0, "step": 61.0, "validation": 6.0} and budget.total_s == 70.0
    )
    assert budget.step_ms == 100.0 and budget.samples_per_s == 50.0
    html = draw_budget(
        {"baseline": finish(None, history(time_s=6.0)), "student": finish(None, history())},
        num_samples=400,
    )
    text = parse_text(html).text
    assert "data wait 3.0 s, 4.8 % 3.0 s, 4.3 %" in text and "all epochs 62.0 s 70.0 s" in text
    assert "a step 100.0 ms 100.0 ms" in text and "pace 100.0 samples/s 50.0 samples/s" in text
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", html)]
    assert sum(widths[3:]) == pytest.approx(100, abs=0.1) and sum(widths[:3]) == pytest.approx(
        100 * 62 / 70, abs=0.1
    )


def test_time_budget_of_an_older_run_is_left_out():
    old = [{"epoch": 1, "miou": 0.5, "time_s": 3.0}]
    assert draw_budget({"student": finish(None, old)}, num_samples=9) == ""
    html = draw_budget(
        {"baseline": finish(None, old), "student": finish(None, history())}, num_samples=9
    )
    assert "<span>student</span>" in html and "<span>baseline</span>" not in html


def test_error_map_marks_what_is_not_the_label_and_hatches_void():
    label = np.array([[0, 1], [2, VOID]], np.uint8).repeat(20, 0).repeat(20, 1)
    answer = np.array([[0, 2], [2, 1]], np.uint8).repeat(20, 0).repeat(20, 1)
    shown = decode(error_map_uri(answer, label))
    assert (
        (shown[:20, :20] == RIGHT).all()
        and (shown[:20, 20:] == WRONG).all()
        and (shown[20:, :20] == RIGHT).all()
    )
    assert set(np.unique(shown[20:, 20:])) == {2, 3}


def test_fifty_panels_of_noise_stay_below_five_megabytes():
    draw = np.random.default_rng(0).integers
    image = draw(0, 256, (320, 320, 3), np.uint8)
    maps = {
        title: draw(0, 150, (320, 320), np.uint8)
        for title in ("label", "teacher", "baseline", "student")
    }
    panels = [Panel(f"noise {n}", 0.5, image, maps) for n in range(50)]
    html = draw_samples([f"class {k}" for k in range(150)], panels, total=50)
    page = parse_text(html)
    assert 1e6 < len(html) < 4.5e6 and len(page.pictures) == 50 * 6
    px = max(page.pictures["image of noise 0"].shape)
    assert px < 320 and f"Pictures have {px} px at most" in page.text


def test_long_runs_are_thinned_but_for_their_best_epoch():
    values = [0.5] * 10_000
    chart = build_chart("mIoU", "", [Curve("student", values, best=7_777)], height_px=260)
    html = render("line_chart", chart, template="parts.html.j2")
    points = html.split('class="line student" d="M')[1].split('"')[0].split("L")
    assert MOST_POINTS <= len(points) <= MOST_POINTS + 2 and points[-1].startswith("100.0 ")
    assert "student, epoch 7777" in html and len(html) < 30_000


def test_every_tint_has_a_rule():
    assert len(TINTS) == len(TINTS_PERCENT) and list(TINTS) == sorted(TINTS)
    assert all(f".tint{n} " in CSS for n in range(1, len(TINTS) + 1))


def test_colours_of_the_legends_are_those_of_the_pictures():
    assert f".err {{ background: rgb{ERROR_COLOURS[WRONG]}; }}" in CSS
    stops = re.search(r"linear-gradient\(90deg, (.*?)\)", read_asset("gallery.css"), re.DOTALL)[1]
    drawn = ["#" + colour.tobytes().hex() for colour in heat_colours()[::7]]
    assert [stop.strip() for stop in stops.split(",")] == drawn


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_aa(theme):
    colours = read_colours(theme)
    for ground in ("page", "card"):
        for text in ("text", "soft"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in ("student", "baseline", "teacher", "wait", "step", "validation"):
        assert contrast(colours[line], colours["card"]) >= 3, line
    for hue in ("student", "baseline"):
        for percent in TINTS_PERCENT[:-1]:
            assert contrast(colours["text"], mix(colours[hue], colours["card"], percent)) >= 4.5, (
                hue,
                percent,
            )
        assert TINTS_PERCENT[-1] == 100 and contrast(colours["card"], colours[hue]) >= 4.5, hue


def read_colours(theme: str) -> dict[str, np.ndarray]:
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    found = dict(
        re.findall(r"--(\w+): #([0-9a-f]{6})", " ".join(blocks if theme == "dark" else blocks[:1]))
    )
    return {
        name: np.array([int(digits[place : place + 2], 16) for place in (0, 2, 4)])
        for name, digits in found.items()
    }


def mix(colour: np.ndarray, ground: np.ndarray, percent: float) -> np.ndarray:
    """As CSS's color-mix in srgb."""
    return colour * percent / 100 + ground * (1 - percent / 100)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """Of WCAG 2, 1 to 21."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb: np.ndarray) -> float:
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
