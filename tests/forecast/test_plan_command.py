"""`python -m cache_teacher plan`: what a person reads, what a script gets, errors of one line."""

import json

import pytest
import yaml

import cache_teacher.cli
from kdcache.analysis import students
from kdcache.progress import format_bytes, format_time
from kdcache.report.phase_one_text import format_forecast
from tests.support.forecasts import answer_otherwise


@pytest.fixture
def run(given, tmp_path):
    """The command with these settings."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(given))
    return lambda *argv: cache_teacher.cli.main(["plan", "--config", str(path), *argv])


def test_the_command_tells_a_person(run, capsys):
    assert run() == 0
    text = capsys.readouterr().out
    for part in (
        "nothing is built yet",
        "train: 150 images x 2 views",
        "arrays exact",
        "are free at",
        "time: ",
        "comparing with the teacher",
        "epochs",
        "compact",
    ):
        assert part in text


def test_json_is_the_whole_forecast(run, capsys, monkeypatch):
    monkeypatch.setattr(students, "STEPS", 3)
    assert run("--json", "--cache.encoding", "half") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["encoding"]["low"] == "int8"
        and facts["splits"]["train"]["arrays"]["low"]["dtype"] == "int8"
    )
    assert facts["time"]["comparison_s"] > 0


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("--cache.pth x", 2, "cache.pth is unknown, expected cache.path"),
        ("--cache.encoding tiny", 2, "cache.encoding is 'tiny'"),
        ("--cache.encoding compact --cache.rank.low 5", 2, "cache.rank.low is 5, expected 1 to 4"),
        ("--dataset.root /nowhere", 1, "set dataset.root"),
        ("caches/x", 2, "is no setting"),
        (
            "--cache.path s3://bucket/x",
            2,
            "cache.path is 's3://bucket/x', expected a folder, where plan makes a few samples",
        ),
    ],
)
def test_bad_settings_are_one_line(run, capsys, argv, code, message):
    assert run(*argv.split()) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cache_teacher plan: ") and message in line


def test_a_file_in_the_way_is_one_line(run, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert run("--cache.path", str(tmp_path / "file" / "cache")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "it is a file" in line


def test_an_interrupted_plan_says_that_nothing_is_kept(run, capsys, monkeypatch, caches):
    def stop(number, answer):
        raise KeyboardInterrupt

    answer_otherwise(monkeypatch, stop)
    assert run() == 130 and list(caches.iterdir()) == []
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "cache_teacher plan: interrupted; nothing is kept"
    )


def test_numbers_are_told_in_units_a_person_reads():
    assert [format_bytes(n) for n in (0, 999, 1000, 1_234_567, 999_999_999, 95e9, 2.5e15)] == [
        "0 bytes", "999 bytes", "1 kB", "1.23 MB", "1 GB", "95 GB", "2500 TB"
    ]  # fmt: skip
    assert [format_time(s) for s in (0, 0.0123, 0.9994, 1.5304, 42, 100, 5400)] == [
        "0 ms", "12.3 ms", "999 ms", "1.53 s", "42 s", "2 min", "1.5 h"
    ]  # fmt: skip


def test_a_slow_teacher_is_told_in_seconds(run, capsys):
    assert run("--json") == 0
    facts = json.loads(capsys.readouterr().out)
    facts["break_even"] |= {"teacher_s": 1.5304}
    assert "a teacher in every step takes 1.53 s an image" in format_forecast(facts)
