"""The study at a size of seconds: every arm trains, finished runs are kept, interrupted ones go on,
the table adds up.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from kdcache.models.teacher import Teacher
from kdcache.training.loop import compute_step, train_epoch
from kdcache.training.run_folder import read_history
from tests.study.__main__ import main
from tests.study.runs import ARMS, Row
from tests.study.table import render_table

EPOCH = "kdcache.training.loop.train_epoch"  # with and without the teacher


pytestmark = pytest.mark.xdist_group("study")  # its caches are made once


@pytest.fixture(scope="module")
def settings_file(base_given, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "settings.yaml"
    path.write_text(yaml.safe_dump(base_given))
    return path


@pytest.fixture(scope="module")
def finished(settings_file, tmp_path_factory) -> Path:
    """A study of all arms, two seeds, one epoch. Read only."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    assert study(settings_file, folder, "--seeds", "0,1", "--epochs", "1") == 0
    return folder


def study(settings_file: Path, folder: Path, *options: str) -> int:
    return main(["encodings", "--config", str(settings_file), "--out", str(folder), *options])


def read_numbers(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in entry.items() if not k.endswith("_s")}
        for entry in read_history(folder, {})
    ]


def read_rows(folder: Path) -> list[list[str]]:
    lines = (folder / "study.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.nightly
def test_table_has_every_arm_with_spread_and_difference_by_seed(finished):
    head, _, *rows = read_rows(finished)
    assert head == [
        "arm",
        "views",
        "mIoU",
        "seed 0",
        "seed 1",
        "to exact, points",
        "s/epoch",
        "cache MB",
    ]
    assert [row[0] for row in rows] == list(ARMS)
    for arm, views, miou, first, second, difference, *_ in rows:
        result = json.loads(
            (finished / "runs" / f"{arm}-views{views}-seed0" / "result.json").read_text()
        )
        assert float(first) == pytest.approx(result["miou"], abs=1e-4)
        assert float(miou.split(" ± ")[0]) == pytest.approx(
            (float(first) + float(second)) / 2, abs=1e-4
        )
        assert (difference == "-") == (arm == "exact")
    sizes = {row[0]: row[-1] for row in rows}
    for arm in ("exact", "half", "compact"):
        root = finished / "caches" / arm
        files = [*root.glob("train/*/c/**/*"), *root.glob("commits/train-*.json")]
        assert float(sizes[arm]) == pytest.approx(
            sum(f.stat().st_size for f in files if f.is_file()) / 1e6, abs=0.06
        )
    assert sizes["none"] == sizes["live"] == "-"


@pytest.mark.nightly
def test_live_run_has_the_losses_of_the_cached_one(finished):
    """Same images, order and dropout: only what the teacher says is stored in the one and asked in
    the other.
    """
    (cached,), (asked,) = (
        read_numbers(finished / "runs" / f"{arm}-views2-seed0") for arm in ("exact", "live")
    )
    for term in ("ce", "kd", "feature", "total"):
        assert asked[term] == pytest.approx(cached[term], rel=1e-3) and asked[term] != cached[term]
    labels_only = read_numbers(finished / "runs" / "none-views2-seed0")[0]
    assert "kd" not in labels_only and labels_only["ce"] == pytest.approx(cached["ce"], rel=0.2)


@pytest.mark.nightly
def test_finished_runs_are_not_trained_again(settings_file, finished, monkeypatch, capsys):
    before = (finished / "study.md").read_text()
    monkeypatch.setattr(EPOCH, None)
    assert study(settings_file, finished, "--seeds", "0,1", "--epochs", "1") == 0
    assert (finished / "study.md").read_text() == before
    assert capsys.readouterr().out.endswith(before)


@pytest.mark.nightly
def test_a_live_run_stopped_behind_its_checkpoint_has_all_its_epochs(
    settings_file, finished, tmp_path, monkeypatch
):
    shutil.copytree(finished / "caches" / "exact", tmp_path / "caches" / "exact")
    options = (settings_file, tmp_path, "--arms", "live", "--seeds", "0", "--epochs", "1")
    with monkeypatch.context() as patch:
        patch.setattr("tests.study.live.write_history", stop)
        assert study(*options) == 130
    assert study(*options) == 0
    assert read_numbers(tmp_path / "runs/live-views2-seed0") == read_numbers(
        finished / "runs/live-views2-seed0"
    )


def stop(*args, **options):
    raise KeyboardInterrupt


@pytest.mark.nightly
def test_a_live_teacher_is_asked_about_what_the_student_sees(
    settings_file, finished, tmp_path, monkeypatch
):
    shutil.copytree(finished / "caches" / "exact", tmp_path / "out" / "caches" / "exact")
    moving = yaml.safe_load(settings_file.read_text())
    moving["train"] |= {"flip": 1.0, "crop": 16}
    (tmp_path / "moving.yaml").write_text(yaml.safe_dump(moving))
    asked, trained = [], []
    monkeypatch.setattr(
        Teacher,
        "__call__",
        lambda self, x, real=Teacher.__call__: (asked.append(x), real(self, x))[1],
    )
    monkeypatch.setattr(
        "kdcache.training.loop.compute_step",
        lambda learner, batch: (
            trained.append(batch.arrays["image"]),
            compute_step(learner, batch),
        )[1],
    )
    assert (
        study(
            tmp_path / "moving.yaml",
            tmp_path / "out",
            "--arms",
            "live",
            "--seeds",
            "0",
            "--epochs",
            "1",
        )
        == 0
    )
    questions = asked[-len(trained) :]
    assert trained[0].shape[1:3] == (16, 16) and all(map(torch.equal, questions, trained))


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [({"crop": 48}, (), "train.crop is [48, 48], expected at most [32, 32]"),
     ({}, ("--seeds", str(2**63)), "train.seed is")],
)  # fmt: skip
def test_wrong_settings_are_told_before_anything_is_built(
    settings_file, tmp_path, capsys, settings, options, message
):
    given = yaml.safe_load(settings_file.read_text())
    given["train"] |= settings
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(given))
    assert study(tmp_path / "wrong.yaml", tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "out").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("arm", ["exact", "live"])
