"""The probe: how long phase one will take by it, how much of the disk it takes, and where it is
made.
"""

import heapq
from collections import deque

import pytest

from kdcache import disk
from kdcache.analysis import students
from kdcache.errors import CacheError
from kdcache.forecast import probe
from kdcache.forecast.forecast import forecast_cache
from kdcache.forecast.probe import find_rates
from kdcache.precompute.build import build_cache
from kdcache.report.phase_one_text import format_forecast
from tests.support.forecasts import encode, group
from tests.support.helpers import check_one_line

PARTS = ("setup_s", "val_s", "train_s", "score_s", "comparison_s")


@pytest.fixture
def free_bytes(monkeypatch):
    """Say how many bytes are free."""

    def say(free):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)

    return say


# --- time


def simulate(groups, *, draw_s, ask_s, write_s, drawers, writers, ahead) -> list[float]:
    """When phase one's pipeline commits each of some groups (split, samples), given the seconds a
    sample of each part.
    """
    drawing, writing, drawn, ends_s, now_s = [0.0] * drawers, [0.0] * writers, deque(), [], 0.0
    for place, (split, count) in enumerate(groups):
        views = []
        for _ in range(count):
            views.append(max(now_s, heapq.heappop(drawing)) + draw_s[split])
            heapq.heappush(drawing, views[-1])
        drawn.append((split, count, max(views)))
        while len(drawn) > (ahead if place + 1 < len(groups) else 0):
            split, count, ready_s = drawn.popleft()
            now_s = max(now_s, ready_s) + count * ask_s[split]
            now_s = max(now_s, heapq.heappop(writing))
            ends_s.append(now_s + count * write_s[split])
            heapq.heappush(writing, ends_s[-1])
    return sorted(ends_s)


@pytest.mark.parametrize("crew", [(2, 1, 1), (16, 8, 2)], ids=["2 cores", "16 cores"])
@pytest.mark.parametrize(
    ("draw_s", "ask_s", "write_s"),
    [
        (0.06, 0.05, 0.01),
        (0.01, 0.05, 0.01),
        (0.01, 1.0, 0.02),
        (0.005, 0.003, 0.1),
        (0.1, 0.003, 0.01),
    ],
    ids=["drawing", "teacher", "slow teacher", "writing", "drawing for a GPU"],
)
def test_a_sample_takes_as_long_as_in_a_whole_build(crew, draw_s, ask_s, write_s):
    drawers, writers, ahead = crew
    costs = {
        "draw_s": {"val": draw_s / 2, "train": draw_s},
        "ask_s": {"val": ask_s, "train": ask_s},
        "write_s": {"val": write_s / 10, "train": write_s},
        "drawers": drawers, "writers": writers, "ahead": ahead,
    }  # fmt: skip
    val, train = [8] * 2, [16] * 2 * (ahead + 1 + writers)
    ends_s = simulate([*(("val", n) for n in val), *(("train", n) for n in train)], **costs)
    found = find_rates(ends_s, began_s=0.0, val=val, train=train, writers=writers)
    for split in ("val", "train"):
        real_s = simulate([(split, 16)] * 200, **costs)[-1]
        assert found[split] * 200 * 16 == pytest.approx(real_s, rel=0.25), split


def test_of_one_validation_group_all_counts_and_of_few_training_groups_the_first():
    found = find_rates([3.0, 7.0, 15.0], began_s=1.0, val=[2], train=[4, 4], writers=1)
    assert found == {"val": 1.0, "train": 1.5}


def test_a_probe_ends_in_time_where_the_teacher_is_slow(config, monkeypatch):
    monkeypatch.setattr(probe, "MOST_PROBING_S", 0.0)
    assert forecast_cache(config)["probe"]["num_samples"] == {
        "val": 8,
        "train": 16,
    }  # two groups of each


def test_a_probe_of_small_groups_has_as_many_samples_as_another(config, monkeypatch):
    monkeypatch.setattr(probe, "MOST_PROBING_S", 0.0)
    assert forecast_cache(group(config, 1))["probe"]["num_samples"] == {"val": 5, "train": 16}


