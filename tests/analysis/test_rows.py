"""Mean, deviation and interval against tables and numbers counted by hand."""

import math
import random

import pytest

from kdcache.analysis.runs import estimate, find_coverage, find_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (4, 2.7764),
        (5, 2.5706),
        (9, 2.2622),
        (10, 2.2281),
        (29, 2.0452),
        (30, 2.0423),
        (60, 2.0003),
        (120, 1.9799),
        (1000, 1.9623),
    ],
)
def test_quantiles_are_those_of_printed_tables(freedom, quantile):
    assert find_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_coverage_of_one_and_two_degrees_is_the_closed_form():
    for t in (0.0, 0.3, 1.0, 4.0, 15.0):
        assert find_coverage(t, 1) == pytest.approx(2 * math.atan(t) / math.pi)
        assert find_coverage(t, 2) == pytest.approx(t / math.sqrt(2 + t * t))


def test_three_numbers_by_hand():
    found = estimate([1.0, 3.0, 2.0])
    assert (found.count, found.mean, found.deviation) == (3, 2.0, 1.0)
    assert found.interval == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert (
        not found.excludes_zero
        and estimate([2.0, 2.1, 1.9]).excludes_zero
        and estimate([-2.0, -2.1]).excludes_zero
    )


def test_one_number_has_no_interval():
    found = estimate([0.7])
    assert (found.mean, found.deviation, found.interval, found.excludes_zero) == (
        0.7,
        None,
        None,
        False,
    )


def test_equal_numbers_have_an_interval_of_no_width():
    assert estimate([0.0, 0.0]).interval == (0.0, 0.0) and not estimate([0.0, 0.0]).excludes_zero
    assert estimate([1.5, 1.5]).excludes_zero


def test_intervals_hold_the_true_mean_95_times_in_100():
    draw = random.Random(5)
    held = 0
    for _ in range(4000):
        low, high = estimate([draw.gauss(0.3, 2.0) for _ in range(3)]).interval
        held += low <= 0.3 <= high
    assert held / 4000 == pytest.approx(0.95, abs=0.011)  # three standard deviations of the count
