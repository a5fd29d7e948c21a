"""Samples from coded chunks, by us and by the libraries that read the same store."""

from __future__ import annotations

import statistics

import zarr

from kdcache.training.batches import count_read_threads
from tests.bench import adapter
from tests.bench.copying import fill_batches, make_slots, rate_gb_s, shuffle_passes
from tests.bench.data import find_shards, make_store
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.reading import CPU
from tests.bench.rivals import ZARR_SETTINGS, read_by_tensorstore, read_by_zarr
from tests.bench.sizes import Bench

CODECS = {"read_lz4": "blosc-lz4", "read_zstd": "blosc-zstd"}


def measure(bench: Bench) -> list[Figure]:
    """One codec after the other."""
    return [_measure_codec(bench, key, codec) for key, codec in CODECS.items()]


def _measure_codec(bench: Bench, key: str, codec: str) -> Figure:
    sizes, root = bench.sizes, bench.folder / codec
    make_store(
        root,
        px=sizes.store_px,
        num_samples=sizes.store_samples,
        shard_samples=sizes.store_shard,
        codec=codec,
    )
    size = sizes.batch_size
    reader = adapter.make_batch_reader(
        adapter.open_train(root, check="never"), batch_size=size, device=CPU, residency=adapter.WARM
    )
    layout = reader.reader.layout
    order, slots = shuffle_passes(sizes.store_samples, passes=1, seed=5), make_slots(layout, size)
    fill = read_by_zarr(root)
    ways = {
        "kdcache": lambda batches: adapter.read_all(reader, batches),
        "TensorStore": read_by_tensorstore(root, slots, {}),
        "zarr-python": lambda batches: fill_batches(
            slots, batches, fill, num_threads=count_read_threads()
        ),
    }
    runs = _alternate(
        ways, adapter.make_batches(order, size), bench, size_bytes=len(order) * layout.item_bytes
    )
    rates = {name: statistics.median(values) for name, values in runs.items()}
    rival = max(("TensorStore", "zarr-python"), key=rates.get)
    share = sum(path.stat().st_size for path in find_shards(root)) / (
        sizes.store_samples * layout.item_bytes
    )
    ratio = median_ratio(runs["kdcache"], runs[rival])
    return make_figure(key, ratio, runs=runs, gb_s=rates, fastest_library=rival, share_of_raw=share)


def _alternate(
    ways: dict, batches: list, bench: Bench, *, size_bytes: int
) -> dict[str, list[float]]:
    """GB/s of decoded samples, round by round."""
    runs: dict[str, list[float]] = {name: [] for name in ways}
    with zarr.config.set(ZARR_SETTINGS):
        for run in ways.values():
            run(batches)
        for _ in range(bench.sizes.rival_rounds):
            for name, run in ways.items():
                runs[name].append(rate_gb_s(lambda run=run: run(batches), size_bytes=size_bytes))
    return runs
