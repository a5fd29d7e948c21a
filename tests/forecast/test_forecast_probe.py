"""The probe: how long phase one will take by it, and how much of the disk."""

import pytest

from kdcache.forecast import forecast_cache
from kdcache.report.forecast import format_forecast


def test_parts_of_the_time_make_its_sum_and_the_break_even(config):
    facts = forecast_cache(config)
    parts, worth = facts["time"], facts["break_even"]
    assert parts["missing_s"] == pytest.approx(sum(parts[name] for name in ("setup_s", "val_s", "train_s", "score_s")))
    assert parts["all_s"] == parts["missing_s"] and all(value > 0 for value in parts.values())
    assert worth["epochs"] == pytest.approx(parts["all_s"] / (150 * worth["teacher_s"]))


def test_a_probe_ends_in_time_where_the_teacher_is_slow(config, monkeypatch):
    monkeypatch.setattr("kdcache.forecast.probe.MOST_S", 0.0)
    assert forecast_cache(config)["probe"]["num_samples"] == {"val": 4, "train": 16}  # the least: two shard groups


def test_a_disk_that_is_too_small_is_told(config, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("kdcache.forecast.forecast.shutil.disk_usage", lambda folder: usage)
    facts = forecast_cache(config)
    assert facts["disk"]["fits"] is False and "IT DOES NOT FIT" in format_forecast(facts)
