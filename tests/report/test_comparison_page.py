"""What a comparison says in the terminal, as CSV and as a page."""

import csv
import io
import re
from pathlib import Path

import pytest

from kdcache.report.comparison_text import lay_out, measure_width, wrap
from kdcache.report.template import read_asset
from tests.support.finished import write_baseline, write_run, write_three_seeds
from tests.support.html_pages import Page, parse
from train_student.cli import main

NASTY = ["車" * 70, '</table><script>alert("1")</script>', "Wohnungseingangstür" * 12]


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def compare(runs, capsys, tmp_path):
    """Compares all of `runs`; gives the printed text, the page and the rows of the CSV."""

    def run() -> tuple[str, Page, list[dict]]:
        html, table = tmp_path / "page.html", tmp_path / "table.csv"
        assert main(["compare", str(runs), "--html", str(html), "--csv", str(table)]) == 0
        with table.open(encoding="utf-8", newline="") as file:
            return capsys.readouterr().out, parse(html), list(csv.DictReader(file))

    return run


def write_classes(runs: Path, names: list[str], *, num_seeds: int = 3) -> None:
    """The last class gains 20 points, the first loses as much, those between swing around 0."""
    for seed in range(num_seeds):
        base = dict.fromkeys(names, 0.4)
        own = dict.fromkeys(names, 0.4 + (-1) ** seed * 0.05) | {
            names[0]: 0.2 + seed / 500,
            names[-1]: 0.6,
        }
        write_baseline(runs / f"b{seed}", 0.4, seed=seed, ious=base)
        write_run(runs / f"s{seed}", 0.41 + seed / 1000, seed=seed, ious=own)


def test_terminal_has_both_epochs_with_spread_and_interval(runs, compare):
    write_three_seeds(runs)
    lines = compare()[0].splitlines()
    assert lines[0].split() == [
        "row",
        "seeds",
        "epoch",
        "val",
        "mIoU",
        "to",
        "baseline,",
        "points",
        "s/epoch",
    ]
    assert lines[2].split() == ["baseline", "3", "best", "0.5100", "±", "0.0100", "-", "10.0"]
    assert "best   0.5300 ± 0.0200  +2.00 [-0.48, +4.48]" in lines[4]
    assert "last   0.5100 ± 0.0200  +1.00 [-1.48, +3.48]" in lines[5]


def test_terminal_says_what_flatters_and_what_is_the_same(runs, compare):
    write_three_seeds(runs)
    for seed in range(2):
        write_run(runs / f"t{seed}", 0.5, seed=seed, settings={"loss.beta": 2.0})
    text = " ".join(compare()[0].split())
    assert (
        "the best epoch of each run, chosen on the validation data itself, which flatters" in text
    )
    assert (
        "The best of 2 rows, chosen by this table, owes a part of its difference to chance" in text
    )
    assert (
        "The same in all rows: augment.views 4, cache cccccccccccc (half), "
        "cache.levels [low, mid, high], device cpu" in text
    )
    assert "2 of 3 seeds" not in text and "Validation data: aaaaaaaaaaaa." in text


def test_few_pairs_are_said(runs, compare):
    write_three_seeds(runs)
    write_run(runs / "lone", 0.6, seed=9, settings={"loss.beta": 1.0})
    write_run(runs / "one", 0.6, seed=1, settings={"loss.beta": 2.0})
    write_run(runs / "two", 0.6, seed=3)
    text, page, _ = compare()
    for said in (" ".join(text.split()), page.text):
        assert "one seed: no interval" in said
    assert (
        "no baseline with the" in text
        and "same seed" in text
        and "no baseline with the same seed" in page.text
    )
    assert "3 of 4 seeds have a" in text and "3 of 4 seeds have a baseline" in page.text


