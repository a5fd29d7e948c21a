"""The tables of time and money past one machine in docs/cluster.md: they are what the arithmetic
gives, and the arithmetic is right.
"""

from pathlib import Path

import pytest

from tests import scale

SCALE = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")


def test_readme_has_the_tables_that_the_arithmetic_gives():
    for table in scale.render_tables([]):
        assert table in SCALE, "put into docs/cluster.md what `python -m tests.scale` prints"


def test_the_sum_by_hand_is_the_one_in_the_words():
    (cache,) = [
        cache
        for cache in scale.list_caches()
        if (cache.name, cache.encoding) == ("1.2 M images", "compact")
    ]
    reading_s, rounds = 1_200_000 * 1.84e-3 / 4, -(-4 * 75_000 // 64)
    assert (reading_s, rounds) == (552.0, 4_688)
    facts = scale.spread(
        cache.work(100.0), scale.Fleet(workers=64, bandwidth_mb_s=10_000, per_hour=2.0)
    )
    assert facts["time_s"] == pytest.approx(reading_s + rounds * 0.16 + 0.16)
    assert facts["parts"]["bandwidth"] == pytest.approx(
        4_800_000 * (941_000 + 10 * 3_040) / 10e9, rel=0.01
    )
    assert cache.num_puts == 4 * 75_000 * (7 + 2) and cache.num_gets == 1_200_000 * 7


def test_an_exact_sample_is_what_readme_says():
    exact = scale.list_caches()[0]
    assert exact.sample_bytes == 512 * 512 * 4 + 2 * (
        21 * 64 * 64 + 256 * 128 * 128 + 512 * 64 * 64 + 1024 * 32 * 32
    )
    assert exact.num_puts == 4 * 662 * (6 + 2)


@pytest.mark.parametrize(
    ("option", "value", "changed"),
    [
        ("--rate", "50", (0, 1)),
        ("--student-rate", "200", (2,)),
        ("--bandwidth", "100", (1,)),
        ("--per-hour", "5", (0, 1)),
    ],
)
def test_each_parameter_changes_the_tables_it_is_in(option, value, changed):
    pairs = zip(scale.render_tables([]), scale.render_tables([option, value]), strict=True)
    assert tuple(place for place, (old, new) in enumerate(pairs) if old != new) == changed


@pytest.mark.parametrize("value", ["0", "-1", "fast", "nan"])
def test_a_bad_parameter_is_one_line(capsys, value):
    assert scale.main([f"--rate={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scale: --rate is '{value}', expected a number from 0.001 to 1e9")
