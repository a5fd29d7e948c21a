"""Does the thousandth sample cost what the first did? Both phases in child processes, at two sizes
of data set.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from tests.bench.data import write_pictures
from tests.bench.figures import Figure, make_figure
from tests.bench.sizes import Bench

PX, NUM_VAL = 32, 32
PHASES = ("phase_one", "phase_two")
STAND_IN = (
    "the teacher is a stand-in of as many channels: FCN-ResNet50 would take minutes here, "
    "and hide what the rest costs"
)


def measure(bench: Bench) -> list[Figure]:
    """Small and large data set in turn: a load that comes and goes meets both."""
    sizes = bench.sizes
    counts = {"small": sizes.growth_small, "large": sizes.growth_large}
    lists = {name: range(NUM_VAL, NUM_VAL + count) for name, count in counts.items()}
    lists["few"] = range(NUM_VAL)
    data = write_pictures(bench.folder / "growth_data", lists=lists, px=PX)
    results = [(name, _run_both(bench, data, name)) for name in sizes.growth_order]
    runs = {
        name: [result for found, result in results if found == name] for name in ("small", "large")
    }
    return [
        _make_growth("rss_growth", runs, "peak_mb"),
        _make_growth("cost_growth", runs, "sample_ms"),
    ]


def _make_growth(key: str, runs: dict[str, list[dict]], field: str) -> Figure:
    """The larger ratio of both phases, of each size's median run."""
    raw = {
        (phase, size): [one[phase][field] for one in found]
        for size, found in runs.items()
        for phase in PHASES
    }
    ratios = {
        phase: statistics.median(raw[phase, "large"]) / statistics.median(raw[phase, "small"])
        for phase in PHASES
    }
    named = {f"{phase}/{size}/{field}": values for (phase, size), values in raw.items()}
    return make_figure(
        key, max(ratios.values()), runs=named, ratios=ratios, teacher=STAND_IN, children=runs
    )


def _run_both(bench: Bench, data: Path, name: str) -> dict:
    """Phase one, then phase two from its cache."""
    folder = bench.folder / f"growth_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    results = {phase: _run_child(phase, data, name, folder) for phase in PHASES}
    shutil.rmtree(folder)
    return results


def _run_child(phase: str, data: Path, name: str, folder: Path) -> dict:
    """One thread: small tensors gain nothing from more, and waiting threads spin."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "tests.bench.growth_child",
        phase,
        str(data),
        name,
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{phase} of {name} failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])
