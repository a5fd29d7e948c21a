"""Tables, picture and page of the gain study: their figures are those of the recorded runs."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.study.gain.command import parse_gain
from tests.study.gain.page import (
    PAGE,
    README,
    ROOT,
    STUDIES,
    choose_lines,
    fill_page,
    find_study,
    make_pictures,
)
from tests.study.gain.picture import render_picture
from tests.study.gain.plan import read_study
from tests.study.gain.results import RECORDED, read_lines, record
from tests.study.gain.table import render_goals, render_short, render_tables, render_teachers


@pytest.fixture
def names() -> set[str]:
    """Of the data sets with a study."""
    return {read_study(path).name for path in STUDIES.glob("gain*.yaml")}


def make_lines(mious: dict[tuple[str, int], list[float]], **change: object) -> list[dict]:
    """(arm, labels) -> mIoU of seeds 0, 1, ..."""
    common = {"data": "camvid", "half": "report", "budget": 552, "also": [], "teacher_miou": 0.55}
    return [
        {
            **common,
            "arm": arm,
            "labels": labels,
            "teacher": None if arm.endswith("labels") else "all",
            "seed": seed,
            "last_miou": miou,
            **change,
        }
        for (arm, labels), values in mious.items()
        for seed, miou in enumerate(values)
    ]


MIOUS = {
    ("labels", 46): [0.25, 0.23, 0.24],
    ("recipe", 46): [0.42, 0.40, 0.43],
    ("labels", 367): [0.39, 0.36],
    ("kl", 367): [0.43, 0.41, 0.42],
}


@pytest.fixture
def camvid():
    return find_study("camvid")


def test_differences_are_paired_by_seed_with_students_interval(camvid):
    lines = make_lines(MIOUS)
    for line in lines:
        line["also"] = ["recipe"] if line["arm"] == "kl" else []
    table = render_tables(camvid, lines)
    mean, deviation = 53 / 3, 2 / math.sqrt(3)  # of 17, 17 and 19 points
    half = 4.3027 * deviation / math.sqrt(3)  # Student's t with 2 degrees of freedom
    gain = f"**{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]**"
    assert f"| 46 | all | recipe | 3 | 0.4167 ± 0.0153 | {gain} | " in table
    assert "| 46 | - | labels | 3 | 0.2400 ± 0.0100 | - | **-13.5 [-19.9, -7.1]** |" in table
    assert "| 367 | - | labels | 2 | 0.3750 ± 0.0212 | - | - |" in table
    for arm in ("kl", "recipe"):  # two common seeds: 4 and 5 points
        assert f"| 367 | all | {arm} | 3 | 0.4200 ± 0.0100 | +4.5 [-1.9, +10.9] |" in table


def test_the_short_table_has_the_recipe_beside_labels_only(camvid):
    lines = make_lines(MIOUS)
    for line in lines:
        line["also"] = ["recipe"] if line["arm"] == "kl" else []
    few = make_lines({("recipe", 46): [0.35]}, teacher="few")
    table = render_short(camvid, [*lines, *few]).splitlines()
    assert table[2].startswith("| 46 of 367 | all 367 labels | 0.240 ± 0.010 | 0.417 ± 0.015 | **+")
    assert table[3] == "| 46 of 367 | the same 46 | 0.240 ± 0.010 | 0.350 | +10.0 (one seed) | 1 |"
    assert table[4].endswith("| 0.375 ± 0.021 | 0.420 ± 0.010 | +4.5 [-1.9, +10.9] | 2 |")


def test_each_arm_is_compared_with_labels_only_of_its_student():
    pretrained = {("labels", 75): [0.36, 0.37], ("recipe", 75): [0.40, 0.41]}
    scratch = {("scratch-labels", 75): [0.23, 0.24], ("scratch-recipe", 75): [0.30, 0.31]}
    lines = make_lines({**pretrained, **scratch}, data="clothing", teacher="few", budget=852)
    for line in lines:
        line["teacher"] = None if line["arm"].endswith("labels") else "few"
    table = render_tables(find_study("clothing"), lines)
    assert "| 75 | - | scratch-labels | 2 | 0.2350 ± 0.0071 | - |" in table
    assert "| 75 | few | scratch-recipe | 2 | 0.3050 ± 0.0071 | **+7.0 [" in table
    assert "| 75 | few | recipe | 2 | 0.4050 ± 0.0071 | **+4.0 [" in table


def test_goals_are_reached_by_mean_and_interval(camvid):
    lines = make_lines({**MIOUS, ("recipe", 367): [0.45, 0.40]})
    *_, all_, few, over_all, own, long = render_goals(camvid, lines).splitlines()
    assert "| +3.5, interval above +1 | +5.0 [-7.7, +17.7], 2 seeds | **no** |" in all_
    assert "| +17, interval above +13 | **+17.7 [+14.8, +20.5]**, 3 seeds | yes |" in few
    assert "| +2 | +3.5 [-2.9, +9.9], 2 seeds | yes |" in over_all
    assert own.endswith("| above 0 | - | not measured |") and "2208 steps" in long


def test_a_page_says_what_the_teachers_reach(camvid):
    lines = make_lines(MIOUS)
    assert render_teachers(lines) == "The teacher's own mIoU on these images: `all` 0.5500.\n"
    own = make_lines({("recipe", 23): [0.2], ("recipe", 46): [0.3]}, teacher="few")
    own[0]["teacher_miou"], own[1]["teacher_miou"] = 0.21, 0.31
    assert "`all` 0.5500; `few` 0.2100 (23), 0.3100 (46)." in render_teachers([*lines, *own])
    text = fill_page("<!-- tables: camvid report -->\n<!-- end -->", lines)
    assert "](results_camvid.svg)" in text and "`all` 0.5500" in text


def test_runs_of_another_half_or_budget_stand_apart(camvid):
    ours, theirs = make_lines(MIOUS), make_lines(MIOUS, half="choose", last_miou=0.9)
    both = choose_lines([*ours, *theirs], "camvid", half="report")
    assert render_tables(camvid, both) == render_tables(camvid, ours)
    longer = make_lines({("labels", 367): [0.5]}, budget=2208)
    tables = render_tables(camvid, [*ours, *longer])
    assert tables.startswith(render_tables(camvid, ours)) and "camvid, 2208 steps:" in tables


def test_a_picture_has_a_point_for_each_seed_and_a_line_for_each_arm(camvid):
    lines = [line for line in make_lines(MIOUS) if line["arm"] != "kl"]
    svg = ElementTree.fromstring(render_picture(camvid, lines))
    kinds = [element.get("class") for element in svg.iter() if element.get("class")]
    assert kinds.count("seed") == 8 and kinds.count("mean") == 3 + 2  # and two in the legend
    texts = [element.text for element in svg.iter() if element.tag.endswith("}text")]
    assert {"46", "367", "labels, no teacher", "recipe, teacher fitted on all 367 labels"} <= set(
        texts
    )
    places = [float(e.get("cy")) for e in svg.iter() if e.get("class") == "seed"]
    assert places[2] > places[0] > places[4]  # more mIoU stands higher


def test_recorded_results_replace_those_of_the_same_runs(tmp_path):
    path = tmp_path / "recorded.jsonl"
    record(make_lines({("labels", 46): [0.1, 0.2]}), path)
    record(make_lines({("labels", 46): [0.3]}), path)
    record(make_lines({("labels", 46): [0.9]}, half="choose"), path)
    assert [(x["half"], x["last_miou"]) for x in read_lines(path)] == [
        ("choose", 0.9),
        ("report", 0.3),
        ("report", 0.2),
    ]


def test_tables_and_pictures_of_the_page_are_those_of_the_recorded_runs(names):
    lines, page = read_lines(RECORDED), PAGE.read_text(encoding="utf-8")
    for text in (page, README.read_text(encoding="utf-8")):
        assert "<!-- end -->" in text
        assert fill_page(text, lines) == text, "run `python -m tests.study page`"
    for path, picture in make_pictures(lines).items():
        assert path.read_text(encoding="utf-8") == picture and path.name in page
    for name in names:
        assert f"<!-- tables: {name} report -->" in page


def test_commands_of_the_page_parse(monkeypatch, names):
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^python -m tests\.study gain (.*)$", page, re.MULTILINE)
    studies = [parse_gain(shlex.split(words))[1].name for words in commands]
    assert set(studies) == names


def test_recorded_runs_have_the_settings_of_today():
    for line in read_lines(RECORDED):
        study = find_study(line["data"])
        options = [study.choose_arm(line["arm"], unlabelled=known) for known in (True, False)]
        assert line["settings"] in options, json.dumps(line)


def test_no_line_of_a_study_names_a_place(tmp_path):
    for path in (RECORDED, PAGE, *STUDIES.glob("gain*.yaml")):
        if Path(path).is_file():
            assert str(Path.home()) not in path.read_text(encoding="utf-8")