def test_an_interrupted_study_goes_on_bit_for_bit(
    settings_file, finished, tmp_path, monkeypatch, arm, capsys
):
    options = ("--seeds", "0", "--epochs", "2", "--arms", arm)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        shutil.copytree(finished / "caches" / "exact", folder / "caches" / "exact")
    assert study(settings_file, whole, *options) == 0
    stop_in_epoch_2(monkeypatch)
    assert study(settings_file, halves, *options) == 130
    monkeypatch.undo()
    run = f"runs/{arm}-views2-seed0"
    assert len(read_numbers(halves / run)) == 1 and not (halves / run / "result.json").exists()
    capsys.readouterr()
    assert study(settings_file, halves, *options) == 0
    assert "epoch 1/" not in capsys.readouterr().out
    assert read_numbers(halves / run) == read_numbers(whole / run)
    a, b = (
        torch.load(f / run / "student_kd_last.pth", weights_only=True)["model_state_dict"]
        for f in (whole, halves)
    )
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def stop_in_epoch_2(monkeypatch) -> None:
    """Ctrl-C while the second epoch is trained."""

    def train_first(*args, epoch: int, **options):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(*args, epoch=epoch, **options)

    monkeypatch.setattr(EPOCH, train_first)


@pytest.mark.nightly
def test_views_are_studied_on_one_cache_at_equal_steps(settings_file, finished, tmp_path):
    shutil.copytree(finished / "caches", tmp_path / "out" / "caches")
    assert (
        study(settings_file, tmp_path / "out", "--views", "1,2,3", "--seeds", "0", "--epochs", "1")
        == 0
    )
    _, _, *rows = read_rows(tmp_path / "out")
    assert [row[:2] for row in rows] == [["exact", "1"], ["exact", "2"], ["exact", "3"]]
    one, two, three = (float(row[-1]) for row in rows)
    assert two == pytest.approx(2 * one, abs=0.2) and three == pytest.approx(3 * one, abs=0.2)
    ours, theirs = (
        read_numbers(f / "runs" / "exact-views2-seed0") for f in (tmp_path / "out", finished)
    )
    assert ours == theirs  # a third view in the cache changes nothing for a run with two


@pytest.mark.nightly
def test_table_has_the_runs_of_other_commands_with_the_same_settings(
    settings_file, finished, tmp_path
):
    shutil.copytree(finished, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "caches" / "half")
    shutil.rmtree(tmp_path / "out" / "runs" / "half-views2-seed1")
    shutil.copytree(
        tmp_path / "out" / "runs" / "exact-views2-seed0",
        tmp_path / "out" / "runs" / "exact-views2-copy",
    )
    assert (
        study(settings_file, tmp_path / "out", "--arms", "exact", "--seeds", "0", "--epochs", "1")
        == 0
    )
    rows, before = (
        {row[0]: row for row in read_rows(folder)} for folder in (tmp_path / "out", finished)
    )
    assert all(rows[arm] == before[arm] for arm in ("none", "exact", "compact", "live"))
    assert rows["half"][3:5] == [before["half"][3], "-"] and rows["half"][-1] == "-"
    assert (
        study(settings_file, tmp_path / "out", "--arms", "exact", "--seeds", "2", "--epochs", "2")
        == 0
    )
    assert [row[:2] for row in read_rows(tmp_path / "out")[2:]] == [
        ["exact", "2"]
    ]  # others had one epoch


def test_spread_and_differences_are_those_of_the_seeds():
    rows = {
        ("exact", 4): Row({0: 0.50, 1: 0.52}, [1.0, 3.0], 2_000_000),
        ("half", 4): Row({0: 0.51, 1: 0.50}, [2.0], 1),
    }
    table = render_table(rows)
    assert "| exact | 4 | 0.5100 ± 0.0141 | 0.5000 | 0.5200 | - | 2.0 | 2.0 |" in table
    assert "| -0.50 ± 2.12 (+1.00, -2.00) |" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "exact,hlaf"], "expected some of none,exact,half,compact,live"),
        (["--seeds", "0,0"], "no list of different numbers from 0"),
        (["--views", "0"], "no list of different numbers from 1"),
        (
            ["--augment.views", "3"],
            "--augment.views is unknown, expected --views; --help lists all options",
        ),
    ],
)
def test_a_slip_of_the_pen_is_one_line(options, message, tmp_path, capsys):
    assert main(["encodings", "--config", "none.yaml", "--out", str(tmp_path), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("study encodings: ") and message in line


def test_a_missing_settings_file_is_one_line(tmp_path, capsys):
    assert main(["encodings", "--config", str(tmp_path / "none.yaml"), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "settings file is missing" in line
