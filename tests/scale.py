"""Time and money past one machine: the tables of docs/cluster.md, from parameters that
you may replace.

python -m tests.scale [--rate 100] [--student-rate 400] [--bandwidth 10000] [--per-hour 2]

--rate: images a second that a GPU's teacher answers (`plan` says it of yours: one over the time of
an image). --student-rate: samples a second that a GPU trains on. --bandwidth: MB/s that all GPUs
together write to the cache. --per-hour: $ a GPU-hour.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass

from kdcache.cache.codecs import choose_codec
from kdcache.cache.encodings import STEPS, Encoding
from kdcache.cache.layout import DTYPES, SplitLayout, list_specs
from kdcache.command import run_command
from kdcache.config import RankConfig
from kdcache.config.options import Parser
from kdcache.forecast.costs import Fleet, Work, spread, sum_shards
from kdcache.progress import format_bytes, format_time

NUM_VIEWS, SHARD_SAMPLES, SIZE_PX = 4, 16, 512
DATA_SETS = {
    "VOC trainaug": (10_582, 21),
    "ADE20K": (20_210, 150),
    "1.2 M images": (1_200_000, 21),
}  # images, classes
GPUS = (1, 8, 64, 512)
TARGETS = {"low": (256, 4), "mid": (512, 8), "high": (1024, 16)}  # FCN-ResNet50's channels, stride
# Measured (docs/cluster.md): a compact sample of 11 classes, what a class adds, reading an image
COMPACT_BYTES, CLASS_BYTES, READING_S = 0.941e6, 3.04e3, 1.84e-3
READERS = 4  # threads that read and check the data set
DOLLARS_PER_PUT, DOLLARS_PER_GET, DOLLARS_PER_GB_MONTH = 0.005 / 1000, 0.0004 / 1000, 0.023
NAMES = {"alone": "images", "asking": "teacher", "bandwidth": "store", "group": "group"}


@dataclass(frozen=True)
class Cache:
    """A data set's training views in one encoding."""

    name: str
    encoding: str
    layout: SplitLayout
    sample_bytes: float

    @property
    def size_bytes(self) -> float:
        """Of all shard files."""
        return sum_shards(self.layout, self.sample_bytes)

    @property
    def num_puts(self) -> int:
        """A shard file an array, commit record and lease of each group, none in parts."""
        return self.layout.num_groups * (len(self.layout.arrays) + 2)

    @property
    def num_gets(self) -> int:
        """An epoch's, an array of a sample each."""
        return self.layout.num_samples * len(self.layout.arrays)

    def work(self, rate: float) -> Work:
        """For GPUs whose teacher answers `rate` images a second; scoring at the end is left out."""
        num_views = self.layout.num_views * self.layout.num_samples
        alone_s = self.layout.num_samples * READING_S / READERS
        return Work(
            self.layout.num_groups,
            num_views / rate,
            SHARD_SAMPLES / rate,
            self.size_bytes,
            alone_s,
            0.0,
        )


def list_caches() -> list[Cache]:
    """Each data set, exact and compact."""
    return [
        _plan(name, encoding, num_samples, num_classes)
        for name, (num_samples, num_classes) in DATA_SETS.items()
        for encoding in ("exact", "compact")
    ]


def _plan(name: str, encoding: str, num_samples: int, num_classes: int) -> Cache:
    exact, targets = encoding == "exact", {"logits": (num_classes, 8), **TARGETS}
    codecs = {dtype: choose_codec("raw" if exact else "blosc-zstd", dtype) for dtype in DTYPES}
    lowrank = {
        k: Encoding("lowrank", c, getattr(RankConfig(), k), STEPS[k], "")
        for k, (c, _) in TARGETS.items()
    }
    encodings = {} if exact else {"logits": Encoding("int8"), **lowrank}
    arrays = list_specs(
        size_hw=(SIZE_PX, SIZE_PX), targets=targets, encodings=encodings, codecs=codecs
    )
    layout = SplitLayout("train", NUM_VIEWS, num_samples, SHARD_SAMPLES, arrays)
    compact_bytes = COMPACT_BYTES + (num_classes - 11) * CLASS_BYTES
    return Cache(name, encoding, layout, layout.item_bytes if exact else compact_bytes)


