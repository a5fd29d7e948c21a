"""One phase over one data set: `python -m tests.bench.growth_child PHASE DATA LIST FOLDER`; prints
a line of JSON.

A process of its own, because a peak of memory never falls again. The peak is VmHWM and not
    ru_maxrss: that one begins with what the parent had.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from kdcache.config.parser import make_config
from kdcache.precompute import build
from kdcache.precompute.build import build_cache
from kdcache.training.distill import distill
from tests.bench.adapter import LEVELS
from tests.bench.data import NUM_CLASSES
from tests.bench.growth import PX
from tests.bench.machine import read_status_mb
from tests.support.quick import QuickTeacher

TITLES = {
    "phase_one": "asking the teacher",
    "phase_two": "epoch 1",
}  # of the progress bars that are watched
NUM_WINDOWS = 10


class WideTeacher(QuickTeacher):
    """The stand-in with as many channels as FCN-ResNet50."""

    def __init__(self, num_classes: int, levels: list[str]) -> None:
        super().__init__(num_classes, levels)
        self.channels |= {level: LEVELS[level][0] for level in levels}


class Watch:
    """A progress that keeps when each piece of a job was done."""

    def __init__(self) -> None:
        self.marks: dict[str, list[tuple[float, int]]] = {}

    def start(self, title: str, *, total: int | None, unit: str) -> Watch:
        """Begin a job."""
        self.title, self.done = title, 0
        self.marks[title] = [(time.perf_counter(), 0)]
        return self

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def advance(self, count: int, *, size_bytes: int = 0) -> None:
        """`count` more are done."""
        self.done += count
        self.marks[self.title].append((time.perf_counter(), self.done))


def time_sample_ms(marks: list[tuple[float, int]]) -> float:
    """Median over ten windows behind the first tenth: what starts up there is not what a sample
    costs.
    """
    total = marks[-1][1]
    steady = [mark for mark in marks if mark[1] >= total / 10]
    step = max(1, (len(steady) - 1) // NUM_WINDOWS)
    ends = steady[::step]
    return statistics.median(
        1e3 * (b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(ends, ends[1:], strict=False)
    )


def main(phase: str, data: str, name: str, folder: str) -> None:
    """Run and print."""
    watch, cache = Watch(), Path(folder) / "cache"
    given = {
        "dataset": {
            "root": data,
            "train_split": name,
            "val_split": "few",
            "num_classes": NUM_CLASSES,
            "size": PX,
            "download": False,
        },
        "augment": {"views": 1},
        "cache": {"path": str(cache)},
    }
    began_s = time.perf_counter()
    if phase == "phase_one":
        build.build_teacher = lambda config, *, num_classes, levels, device: (
            WideTeacher(num_classes, levels),
            {},
        )
        build_cache(
            make_config(given, {"teacher": {"batch_size": 16, "device": "cpu"}}), progress=watch
        )
    else:
        training = {"epochs": 1, "batch_size": 32, "device": "cpu", "residency": "disk"}
        run = {"dir": str(Path(folder) / "run"), "baseline": False}
        distill(
            {"student": {"pretrained": False}, "train": training, "run": run},
            root=cache,
            progress=watch,
        )
    facts = {
        "peak_mb": read_status_mb("VmHWM"),
        "anon_mb": read_status_mb("RssAnon"),
        "file_mb": read_status_mb("RssFile"),
    }
    facts |= {
        "sample_ms": time_sample_ms(watch.marks[TITLES[phase]]),
        "whole_s": time.perf_counter() - began_s,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
