"""docs/first_hour.ipynb runs from top to bottom, and kdcache's objects show themselves there as
tables that hold what their names say and do nothing.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kdcache
from kdcache.api import Distillation
from tests.support.finished import write_three_seeds
from tests.support.html_pages import Page
from tests.support.pages import ROOT, list_anchors, list_links, read

BOOK = ROOT / "docs/first_hour.ipynb"
CELLS = json.loads(read(BOOK))["cells"]
CODE = [("".join(cell["source"]), cell["id"]) for cell in CELLS if cell["cell_type"] == "code"]
SMALL = """
NUM_TRAIN, NUM_VAL, SIZE_PX = 32, 4, 48
FIT_EPOCHS, EPOCHS, OWN_EPOCHS = 1, 1, 1
SEEDS = (0, 1)
"""
RUN = """
import ast, json, sys

known = {}
for text, name in json.load(sys.stdin):
    body = ast.parse(text).body
    shown = body.pop().value if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), known)
    value = shown and eval(compile(ast.Expression(shown), name, "eval"), known)
    if hasattr(value, "_repr_html_"):
        print(name, value._repr_html_())
"""
"""The code cells in one namespace, as a notebook runs them; what its last line shows is printed."""
HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e&"


def show(value: object) -> str:
    """The text of a table; its tags must nest, and none may do anything."""
    page = Page()
    html = value._repr_html_()
    page.feed(html)
    page.close()
    assert not page.open and not page.links
    assert set(page.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    assert not re.search(r"<[a-z]+\s|://|\x1b|\u202e", html)  # no attribute: no colour, no address
    return " ".join(page.text.split())


def test_a_cache_shows_its_splits_and_its_teacher(built_root):
    cache = kdcache.open_cache(built_root)
    shown = show(cache)
    assert f"cache {cache.root}" in shown
    assert "train 10 2 image uint8 32x32x3; label uint8 32x32; logits float16 8x4x4; low" in shown
    assert "val 5 1 image uint8 48x48x3" in shown and "8 classes: background, horiz" in shown
    assert f"teacher's mIoU on val: {cache.manifest.information['teacher_miou']:.4f}" in shown


def test_many_classes_are_cut_and_their_names_are_text(built_root):
    cache = kdcache.open_cache(built_root)
    cache.class_names, cache.num_classes = [HOSTILE] * 150, 150
    shown = show(cache)
    assert shown.count("alert(1)</script>\\x1b[2J\\u202e&") == 20 and "&, ... " in f"{shown} "


def test_a_run_shows_its_baseline_and_what_the_teacher_changed():
    done = Distillation(Path(HOSTILE), 0.5, 0.4, {"teacher_miou": 0.625}, {})
    expected = "teacher 0.6250 student, labels only 0.4000 student 0.5000"
    shown = show(done)
    assert expected in shown and "+10.00 points" in shown and "run <script>" in shown
    alone = show(Distillation(Path("runs/a"), 0.5, None, {}, None))
    assert alone.endswith("run runs/a mIoU on val student 0.5000")


def test_a_comparison_shows_gains_with_their_intervals(tmp_path):
    (tmp_path / "runs/<b>not bold").mkdir(parents=True)
    shown = show(
        kdcache.compare(write_three_seeds(tmp_path / "runs"), tmp_path / "runs/<b>not bold")
    )
    assert "baseline 3 0.5100 ± 0.0100 - 0" in shown
    assert "loss.beta 0.5, loss.gamma 0.3 3 0.5300 ± 0.0200 +2.00 [-0.48, +4.48] 3" in shown
    assert "left out: " in shown and "<b>not bold: no run folder" in shown


def test_the_notebook_is_one_without_outputs():
    book = json.loads(read(BOOK))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    names = [cell["id"] for cell in CELLS]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w-]{1,64}", n) for n in names)
    for cell in CELLS:
        assert "".join(cell["source"]).strip() and cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        else:
            assert cell["cell_type"] == "markdown"


def test_what_the_notebook_imports_and_asks_of_kdcache_is_there():
    """Names that no cell has are found by ruff, which reads notebooks, too."""
    asked = set()
    for text, name in CODE:
        for node in ast.walk(ast.parse(text, name)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), {})
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "kdcache":
                asked.add(node.attr)
    assert {"build_cache", "distill", "compare", "load_student"} <= asked <= set(kdcache.__all__)


def test_links_of_the_notebook_lead_somewhere():
    text = "\n\n".join("".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown")
    links = list_links(text)
    assert len(links) >= 5
    for link in links:
        page, _, anchor = link.partition("#")
        assert (ROOT / "docs" / page).is_file(), link
        assert not anchor or anchor in list_anchors(read(ROOT / "docs" / page)), link


@pytest.mark.nightly
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    assert CODE[0][1] == "settings"
    cells = [CODE[0], (SMALL, "small"), *CODE[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", RUN],
        input=json.dumps(cells), cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in ("build <table>", "train <table>", "compare <table>", "mIoU on val before, and"):
        assert text in done.stdout
