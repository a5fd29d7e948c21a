"""One HDF5 file instead of a folder: how fast training reads it, and how fast it is made and
unmade.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from kdcache.cache.pack import pack_cache
from kdcache.training.batches import count_read_threads
from tests.bench import adapter
from tests.bench.copying import copy_from, fill_batches, make_slots, rate_gb_s, shuffle_passes
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.reading import CPU, load_store, open_store
from tests.bench.sizes import Bench


def measure(bench: Bench) -> list[Figure]:
    """Reading beside a memory copy and beside the folder, then packing and unpacking in child
    processes.
    """
    root, folder = open_store(bench), bench.folder / "packed"
    folder.mkdir(exist_ok=True)
    pack_cache(root, folder / "store.h5")
    return [
        _measure_reading(bench, root, folder / "store.h5"),
        _measure_packing(bench, root, folder),
    ]


def _measure_reading(bench: Bench, root: Path, file: Path) -> Figure:
    sizes, source = bench.sizes, load_store(root)
    readers = {
        name: adapter.make_batch_reader(
            adapter.open_train(place, check="never"),
            batch_size=sizes.batch_size,
            device=CPU,
            residency=adapter.WARM,
        )
        for name, place in (("one file", file), ("folder", root))
    }
    layout = readers["folder"].reader.layout
    order = shuffle_passes(sizes.store_samples, passes=sizes.read_passes, seed=0)
    batches, slots = (
        adapter.make_batches(order, sizes.batch_size),
        make_slots(layout, sizes.batch_size),
    )
    ways = {
        "memcpy": lambda: fill_batches(
            slots, batches, copy_from(source), num_threads=count_read_threads()
        ),
        **{
            name: lambda reader=reader: adapter.read_all(reader, batches)
            for name, reader in readers.items()
        },
    }
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    for _ in range(sizes.read_rounds):
        for name, run in ways.items():
            runs[name].append(rate_gb_s(run, size_bytes=len(order) * layout.item_bytes))
    beside = median_ratio(runs["one file"], runs["folder"])
    return make_figure(
        "read_h5", median_ratio(runs["one file"], runs["memcpy"]), runs=runs, over_folder=beside
    )


def _measure_packing(bench: Bench, root: Path, folder: Path) -> Figure:
    """Each round a new process, whose peak of memory is its own."""
    rounds = []
    for number in range(bench.sizes.build_rounds):
        command = [
            sys.executable,
            "-m",
            "tests.bench.packing_child",
            str(root),
            str(folder / f"round{number}"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"packing failed: {done.stderr.strip()[-400:]}")
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    runs = {name: [one[name] for one in rounds] for name in rounds[0]}
    details = {
        name: statistics.median(values) for name, values in runs.items() if name != "export_mb_s"
    }
    return make_figure("export_mb_s", statistics.median(runs["export_mb_s"]), runs=runs, **details)
