"""What the teacher said is kept as it was said, and checked as phase one checks it."""

import pytest

from kdcache.errors import TeacherError
from kdcache.forecast import answers, probe
from kdcache.forecast.forecast import forecast_cache
from kdcache.precompute.build import build_cache
from kdcache.report.phase_one_text import format_forecast
from tests.support.forecasts import answer_otherwise, encode, enlarge
from tests.support.helpers import check_one_line


@pytest.mark.parametrize("encoding", ["half", "compact"])
def test_features_that_float16_cannot_hold_are_planned_where_they_can_be_built(
    config, monkeypatch, encoding
):
    config = encode(config, encoding)
    enlarge(monkeypatch, 1e6)
    facts = forecast_cache(config)
    assert {other["encoding"] for other in facts["others"]} == {"half", "compact"}
    assert "not possible: exact; float16 cannot hold what this teacher says" in format_forecast(
        facts
    )
    build_cache(config)


def test_sizes_do_not_depend_on_how_large_features_are(config, monkeypatch):
    config = encode(config, "half")
    small = {(x["encoding"], x["codec"]): x["size_bytes"] for x in forecast_cache(config)["others"]}
    enlarge(monkeypatch, 2.0**17)
    for other in forecast_cache(config)["others"]:
        assert other["size_bytes"] == pytest.approx(
            small[other["encoding"], other["codec"]], rel=1e-3
        )


def test_nothing_is_left_out_of_a_forecast_of_what_fits(config):
    facts = forecast_cache(config)
    assert facts["compared"]["left_out"] == [] and "not possible" not in format_forecast(facts)


@pytest.mark.parametrize(("factor", "found"), [(1e6, "e+06"), (float("nan"), "nan")])
def test_an_answer_that_cannot_be_stored_is_one_line_also_where_the_probe_does_not_meet_it(
    config, monkeypatch, factor, found
):
    monkeypatch.setattr(probe, "MOST_PROBING_S", 0.0)  # as many questions each time
    questions = []
    answer_otherwise(monkeypatch, lambda number, answer: questions.append(number) or answer)
    forecast_cache(config)
    last = questions[-1]
    answer_otherwise(
        monkeypatch,
        lambda n, answer: {
            k: v * factor if n == last and k == "low" else v for k, v in answer.items()
        },
    )
    with pytest.raises(TeacherError) as error:
        forecast_cache(config)
    check_one_line(
        error, "sample '", "teacher's low reaches", found, "expected finite values up to 65504; "
    )


def test_of_large_answers_fewer_are_kept(config, monkeypatch):
    sample_bytes = 4 * (
        8 * 4 * 4 + 4 * 8 * 8 + 6 * 4 * 4 + 8 * 2 * 2
    )  # logits of 8 classes, low, mid, high
    monkeypatch.setattr(answers, "MOST_KEPT_BYTES", 6 * sample_bytes)
    expected = forecast_cache(config)
    assert expected["compared"]["num_samples"] == 6 and len(expected["others"]) == 5
    monkeypatch.setattr(answers, "MOST_KEPT_BYTES", 1)
    assert forecast_cache(config)["compared"]["num_samples"] == 1
