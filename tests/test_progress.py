"""Bars on a terminal, lines elsewhere; quiet, verbose and JSON."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import yaml

import train_student.cli
from cache_teacher import cli
from kdcache.config import Config
from kdcache.progress import Console, Output, Silent
from kdcache.report.training import PrintedGrid
from tests.support import quick


class Terminal(io.StringIO):
    """A stream that says that a person sits before it."""

    def isatty(self) -> bool:
        return True


def test_a_bar_shows_title_count_rate_and_time_left_and_goes():
    stream, before = Terminal(), sys.stdout
    with Console(stream).start("asking [bold]\x1b[2J", total=4, unit="samples") as bar:
        bar.advance(3, size_bytes=6_000_000)
        bar.bar.refresh()
        assert sys.stdout is before  # it is no terminal: its lines stay its own
    shown = stream.getvalue()
    assert "asking [bold]\\x1b[2J" in shown and "3/4 samples, " in shown and " MB/s" in shown
    assert "0:00:0" in shown or "-:--:--" in shown


def test_elsewhere_a_job_is_a_line():
    stream = io.StringIO()
    with Console(stream).start("asking", total=4, unit="samples") as bar:
        bar.advance(4)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("asking: 4/4 samples, ") and line.endswith(" samples/s")


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (Output(), "on the way\nresult\n"),
        (Output(verbose=True), "on the way\nresult\n"),
        (Output(quiet=True), "result\n"),
        (Output(json=True), '{\n  "a": 1\n}\n'),
    ],
)
def test_how_much_is_said(capsys, output, shown):
    output.say("on the way")
    output.tell("result")
    output.conclude({"a": 1})
    assert capsys.readouterr().out == shown
    assert isinstance(output.progress, Silent) == (output.quiet or output.json)


@pytest.fixture
def config_file(quick_data, tmp_path, quick_teacher) -> str:
    given = quick.quick_given(quick_data, tmp_path / "cache")
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump({**given, "run": {"dir": str(tmp_path / "runs")}}))
    return str(path)


def test_both_phases_give_json_and_nothing_else(capsys, config_file, tmp_path):
    assert cli.main(["--config", config_file, "--json"]) == 0
    said = capsys.readouterr()
    built = json.loads(said.out)
    assert built["path"] == str(tmp_path / "cache") and built["num_samples"] == 8
    assert set(built["score"]) == {"val_miou", "train_miou", "val_per_class"}
    assert all(line.startswith("warning: ") for line in said.err.splitlines())

    assert train_student.cli.main(["--config", config_file, "--json"]) == 0
    said = capsys.readouterr()
    trained = json.loads(said.out)
    assert trained["student"]["epochs"] == 2 and trained["baseline"]["miou"] >= 0
    assert trained["report"].startswith(trained["folder"])
    assert all(line.startswith("warning: ") for line in said.err.splitlines())


def test_an_epoch_is_a_line_a_block_or_nothing(capsys, config_file, tmp_path):
    assert cli.main(["--config", config_file, "-q"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'cache'}: 8 samples, ")
    texts = {}
    for words in ("", "-v", "-q"):
        folder = str(tmp_path / f"run{words}")
        argv = ["--config", config_file, "--run.dir", folder, "--run.baseline", "false"]
        assert train_student.cli.main([*argv, *words.split()]) == 0
        texts[words] = capsys.readouterr().out.splitlines()
    assert sum("epoch " in line for line in texts[""]) == 2 and "  loss  " not in texts[""]
    assert sum(line.startswith("  step  ") for line in texts["-v"]) == 2
    assert texts["-q"][0].startswith("IoU ")


def test_a_grid_gives_json(capsys, config_file):
    assert cli.main(["--config", config_file, "-q"]) == 0
    argv = ["--config", config_file, "--grid", "loss.beta=0,0.5", "--seeds", "0", "--json"]
    capsys.readouterr()
    assert train_student.cli.main([*argv, "--dry-run"]) == 0
    names = json.loads(capsys.readouterr().out)["runs"]
    assert len(names) == 3  # the baseline, too
    assert train_student.cli.main(argv) == 0
    done = json.loads(capsys.readouterr().out)
    assert sorted(done["runs"]) == sorted(names) and done["unfinished"] == []
    assert all(0 <= result["miou"] <= 1 for result in done["runs"].values())


def test_what_was_written_is_said_before_it_is_compared(capsys, config_file, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cache_teacher.building._measure_fidelity", interrupt)
    assert cli.main(["--config", config_file]) == 130
    assert ": 8 samples, " in capsys.readouterr().out


def test_fit_says_more_less_or_json(capsys, given, tmp_path):
    path, out = tmp_path / "fit.yaml", tmp_path / "mine.pth"
    fit = {"epochs": 2, "batch_size": 4, "out": str(out)}
    path.write_text(yaml.safe_dump({**given, "fit": fit}))
    said = {}
    for words in ("", "-q", "--json"):
        assert cli.main(["fit", "--config", str(path), *words.split()]) == 0
        said[words] = capsys.readouterr()
    lines = said[""].out.splitlines()
    assert sum("epoch " in line and "loss" in line for line in lines) == 2
    assert said["-q"].out.splitlines() == lines[-1:] and "teacher written" in lines[-1]
    fitted = json.loads(said["--json"].out)
    assert fitted["path"] == str(out) and fitted["epochs"] == 2 and 1 <= fitted["epoch"] <= 2
    assert f"{fitted['miou']:.4f}" in lines[-1]
    assert not said["-q"].err and not said["--json"].err


def test_quiet_and_verbose_together_are_refused(capsys):
    assert train_student.cli.main(["-q", "-v"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--verbose" in line and "--quiet" in line


def test_each_run_of_a_grid_is_a_line_or_a_block_with_its_name(capsys):
    entry = dict.fromkeys(("time_s", "validation_s", "lr", "step_s", "data_wait_s"), 1.0)
    history = [{**entry, "epoch": 1, "total": 2.0, "ce": 2.0, "miou": 0.5}]
    for verbose, lines in ((False, 1), (True, 4)):
        said = []
        events = PrintedGrid(said.append, verbose=verbose)
        events.epoch_finished(Config(), history, folder=Path("runs/a"))
        assert said[0].startswith("a  epoch 1/") and len(said[0].splitlines()) == lines