def render_costs(caches: list[Cache], options: argparse.Namespace) -> list[str]:
    """What does not depend on the number of GPUs."""
    rows = [
        "| four views, 512x512 | a sample | in all, a month | asking | PUTs | GETs an epoch |",
        "|" + "---|" * 6,
    ]
    for cache in caches:
        asking_s = cache.work(options.rate).asking_s
        cells = [
            f"{cache.name}, `{cache.encoding}`",
            format_bytes(cache.sample_bytes),
            f"{format_bytes(cache.size_bytes)}, "
            f"{format_money(cache.size_bytes / 1e9 * DOLLARS_PER_GB_MONTH)}",
            f"{asking_s / 3600:.2f} GPU-hours, {format_money(asking_s / 3600 * options.per_hour)}",
            f"{cache.num_puts:,}, {format_money(cache.num_puts * DOLLARS_PER_PUT)}",
            f"{cache.num_gets:,}, {format_money(cache.num_gets * DOLLARS_PER_GET)}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def render_times(caches: list[Cache], options: argparse.Namespace) -> list[str]:
    """Phase one: wall time, money of all GPUs to the end, and what takes longest."""
    rows = [
        "| phase one on | " + " | ".join(f"{n} GPU{'s'[: n > 1]}" for n in GPUS) + " |",
        "|" + "---|" * 5,
    ]
    for cache in caches:
        cells = [f"{cache.name}, `{cache.encoding}`"]
        for workers in GPUS:
            fleet = Fleet(
                workers=workers, bandwidth_mb_s=options.bandwidth, per_hour=options.per_hour
            )
            facts = spread(cache.work(options.rate), fleet)
            cells.append(
                f"{format_time(facts['time_s'])}, {format_money(facts['cost'])}, "
                f"{NAMES[facts['bottleneck']]}"
            )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def render_students(caches: list[Cache], options: argparse.Namespace) -> list[str]:
    """Phase two: what students on so many GPUs read, of 21 classes."""
    rows = [
        "| phase two on | " + " | ".join(f"{n} GPU{'s'[: n > 1]}" for n in GPUS) + " |",
        "|" + "---|" * 5,
    ]
    for cache in caches[:2]:
        samples = [n * options.student_rate for n in GPUS]
        arrays = len(cache.layout.arrays)
        reads = [
            f"{format_bytes(rate * cache.sample_bytes)}/s, {rate * arrays:,.0f} GET/s"
            for rate in samples
        ]
        rows.append(f"| {' | '.join([f'`{cache.encoding}`', *reads])} |")
    return rows


def format_money(dollars: float) -> str:
    """In cents below 100 $."""
    return f"{dollars:,.2f} $" if dollars < 100 else f"{dollars:,.0f} $"


def main(argv: list[str]) -> int:
    """Print the tables; returns the exit code."""
    return run_command("scale", lambda: print("\n\n".join(render_tables(argv))))


def render_tables(argv: list[str]) -> list[str]:
    """The three tables as Markdown."""
    parser = Parser(prog="python -m tests.scale", description=__doc__)
    for name, value in (
        ("--rate", 100.0),
        ("--student-rate", 400.0),
        ("--bandwidth", 10_000.0),
        ("--per-hour", 2.0),
    ):
        parser.add_argument(name, type=_read_number, default=value, metavar="NUMBER")
    options, caches = parser.parse_args(argv), list_caches()
    return [
        "\n".join(render(caches, options))
        for render in (render_costs, render_times, render_students)
    ]


def _read_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.001 <= number <= 1e9:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a number from 0.001 to 1e9")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
