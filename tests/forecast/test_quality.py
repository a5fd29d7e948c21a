"""What a plan says about the teacher before anything is built."""

import pytest

from kdcache.forecast.forecast import forecast_cache
from kdcache.precompute.build import build_cache
from kdcache.report.phase_one_text import format_forecast


def test_it_says_how_right_the_teacher_is_on_a_few_samples(config):
    facts = forecast_cache(config)
    teacher, text = facts["teacher"], format_forecast(facts)
    assert teacher["num_samples"] == {"val": facts["probe"]["num_samples"]["val"], "train": 16}
    assert (
        f"teacher: mIoU {teacher['val_miou']:.3f} on val, {teacher['train_miou']:.3f} on training "
        f"views, an estimate from {teacher['num_samples']['val']} and 16 samples\n" in text
    )


def test_the_estimate_is_near_what_phase_one_then_finds(config):
    teacher, found = forecast_cache(config)["teacher"], build_cache(config).score
    assert teacher["val_miou"] == pytest.approx(found.val_miou, abs=0.05)
    assert teacher["train_miou"] == pytest.approx(found.train_miou, abs=0.05)


def test_the_warning_of_phase_one_is_said_before_it(config, monkeypatch):
    mious = iter((0.6, 0.4))
    monkeypatch.setattr("kdcache.forecast.answers.compute_miou", lambda confusion: next(mious))
    facts = forecast_cache(config)
    line = "mIoU is 0.400 on the training views, 0.600 on val: it teaches worse than it can; try "
    assert facts["teacher"]["warning"].startswith(f"{line}augment.color_jitter 0 (is 0.3), ")
    assert f"\n  WARNING: {line}" in format_forecast(facts)