def test_parts_of_the_time_make_its_sum_and_the_break_even(config):
    facts = forecast_cache(config)
    parts, worth = facts["time"], facts["break_even"]
    assert parts["missing_s"] == pytest.approx(sum(parts[name] for name in PARTS))
    assert parts["all_s"] == parts["missing_s"] and all(
        parts[name] > 0 for name in PARTS if name != "comparison_s"
    )
    assert worth["epochs"] == pytest.approx(parts["all_s"] / (150 * worth["teacher_s"]))


@pytest.mark.parametrize(
    ("levels", "encoding"), [(["low", "mid", "high"], "compact"), ([], "float16")]
)
def test_the_comparison_with_the_teacher_is_counted_where_there_is_one(
    config, monkeypatch, levels, encoding
):
    config = encode(config, encoding)
    config.cache.levels[:] = levels
    times = iter(range(1000))
    monkeypatch.setattr(
        "kdcache.forecast.forecast.time.monotonic", lambda: float(next(times))
    )  # a step takes 1 s
    monkeypatch.setattr(students, "STEPS", 10)
    facts = forecast_cache(config, num_compared=8)
    gradients = 2 * 2 * (2 if levels else 1)
    expected = 10 + 8 * (facts["break_even"]["teacher_s"] + gradients / 2)  # batches of two
    assert facts["time"]["comparison_s"] == pytest.approx(expected)
    assert facts["time"]["missing_s"] == pytest.approx(sum(facts["time"][name] for name in PARTS))
    assert "comparing with the teacher" in format_forecast(facts)


def test_no_comparison_is_counted_where_nothing_is_missing(config):
    build_cache(config)
    times = forecast_cache(config, num_compared=8)["time"]
    assert times["comparison_s"] == 0 < times["all_s"] - times["missing_s"]


# --- disk


def measure_group(config) -> int:
    """Bytes of a training group, raw."""
    facts = forecast_cache(config)
    train = facts["splits"]["train"]
    return sum(array["bytes"] for array in train["arrays"].values()) // train["groups"] + 1


def test_a_disk_that_the_cache_does_not_fit_is_told(config, free_bytes):
    free_bytes(6 * measure_group(config))
    facts = forecast_cache(config)
    assert facts["disk"]["fits"] is False and "IT DOES NOT FIT" in format_forecast(facts)


def test_on_a_small_disk_the_probe_is_small(config, free_bytes):
    size_bytes = measure_group(config)
    free_bytes(4 * size_bytes)
    assert forecast_cache(config)["probe"]["num_samples"]["train"] == 16
    free_bytes(100 * size_bytes)
    assert forecast_cache(config)["probe"]["num_samples"]["train"] > 16


def test_a_disk_that_not_even_the_probe_fits_is_one_line(config, free_bytes, caches):
    free_bytes(1000)
    with pytest.raises(CacheError) as error:
        forecast_cache(config)
    check_one_line(
        error,
        f"{caches / 'one'}: free disk space is 1 kB, expected ",
        "that plan makes and removes again",
    )
    check_one_line(
        error, "; make room or set cache.path to another disk; the whole cache takes up to 1.77 MB"
    )
    assert list(caches.iterdir()) == []


@pytest.mark.parametrize("step", ["write_file", "make_folder"])
def test_a_disk_that_fills_up_meanwhile_is_one_line_of_the_plan(config, caches, monkeypatch, step):
    refused, real = iter([False] * 12), getattr(disk, step)

    def refuse(path, *rest, **named):
        if next(refused, True):
            raise OSError(28, "No space left on device", str(path))
        return real(path, *rest, **named)

    with monkeypatch.context() as patch, pytest.raises(CacheError) as error:
        patch.setattr(f"kdcache.disk.{step}", refuse)
        forecast_cache(config)
    check_one_line(
        error, "free disk space is used up (No space left on device), expected ", "that plan makes"
    )
    assert list(caches.iterdir()) == [] and "what is committed is kept" not in str(error.value)


def test_another_refusal_of_the_disk_keeps_its_own_words(config, monkeypatch):
    def refuse(path, *rest):
        raise OSError(30, "Read-only file system", str(path))

    with (
        monkeypatch.context() as patch,
        pytest.raises(CacheError, match=r"folder is unwritable \(Read-only"),
    ):
        patch.setattr("kdcache.disk.write_file", refuse)
        forecast_cache(config)
