"""What trust costs: `python -m tests.bench.trust --config configs/demo.yaml` (and settings, as for
the programs).

Phase one with the commit protocol and without it (no flush, no reading back, no hash), alternating
in one process; and `verify` by structure and by data, from the page cache. Medians; the table goes
to stdout, the figures to build/trust.json.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from unittest.mock import patch

import torch

from kdcache import disk
from kdcache.cache.verify import verify_cache
from kdcache.config import Config
from kdcache.config.options import Parser, read_given
from kdcache.config.parser import make_config, merge
from kdcache.precompute.build import build_cache
from kdcache.storage import base, local

REPEATS = 3
NUM_TRAIN, NUM_VAL = (
    96,
    32,
)  # of the configured data set: enough groups, and minutes instead of hours


@contextmanager
def without_protocol() -> Iterator[None]:
    """Files are written and renamed, and that is all."""

    def write_file(path: Path, parts: list) -> None:
        with path.open("wb") as file:
            for part in parts:
                file.write(part)

    def believe(path: Path, parts: list) -> base.ShardFile:
        identity = disk.find_identity(path.stat())
        return base.ShardFile(sum(len(part) for part in parts), "0" * 64, identity)

    with (
        patch.object(disk, "write_file", write_file),
        patch.object(disk, "sync_folder", lambda path: None),
        patch.object(local, "_read_back", believe),
    ):
        yield


def shorten_data_set(config: Config, folder: Path) -> Path:
    """A root whose lists are the first ids of the configured ones; its pictures are links."""
    old, new = (root / "VOCdevkit" / "VOC2012" for root in (config.dataset.root.absolute(), folder))
    (new / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass"):
        (new / name).symlink_to(old / name)
    for name, count in (
        (config.dataset.train_split, NUM_TRAIN),
        (config.dataset.val_split, NUM_VAL),
    ):
        ids = (old / "ImageSets" / "Segmentation" / f"{name}.txt").read_text().split()[:count]
        (new / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(ids) + "\n")
    return folder


def measure_build(config: Config) -> tuple[float, int]:
    """Seconds and bytes of one phase one into a folder that is new."""
    shutil.rmtree(config.cache.path, ignore_errors=True)
    os.sync()  # what the last one left to the disk is not this one's
    summary = build_cache(config)
    return summary.time_s, summary.size_bytes


def measure_verify(root: Path, *, data: bool) -> tuple[float, int]:
    """Seconds and bytes read; once before, so that the page cache is warm."""
    verify_cache(root, data=data)
    began_s = time.perf_counter()
    findings = verify_cache(root, data=data)
    assert not findings.damage
    return time.perf_counter() - began_s, findings.num_bytes


def main(argv: list[str]) -> None:
    """Measure and print."""
    prog, description = "python -m tests.bench.trust", "What trust costs."
    given = read_given(Parser(prog=prog, description=description, settings=True).parse_args(argv))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        root = shorten_data_set(make_config(given), Path(folder) / "data")
        here = {"dataset": {"root": str(root)}, "cache": {"path": str(Path(folder) / "cache")}}
        config = make_config(merge(given, here))
        on, off, size_bytes = [], [], 0
        for _ in range(REPEATS):
            with without_protocol():
                off.append(measure_build(config)[0])
            time_s, size_bytes = measure_build(config)
            on.append(time_s)
        structure = [measure_verify(config.cache.path, data=False)[0] for _ in range(REPEATS)]
        data = [measure_verify(config.cache.path, data=True) for _ in range(REPEATS)]
    rates = [num_bytes / time_s / 1e9 for time_s, num_bytes in data]
    figures = {
        "date": str(date.today()),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "samples": NUM_TRAIN * config.augment.views + NUM_VAL,
        "cache_mb": size_bytes / 1e6,
        "phase_one_s": statistics.median(on),
        "without_protocol_s": statistics.median(off),
        "protocol_cost": statistics.median(on) / statistics.median(off) - 1,
        "all_on_s": on,
        "all_off_s": off,
        "verify_structure_s": statistics.median(structure),
        "verify_data_gb_s": statistics.median(rates),
    }
    Path("build").mkdir(exist_ok=True)
    Path("build/trust.json").write_text(json.dumps(figures, indent=1))
    for name, value in figures.items():
        print(f"{name:<20} {value:.4g}" if isinstance(value, float) else f"{name:<20} {value}")


if __name__ == "__main__":
    main(sys.argv[1:])
