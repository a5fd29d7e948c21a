"""Many workers: the sum by hand, what takes longest, money, and what the command says of it."""

import json
from dataclasses import replace

import pytest
import yaml

import cache_teacher.cli
from kdcache.forecast.costs import Fleet, Work, find_work, spread
from kdcache.report.phase_one_text import format_forecast

WORK = Work(num_groups=10, asking_s=100.0, group_s=10.0, size_bytes=6e9, alone_s=5.0, once_s=2.0)


def test_one_worker_asks_prepares_and_scores():
    facts = spread(WORK, Fleet())
    assert facts["parts"] == {
        "alone": 5.0,
        "asking": 100.0,
        "bandwidth": 0.0,
        "group": 10.0,
        "once": 2.0,
    }
    assert facts["time_s"] == 117.0 and facts["bottleneck"] == "asking" and facts["cost"] is None


def test_workers_share_whole_groups():
    times = {
        workers: spread(WORK, Fleet(workers=workers))["parts"]["asking"]
        for workers in (1, 2, 3, 4, 9, 10, 99)
    }
    assert times == {1: 100.0, 2: 50.0, 3: 40.0, 4: 30.0, 9: 20.0, 10: 10.0, 99: 10.0}
    assert spread(WORK, Fleet(workers=3))["num_groups"] == 4


def test_the_longer_of_asking_and_writing_counts():
    slow, fast = (spread(WORK, Fleet(workers=4, bandwidth_mb_s=rate)) for rate in (100, 300))
    assert slow["time_s"] == 5 + 60 + 10 + 2 and slow["bottleneck"] == "bandwidth"
    assert fast["time_s"] == 5 + 30 + 10 + 2 and fast["bottleneck"] == "asking"


@pytest.mark.parametrize(
    ("change", "bandwidth_mb_s", "part", "workers"),
    [
        ({}, None, "group", 10),
        ({}, 300, "bandwidth", 5),
        ({"alone_s": 34.0}, 300, "alone", 4),
        ({"once_s": 50.0}, 300, "once", 2),
    ],
)
def test_the_next_bottleneck_is_named_with_its_number_of_workers(
    change, bandwidth_mb_s, part, workers
):
    work = replace(WORK, **change)
    facts = spread(work, Fleet(bandwidth_mb_s=bandwidth_mb_s))
    assert (facts["bottleneck"], facts["next"], facts["next_workers"]) == ("asking", part, workers)
    beyond = spread(work, Fleet(workers=workers, bandwidth_mb_s=bandwidth_mb_s))
    assert beyond["parts"]["asking"] <= beyond["parts"][part]
    fewer = spread(work, Fleet(workers=workers - 1, bandwidth_mb_s=bandwidth_mb_s))
    assert fewer["parts"]["asking"] > fewer["parts"][part]


def test_all_workers_are_paid_to_the_end():
    assert spread(WORK, Fleet(workers=4, per_hour=36.0))["cost"] == pytest.approx(
        4 * 47 * 36 / 3600
    )


def test_nothing_to_do_takes_what_is_done_anyway():
    facts = spread(Work(0, 0.0, 0.0, 0, 5.0, 2.0), Fleet(workers=8, bandwidth_mb_s=100))
    assert facts["time_s"] == 7.0 and facts["bottleneck"] == "alone"


def make_facts(*, committed: int, train_missing: int) -> dict:
    """Of a forecast, what the work is found in: 3 groups of 4 of train, 2 of val."""
    return {
        "splits": {
            "train": {
                "groups": 3,
                "groups_committed": committed,
                "num_missing": train_missing,
                "shard_samples": 4,
            },
            "val": {"groups": 2, "groups_committed": 0, "num_missing": 6, "shard_samples": 4},
        },
        "time": {
            "setup_s": 1.0,
            "train_s": 2.0 * train_missing,
            "val_s": 18.0,
            "score_s": 0.5,
            "comparison_s": 0.25,
        },
        "size": {"missing_bytes": 1234},
    }


def test_the_work_is_what_is_missing_by_the_measure_of_this_machine():
    assert find_work(make_facts(committed=0, train_missing=10)) == Work(
        5, 38.0, 12.0, 1234, 1.0, 0.75
    )
    assert find_work(make_facts(committed=2, train_missing=2)) == Work(
        3, 22.0, 12.0, 1234, 1.0, 0.75
    )
    assert find_work(make_facts(committed=3, train_missing=0)).group_s == 12.0


# --- the command


@pytest.fixture
def run(given, tmp_path):
    """The command with these settings."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(given))
    return lambda *argv: cache_teacher.cli.main(["plan", "--config", str(path), *argv])


def test_the_command_shows_the_sum(run, capsys):
    assert run("--workers", "4", "--bandwidth=0.001", "--per-hour", "2") == 0
    text = capsys.readouterr().out
    for part in (
        "workers: 4 like this one take ",
        "(2 an hour each, to the last one's end)",
        "(11 of 41 shard groups) or writing ",
        " at 0.001 MB/s",
        "the bandwidth of the place takes longest",
    ):
        assert part in text


def test_json_has_the_fleet_that_was_asked_for(run, capsys):
    assert run("--json", "--workers", "7") == 0
    facts = json.loads(capsys.readouterr().out)
    fleet = facts["fleet"]
    assert fleet == spread(find_work(facts), Fleet(workers=7)) and fleet["num_groups"] == 6
    text = format_forecast(facts)
    assert (
        "nothing is known without --bandwidth" in text
        and "cost" not in text.split("workers: ")[1].splitlines()[0]
    )


def test_without_such_an_option_nothing_is_said_of_workers(run, capsys):
    assert run() == 0
    assert "workers" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--workers 0", "--workers is '0', expected a whole number, 1 or more"),
        ("--workers", "--workers has no value, expected N"),
        ("--workers many", "--workers is 'many', expected a whole number"),
        ("--bandwidth -5", "--bandwidth is '-5', expected a number from 0.001 to 1000000000"),
        ("--bandwidth fast", "--bandwidth is 'fast', expected a number"),
        ("--per-hour nan", "--per-hour is 'nan', expected a number"),
        ("--per-hour=1e400", "--per-hour is '1e400', expected a number"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_measured(run, capsys, argv, message):
    assert run(*argv.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cache_teacher plan: ") and message in line
