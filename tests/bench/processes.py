"""What several processes change on a CPU, where BatchNorm's statistics are each process's own:
`python -m tests.bench.processes`.

[--counts 1,2,4] [--seeds 0,1,2] [--epochs 12] [--num-train 160] [--size 96] [--batch-size 8].
Students with labels only on the sample set, the same global batches for every count, started by
torchrun; dropout differs, too. Prints a Markdown table of the last epoch's training loss and of the
best epoch's mIoU on val, by seed. Times say nothing: the processes share the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from kdcache.config.parser import make_config, merge
from kdcache.data.sample_set import write_sample_set
from kdcache.errors import KdcacheError
from kdcache.precompute.build import build_cache
from tests.support import quick

NUM_VAL = 64
COLUMNS = (
    "processes",
    "training loss, by seed",
    "mIoU on val, by seed",
    "mean",
    "less one process: mean, largest",
)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    options = _parse(argv)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        given = make_cache(Path(folder), options)
        alone: list[float] = []
        for count in options.counts:
            runs = [train(given, Path(folder), count=count, seed=seed) for seed in options.seeds]
            mious = [max(entry["miou"] for entry in run) for run in runs]
            alone = alone or mious
            print(_format_row(count, [run[-1]["total"] for run in runs], mious, alone), flush=True)
    return 0


def make_cache(folder: Path, options: argparse.Namespace) -> dict:
    """Settings of a run from a cache with images and labels that mean something, and answers that
    do not.
    """
    write_sample_set(
        folder / "data", num_train=options.num_train, num_val=NUM_VAL, size_px=options.size
    )
    given = quick.quick_given(folder / "data", folder / "cache")
    given = merge(
        given,
        {
            "dataset": {"size": options.size, "val_size": options.size},
            "cache": {"shard_samples": 32},
        },
    )
    quick.use_quick_teacher()
    build_cache(make_config(given))
    training = {"epochs": options.epochs, "batch_size": options.batch_size, "lr": 3e-3}
    return merge(given, {"train": training, "loss": {"beta": 0.0, "gamma": 0.0}})


def train(given: dict, folder: Path, *, count: int, seed: int) -> list[dict]:
    """The lines of metrics.jsonl of a run by `count` processes. Raises KdcacheError if it fails."""
    run, settings = folder / f"run{count}-{seed}", folder / "settings.yaml"
    settings.write_text(
        yaml.safe_dump(merge(given, {"run": {"dir": str(run)}, "train": {"seed": seed}}))
    )
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
    ]
    command = [*start, "-m", "train_student", "--config", str(settings)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise KdcacheError(f"{run}: the run failed; {done.stderr.strip()[:300]}")
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _format_row(count: int, losses: list[float], mious: list[float], alone: list[float]) -> str:
    points = [100 * (miou - other) for miou, other in zip(mious, alone, strict=True)]
    difference = f"{statistics.mean(points):+.1f}, {max(points, key=abs):+.1f} points"
    cells = [
        ", ".join(f"{loss:.3f}" for loss in losses),
        ", ".join(f"{miou:.3f}" for miou in mious),
    ]
    return f"| {count} | {' | '.join(cells)} | {statistics.mean(mious):.3f} | {difference} |"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.processes", description=__doc__.splitlines()[0]
    )
    numbers = {"type": lambda text: [int(part) for part in text.split(",")], "metavar": "N,N"}
    parser.add_argument(
        "--counts", default=[1, 2, 4], help="of processes, the one to compare with first", **numbers
    )
    parser.add_argument("--seeds", default=[0, 1, 2], **numbers)
    for name, default in (("epochs", 12), ("num-train", 160), ("size", 96), ("batch-size", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
