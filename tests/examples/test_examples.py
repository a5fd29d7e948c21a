"""The examples run as they stand, and print what they say they do."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests/examples"
NUMBER = r"([\d.]+)"
SAID = {
    "response_distillation": [
        r"images \[16, 3, 48, 48\], cached scores \[16, 8, 6, 6\]",
        rf"first step: {NUMBER} by kdcache, {NUMBER} by the textbook",
        rf"after 20 steps: {NUMBER}",
    ],
    "feature_distillation": [
        rf"low    256 -> 16 channels, 1 - cosine {NUMBER} at first \(textbook {NUMBER}\), "
        rf"{NUMBER} after 20 steps",
        rf"mean over levels: {NUMBER} -> {NUMBER}",
    ],
    "mini_training_loop": [
        rf"epoch 12  ce {NUMBER}  kd {NUMBER}  feature {NUMBER}  total {NUMBER}",
        rf"mIoU on val: {NUMBER} before, {NUMBER} after 12 epochs",
    ],
    "gradient_flow": [
        rf"labels    backbone {NUMBER}  ASPP {NUMBER}  classifier {NUMBER}  projections none",
        rf"features  backbone {NUMBER}  ASPP none  classifier none  projections {NUMBER}",
        r"T = 8: gradient by scores \S+ with T\^2, \S+ without; of scores 20 times larger, a 20th "
        r"of it: \S+",
    ],
}


def run_example(name: str, monkeypatch, capsys) -> str:
    """In this process; returns what it printed."""
    monkeypatch.syspath_prepend(FOLDER)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", list(SAID))
def test_example_runs_and_prints_what_it_found(name, monkeypatch, capsys):
    printed = run_example(name, monkeypatch, capsys)
    for pattern in SAID[name]:
        assert re.search(pattern, printed), f"{pattern} not in {printed}"


def test_every_example_is_run_here_and_says_how_to_run_it():
    names = {path.stem for path in FOLDER.glob("*.py")} - {"small_cache", "test_examples"}
    assert names == set(SAID)
    for name in names:
        text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert f"python tests/examples/{name}.py\n" in text.split('"""')[1]
        assert 30 <= len(text.splitlines()) <= 80


@pytest.mark.nightly
def test_example_is_a_command_of_its_own_that_leaves_nothing_behind(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(FOLDER / "response_distillation.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(SAID["response_distillation"][1], done.stdout)
    assert not list(tmp_path.iterdir())
