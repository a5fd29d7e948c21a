"""Figures that a page quotes are those of the page or the arithmetic they come from."""

from __future__ import annotations

import re
import statistics

import pytest

from kdcache.analysis.comparison import estimate
from tests.support.pages import ROOT, read

BENCHMARKS = read(ROOT / "BENCHMARKS.md")
RESULTS, TRAINING = read(ROOT / "docs/results.md"), read(ROOT / "docs/training.md")


def find_row(page: str, first: str) -> list[str]:
    """The cells of the one table row whose first cell begins so."""
    (row,) = re.findall(rf"^\| ({re.escape(first)}.*) \|$", page, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def find_figure(name: str) -> str:
    """A figure of `make bench`, as BENCHMARKS.md has it."""
    return find_row(BENCHMARKS, f"`{name}` ")[1].split()[0]


SPEED = {
    "random whole 512x512 samples": ["read_ratio", "read_rate", "read_ratio_crc"],
    "the same, over DataLoader": ["read_vs_dataloader", "rivals"],
    "a distilled step over one with labels only": ["kd_tax"],
    "a step with the teacher in the loop": ["online_speedup"],
    "phase one over the teacher's bare": ["phase_one_overlap"],
    "opening a cache of 10,000 samples": ["open_s"],
    "10,000 samples over 1,000": ["rss_growth", "cost_growth"],
}
"""A row of docs/training.md, "Speed" -> the figures of `make bench` in it."""


@pytest.mark.parametrize("first", SPEED)
def test_speeds_are_those_of_the_bench(first):
    said = re.findall(r"\d+(?:\.\d+)?", find_row(TRAINING, first)[1])
    for name in SPEED[first]:
        figure = float(find_figure(name))
        near = [x for x in said if float(x) == round(figure, len(x.partition(".")[2]))]
        assert near, f"{name} is {figure}, the page says {said}"


@pytest.mark.parametrize("name", ["`half`", "`compact`", "the teacher in every step"])
def test_what_an_encoding_costs_is_what_the_runs_gave(name):
    section = RESULTS[RESULTS.index("## What an encoding costs") :]
    mean, deviation = re.findall(r"[+-]?\d\.\d", find_row(section, name)[1])
    whole = BENCHMARKS[BENCHMARKS.index("## Cached, live, labels only") :]
    cells = find_row(whole, "`live` |" if "teacher" in name else f"{name} |")
    exact, own = ([float(x) for x in row[2:5]] for row in (find_row(whole, "`exact` |"), cells))
    points = [100 * (a - b) for a, b in zip(own, exact, strict=True)]
    assert float(mean) == pytest.approx(statistics.mean(points), abs=0.051)
    assert float(deviation) == pytest.approx(statistics.stdev(points), abs=0.051)


def test_the_first_loss_is_its_seeds():
    """Means, deviations and intervals follow from the seeds in the last column, which have four
    digits.
    """
    seeds = {
        name: [float(x) for x in find_row(RESULTS, name)[4].split(", ")]
        for name in ("baseline, labels only", "response only", "features only", "both")
    }
    for name, values in seeds.items():
        _, best, _, difference, _ = find_row(RESULTS, name)
        mean, deviation = (float(x) for x in best.split(" ± "))
        assert mean == pytest.approx(statistics.mean(values), abs=1e-4)
        assert deviation == pytest.approx(statistics.stdev(values), abs=1e-4)
        if name == "baseline, labels only":
            continue
        base = seeds["baseline, labels only"]
        found = estimate([100 * (a - b) for a, b in zip(values, base, strict=True)])
        said = [float(x) for x in re.findall(r"[+-]\d+\.\d+", difference)]
        assert said == [pytest.approx(x, abs=0.03) for x in (found.mean, *found.interval)]


def test_views_are_those_of_the_runs():
    section = BENCHMARKS[BENCHMARKS.index("How many views (") :]
    means = [float(find_row(section, f"{views} |")[1].split(" ")[0]) for views in (1, 2, 4, 8)]
    said = re.search(r"1, 2, 4 and 8 views gave ([\d., and]+?) ±", " ".join(RESULTS.split()))
    values = [float(x) for x in re.findall(r"\d\.\d+", said[1])]
    assert values == [pytest.approx(mean, abs=0.00051) for mean in means]


def test_a_sample_weighs_what_its_shapes_say():
    page = read(ROOT / "docs/caches.md")
    for name, numbers in {
        "image and label": 512 * 512 * 4,
        "logits": 21 * 64 * 64 * 2,
        "`low`": 256 * 128 * 128 * 2,
        "`mid`": 512 * 64 * 64 * 2,
        "`high`": 1024 * 32 * 32 * 2,
    }.items():
        assert find_row(page, name)[-1] == f"{numbers / 1e6:.2f}"
