"""How near reading comes to a memory copy: warm with and without checksums, the first pass, and
cold.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import numpy as np
import torch

from kdcache.training.batches import count_read_threads
from tests.bench import adapter
from tests.bench.copying import (
    copy_from,
    fill_batches,
    make_slots,
    rate_gb_s,
    shuffle_passes,
    time_s,
)
from tests.bench.data import find_shards, make_store
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.sizes import Bench

CPU = torch.device("cpu")
LOADER_GOAL = 20.0  # times a DataLoader on zarr-python
PIECE_BYTES = 4 << 20


def measure(bench: Bench) -> list[Figure]:
    """Warm, then cold."""
    root = open_store(bench)
    return [*_measure_warm(bench, root), _measure_cold(bench, root)]


def open_store(bench: Bench) -> Path:
    """The cache that is only read."""
    sizes = bench.sizes
    folder = bench.folder / "store"
    return make_store(
        folder, px=sizes.store_px, num_samples=sizes.store_samples, shard_samples=sizes.store_shard
    )


def load_store(root: Path) -> dict[str, np.ndarray]:
    """All arrays [sample, ...] of view 0 in memory."""
    reader = adapter.open_train(root, check="never")
    arrays = {}
    for spec in reader.layout.arrays:
        arrays[spec.name] = np.empty((reader.layout.num_samples, *spec.item_shape), spec.dtype)
        for sample in range(reader.layout.num_samples):
            reader.read_into(arrays[spec.name][sample], array=spec.name, view=0, sample=sample)
    return arrays


def _measure_warm(bench: Bench, root: Path) -> list[Figure]:
    sizes, source = bench.sizes, load_store(root)
    checks = {"never": adapter.WARM, "always": adapter.WARM, "never, by position": "disk"}
    readers = {
        way: _make_reader(bench, root, way.split(",")[0], residency)
        for way, residency in checks.items()
    }
    layout = readers["never"].reader.layout
    slots = make_slots(layout, sizes.batch_size)
    order = shuffle_passes(sizes.store_samples, passes=sizes.read_passes, seed=0)
    batches, size_bytes = (
        adapter.make_batches(order, sizes.batch_size),
        len(order) * layout.item_bytes,
    )
    ways = {
        "memcpy": lambda: fill_batches(
            slots, batches, copy_from(source), num_threads=count_read_threads()
        ),
        **{
            way: lambda reader=reader: adapter.read_all(reader, batches)
            for way, reader in readers.items()
        },
    }
    runs: dict[str, list[float]] = {name: [] for name in (*ways, "first")}
    for run in ways.values():
        run()  # slots, mappings and page cache are warm from here on
    for _ in range(sizes.read_rounds):
        for name, run in ways.items():
            runs[name].append(rate_gb_s(run, size_bytes=size_bytes))
        runs["first"].append(_first_pass_gb_s(bench, root))
    rate = statistics.median(runs["never"])
    keys = {"read_ratio": "never", "read_ratio_crc": "always", "read_ratio_first_pass": "first"}
    ratios = [
        make_figure(
            key,
            median_ratio(runs[way], runs["memcpy"]),
            runs={name: runs[name] for name in ("memcpy", way)},
        )
        for key, way in keys.items()
    ]
    per_s = rate * 1e9 / layout.item_bytes
    position = runs["never, by position"]
    facts = {
        "samples_per_s": per_s,
        "sample_mb": layout.item_bytes / 1e6,
        "residency": adapter.WARM,
    }
    facts |= {
        "by_position_gb_s": statistics.median(position),
        "by_position_ratio": median_ratio(position, runs["memcpy"]),
    }
    return [*ratios, make_figure("read_rate", rate, runs=runs, **facts)]


def _first_pass_gb_s(bench: Bench, root: Path) -> float:
    """Two batches warm the slots, the rest is read for the first time."""
    order = shuffle_passes(bench.sizes.store_samples, passes=1, seed=1)
    batches = adapter.make_batches(order, bench.sizes.batch_size)
    reader = _make_reader(bench, root, "first", adapter.WARM)
    adapter.read_all(reader, batches[:2])
    size_bytes = sum(len(batch) for batch in batches[2:]) * reader.reader.layout.item_bytes
    return rate_gb_s(lambda: adapter.read_all(reader, batches[2:]), size_bytes=size_bytes)


def _measure_cold(bench: Bench, root: Path) -> Figure:
    """By position as in a first reading, and mapped as in later ones whose pages have gone."""
    files = find_shards(root)
    size_bytes = sum(path.stat().st_size for path in files)
    names = {"disk": "by position", "ram": "mapped"}
    ways = {
        "sequential": None,
        **{names[residency]: residency for residency in adapter.RESIDENCIES},
    }
    runs: dict[str, list[float]] = {name: [] for name in ways}
    fetched: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.sizes.cold_rounds):
        for name, residency in ways.items():
            took_s, fetched_bytes = _read_cold(bench, root, files, residency)
            runs[name].append(size_bytes / took_s / 1e9)
            fetched[name].append(fetched_bytes / size_bytes)
    details = {
        "gb_s": {name: statistics.median(rates) for name, rates in runs.items()},
        "share_from_storage": fetched,
    }
    details["how"] = "fsync and posix_fadvise(POSIX_FADV_DONTNEED) on each shard file"
    return make_figure(
        "read_cold", median_ratio(runs["by position"], runs["sequential"]), runs=runs, **details
    )


def _read_cold(
    bench: Bench, root: Path, files: list[Path], residency: str | None
) -> tuple[float, int]:
    """Seconds, and bytes that came from the disk: whether the pages were really gone. None: the
    files, one after the other.
    """
    order = shuffle_passes(bench.sizes.store_samples, passes=1, seed=2)
    batches = adapter.make_batches(order, bench.sizes.batch_size)
    if (
        residency is not None
    ):  # slots are touched and indices read before; nothing is mapped by a first reading
        reader = _make_reader(bench, root, "never", residency)
        adapter.read_all(reader, batches)
    drop_pages(files)
    before_bytes = _read_from_storage()
    took_s = time_s(
        lambda: _read_through(files) if residency is None else adapter.read_all(reader, batches)
    )
    return took_s, _read_from_storage() - before_bytes


def drop_pages(files: list[Path]) -> None:
    """Ask the system to forget what it holds of these files."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _read_through(files: list[Path]) -> None:
    piece = bytearray(PIECE_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def _read_from_storage() -> int:
    """Bytes that this process has had fetched from a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _make_reader(bench: Bench, root: Path, check: str, residency: str) -> object:
    reader = adapter.open_train(root, check=check)
    return adapter.make_batch_reader(
        reader, batch_size=bench.sizes.batch_size, device=CPU, residency=residency
    )


def compare_with_loader(ours: list[float], theirs: list[float], *, copied: list[float]) -> Figure:
    """The goal is one where a bare copy of memory would reach it: no reader is faster than that."""
    most = median_ratio(copied, theirs)
    return make_figure(
        "read_vs_dataloader",
        median_ratio(ours, theirs),
        goal=LOADER_GOAL if most >= LOADER_GOAL else None,
        runs={"kdcache": ours, "DataLoader": theirs},
        memory_copy=most,
    )
