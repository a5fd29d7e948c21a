"""Phase one by two processes of one thread each over one such process: real processes, timed from
when all have their plan.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.phase_one import prepare_build
from tests.bench.sizes import Bench

BATCH = 4  # and samples a shard group: groups enough for two to share


def measure(bench: Bench) -> list[Figure]:
    """One process, two, alternating, each time a new cache of the same samples."""
    build = bench.sizes.scaling
    given = prepare_build(bench, build, batch_size=BATCH)
    given["teacher"]["device"] = "cpu"  # where there is a GPU, too
    settings = bench.folder / "scaling.json"
    settings.write_text(json.dumps(given))
    runs: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(bench.sizes.scaling_rounds):
        for name, count in (("one", 1), ("two", 2)):
            shutil.rmtree(given["cache"]["path"], ignore_errors=True)
            runs[name].append(time_workers(settings, count=count))
    facts = {
        "num_samples": build.num_samples,
        "px": build.px,
        "groups": -(-build.train // BATCH) - (-build.val // BATCH),
    }
    return [
        make_figure("phase_one_scaling", median_ratio(runs["one"], runs["two"]), runs=runs, **facts)
    ]


def time_workers(settings: Path, *, count: int) -> float:
    """Seconds from the first worker's first batch to the last commit, all having been told at once
    to begin.
    """
    workers = [_start(settings, rank=rank, count=count) for rank in range(count)]
    try:
        for worker in workers:
            _expect(worker, worker.stdout.readline() == "ready\n")
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        lines = [worker.stdout.readline() for worker in workers]
        for worker, line in zip(workers, lines, strict=True):
            _expect(worker, line != "")
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    times = [json.loads(line) for line in lines]
    return max(ended_s for _, ended_s in times) - min(began_s for began_s, _ in times)


def _expect(worker: subprocess.Popen, well: bool) -> None:
    """Raises RuntimeError with the end of what the worker said on stderr."""
    if not well:
        worker.kill()
        raise RuntimeError(f"a worker failed: {worker.stderr.read().strip()[-400:]}")


def _start(settings: Path, *, rank: int, count: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
    }
    environment |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}  # as torchrun has them
    command = [sys.executable, "-m", "tests.bench.scaling_child", str(settings)]
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    return subprocess.Popen(command, env=environment, **pipes)
