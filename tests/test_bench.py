"""The measurements themselves: every part runs at tiny sizes, every figure has a number or a reason."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.copying import shuffle_passes
from tests.bench.figures import SPECS, find_parts, make_figure, median_ratio, skip_figure
from tests.bench.gpu import unite_us
from tests.bench.growth_child import time_sample_ms
from tests.bench.table import render_markdown

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300  # it takes 45 on one core


def run_bench(*options: str) -> subprocess.CompletedProcess:
    """`python -m tests.bench` in a process of its own: it starts workers, and TensorStore, which it loads, forbids forks."""
    command = [sys.executable, "-m", "tests.bench", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("bench")
    done = run_bench("--quick", "--dir", str(folder / "data"), "--out", str(folder / "bench.json"))
    assert done.returncode == 0, done.stderr
    assert not list((folder / "data").iterdir())  # temporary data are gone
    return json.loads((folder / "bench.json").read_text())


def test_bench_measures_every_figure_or_says_why_not(document):
    assert list(document["figures"]) == [spec.key for spec in SPECS]
    for key, figure in document["figures"].items():
        if figure["value"] is None:
            assert figure["verdict"] == "skipped" and "no GPU" in figure["reason"], key
        else:
            assert math.isfinite(figure["value"]) and figure["value"] > 0, key
        assert figure["definition"] and figure["unit"]


def test_bench_says_where_and_with_what_it_measured(document):
    assert document["quick"] and document["date"]
    assert document["machine"]["cpu"] and document["machine"]["cores"] >= 1 and "gpu" in document["machine"]
    assert {"python", "torch", "zarr", "numcodecs", "tensorstore", "h5py", "kdcache"} <= set(document["versions"])


def test_bench_keeps_raw_runs_of_every_figure_with_a_goal(document):
    for key, figure in document["figures"].items():
        if figure["goal"] is not None and figure["value"] is not None:
            assert figure["runs"] and all(figure["runs"].values()), key


def test_bench_renders_markdown(document):
    text = render_markdown(document)
    assert "numbers mean nothing" in text  # of a quick run
    assert all(f"| `{spec.key}` |" in text for spec in SPECS)
    assert "TensorStore" in text and "zarr-python" in text


def test_parts_are_found_by_their_own_name_and_by_a_figure():
    assert find_parts("growth,read_ratio") == ["reading", "growth"]
    assert len(find_parts(None)) == len({spec.part for spec in SPECS})
    with pytest.raises(SystemExit, match="'spede' is unknown"):
        find_parts("spede")


def test_verdict_follows_the_goal():
    assert make_figure("read_ratio", 0.95).verdict == "met"
    assert make_figure("read_ratio", 0.85).verdict == "missed"
    assert make_figure("kd_tax", 1.1).verdict == "met"
    assert make_figure("kd_tax", 1.1, gpu=True).verdict == "missed"
    assert make_figure("read_cold", 0.5).verdict == "reported"
    assert skip_figure("gpu_busy", "no GPU").verdict == "skipped"


def test_figure_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="read_ratio is nan, expected a finite number"):
        make_figure("read_ratio", math.nan)


def test_ratio_is_the_median_of_the_rounds():
    assert median_ratio([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0


def test_union_counts_overlapping_kernels_once():
    assert unite_us([(0, 2), (1, 3), (1, 2), (5, 6)]) == 4
    assert unite_us([]) == 0


def test_steady_time_leaves_out_the_start():
    marks = [(0.0, 0), (9.0, 10)] + [(9.0 + k, 10 + 10 * k) for k in range(1, 20)]
    assert time_sample_ms(marks) == pytest.approx(100)


def test_passes_read_each_sample_once_each():
    assert sorted(shuffle_passes(5, passes=2, seed=0)) == sorted([*range(5), *range(5)])


@pytest.mark.parametrize("text", [None, "{}", "x"])
def test_a_file_that_is_no_measurement_is_one_line(tmp_path, text):
    path = tmp_path / "bench.json"
    if text is not None:
        path.write_text(text)
    done = run_bench("--markdown", str(path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "it is no file of this program's" in line