@pytest.mark.parametrize("num_classes", [2, 150])
def test_classes_that_differ_clearly_are_marked_with_how_many_are_by_chance(
    runs, compare, num_classes
):
    write_classes(runs, [f"class {k}" for k in range(num_classes)])
    text, page, _ = compare()
    assert (
        f"2 of {num_classes} classes differ clearly" in text
        and f"2 of {num_classes} classes marked" in page.text
    )
    chance = (
        f"Of {num_classes} classes, {0.05 * num_classes:.1f} on average stand out by chance alone"
    )
    assert chance in " ".join(text.split()) and chance in page.text
    assert "class 0 0.4000 0.2020 \u25bc -19.80 [-20.30, -19.30]" in page.text
    assert f"class {num_classes - 1} 0.4000 0.6000 \u25b2 +20.00 [+20.00, +20.00]" in page.text
    if num_classes > 2:
        assert (
            "class 1 0.4000 0.4167 +1.67 [-12.68, +16.01]" in page.text and "class 1 " not in text
        )


def test_at_most_six_classes_are_printed(runs, compare):
    for seed in range(2):
        write_baseline(
            runs / f"b{seed}", 0.4, seed=seed, ious={f"class {k}": 0.4 for k in range(9)}
        )
        write_run(
            runs / f"s{seed}", 0.5, seed=seed, ious={f"class {k}": 0.5 + k / 100 for k in range(9)}
        )
    text = compare()[0]
    assert "and 3 more; --html FILE shows all" in text and text.index("class 8") < text.index(
        "class 7"
    )
    assert "class 2 " not in text


def test_names_of_any_length_and_script_stay_text(runs, compare):
    write_classes(runs, NASTY)
    own = {"student.arch": '"><script>.py:Net'}
    write_baseline(runs / "lone", 0.4, ious=dict.fromkeys(NASTY, 0.5), settings=own)
    write_run(runs / "own", 0.5, ious=dict.fromkeys(NASTY, 0.5), settings=own)
    (runs / "<script>").mkdir()
    text, page, table = compare()
    assert (
        f"{runs}/<script>: no run folder" in page.text and page.text.count('"><script>.py:Net') == 5
    )
    assert f"{own['student.arch']}: +10.00 points; one seed: no interval" in page.labels[0]
    assert max(map(measure_width, text.splitlines()[:-4])) <= 100
    assert NASTY[0][:20] in text and "script" not in page.tags and NASTY[1] in page.text
    assert f"iou 0 {NASTY[0]}" in table[0] and f"iou 1 {NASTY[1]}" in table[0]


def test_csv_has_a_line_a_run_from_which_the_table_can_be_counted_again(runs, compare):
    write_three_seeds(runs)
    table = compare()[2]
    assert [line["train.seed"] for line in table] == ["0", "1", "2"] * 2
    students = [line for line in table if line["row"] == "loss.beta 0.5, loss.gamma 0.3"]
    points = [float(line["best_points"]) for line in students]
    assert points == pytest.approx([1, 3, 2]) and sum(points) / 3 == pytest.approx(2)
    for line, base in zip(students, table[:3], strict=True):
        assert line["baseline"] == base["folder"] and base["best_points"] == base["encoding"] == ""
        assert 100 * (float(line["best_miou"]) - float(base["best_miou"])) == pytest.approx(
            float(line["best_points"])
        )
    assert (students[0]["loss.beta"], students[0]["encoding"], students[0]["cache"]) == (
        "0.5",
        "half",
        "c" * 12,
    )
    assert float(students[1]["iou 0 sky"]) == 0.55 + 0.1 and float(students[0]["epoch_s"]) == 10


def test_page_shows_every_seed_mean_and_interval(runs, compare):
    write_three_seeds(runs)
    (runs / "half").mkdir()
    page = compare()[1]
    kinds = [path["class"] for path in page.paths]
    assert (
        kinds.count("seed"),
        kinds.count("mean"),
        kinds.count("interval"),
        kinds.count("zero"),
    ) == (3, 1, 1, 1)
    at = {
        kind: float(re.match(r"M([\d.]+) ", path["d"])[1])
        for kind, path in zip(kinds, page.paths, strict=True)
    }
    low, high = (
        float(x)
        for x in re.match(
            r"M([\d.]+) \d+H([\d.]+)M", page.paths[kinds.index("interval")]["d"]
        ).groups()
    )
    zero, per_point = at["zero"], (at["mean"] - at["zero"]) / 2
    seeds = [
        float(re.match(r"M([\d.]+) ", path["d"])[1])
        for path in page.paths
        if path["class"] == "seed"
    ]
    assert [(x - zero) / per_point for x in seeds] == pytest.approx([1, 3, 2], abs=0.01)
    assert ((low - zero) / per_point, (high - zero) / per_point) == pytest.approx(
        (-0.484, 4.484), abs=0.01
    )
    assert "seed 1: +3.00 points" in page.text and f"{runs / 'half'}: no run folder" in page.text


def test_page_needs_nothing_but_itself(runs, compare, tmp_path):
    write_three_seeds(runs)
    page = compare()[1]
    text = (tmp_path / "page.html").read_text()
    assert not {"script", "link", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    assert (
        "Content-Security-Policy" in text
        and "default-src 'none'" in text
        and "width=device-width" in text
    )
    assert "url(" not in text and "http://" not in text and "https://" not in text


def test_page_without_any_baseline_says_so(runs, compare):
    write_run(runs / "a", 0.5)
    page = compare()[1]
    assert "None: no baseline with the same settings." in page.text and page.paths == []


def test_files_are_replaced_and_folders_are_not(runs, compare, tmp_path, capsys):
    write_three_seeds(runs)
    (tmp_path / "page.html").write_text("old")
    assert "runs compared" in compare()[1].text and not list(tmp_path.glob("*.partial"))
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "folder.csv", tmp_path / "nowhere" / "a.csv"):
        assert main(["compare", str(runs), "--csv", str(path)]) == 2
        assert "expected a file name in a folder that is there" in capsys.readouterr().err
    checkpoint = tmp_path / "student_kd_best.pth"
    checkpoint.write_text("weights")
    assert main(["compare", str(runs), "--html", str(checkpoint)]) == 2
    assert (
        "does not end in .html" in capsys.readouterr().err and checkpoint.read_text() == "weights"
    )


def test_files_are_there_before_the_table_is_read(runs, tmp_path, monkeypatch):
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    write_three_seeds(runs)
    monkeypatch.setattr("train_student.runs.print_text", stop)
    assert (
        main(
            [
                "compare",
                str(runs),
                "--html",
                str(tmp_path / "p.html"),
                "--csv",
                str(tmp_path / "t.csv"),
            ]
        )
        == 130
    )
    assert (tmp_path / "p.html").is_file() and (tmp_path / "t.csv").is_file()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_differences_are_legible(scheme):
    """WCAG AA: 4.5 to 1 on the card and on the tint of marked cells."""
    light, dark = ({}, {})
    for sheet in map(read_asset, ("pages.css", "comparison.css")):
        first, _, rest = sheet.partition("@media")
        light |= dict(re.findall(r"(--\w+): (#\w{6})", first))
        dark |= dict(re.findall(r"(--\w+): (#\w{6})", rest))
    colours = light if scheme == "light" else light | dark
    for ink in ("--gain", "--fall", "--text", "--soft"):
        for ground in ("--card", "--clear") if ink != "--soft" else ("--card", "--page"):
            a, b = sorted((luminance(colours[ink]), luminance(colours[ground])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    parts = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_columns_hold_wide_letters_and_lose_none():
    assert measure_width("a車e\u0301") == 4
    assert (
        wrap("one two three", 7) == ["one two", "three"]
        and wrap("車車車車", 5) == ["車車", "車車"]
        and wrap("", 5) == [""]
    )
    assert lay_out(["車車車", "x"], [4, 3]) == ["車車  x", "車"]


def test_help_lists_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "compare put finished runs side by side, over seeds" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("name", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", '=HYPERLINK("x")'])
def test_no_cell_of_the_csv_is_a_formula(runs, tmp_path, name):
    """Names of classes, encodings and settings are anybody's; a spreadsheet would compute them."""
    write_run(runs / "a", 0.5, ious={name: 0.5}, settings={"student.arch": name, "train.lr": -0.5})
    assert main(["compare", str(runs), "--csv", str(tmp_path / "t.csv")]) == 0
    head, row = csv.reader(io.StringIO((tmp_path / "t.csv").read_text()))
    found = dict(zip(head, row, strict=True))
    assert found["student.arch"] == f"'{name}" and found["train.lr"] == "-0.5"
    assert not [cell for cell in [*head, *row] if cell.startswith(("=", "+", "@", "\t"))]
