"""What only a GPU can tell: how long it idles in phase two, and whether page-locked shards save a copy."""

from __future__ import annotations

import mmap
import time
import warnings
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench import adapter
from tests.bench.copying import rate_gb_s, shuffle_passes
from tests.bench.data import find_shards
from tests.bench.figures import Figure, make_figure, median_ratio, skip_figure
from tests.bench.reading import open_store
from tests.bench.sizes import Bench
from tests.bench.training import ON_CPU, open_cached

READ_ONLY = 8  # cudaHostRegisterReadOnly
NO_KERNEL = ("Memcpy", "Memset")


def measure(bench: Bench) -> list[Figure]:
    """Both, or why not."""
    if not bench.gpu:
        return [skip_figure(key, ON_CPU) for key in ("gpu_busy", "registered_shards")]
    return [_measure_busy(bench), _measure_registered(bench)]


def _measure_busy(bench: Bench) -> Figure:
    size, num_steps = bench.sizes.batch_size, 5 * bench.sizes.train_gpu_steps
    cached = open_cached(bench, size)
    batches = adapter.make_batches(list(range(cached.reader.layout.num_samples)), size)
    learner = adapter.make_learner(adapter.training_config(px=bench.sizes.train_gpu_px, batch_size=size))
    _train(learner, cached, islice(cycle(batches), 10))
    shares = [_busy_share(learner, cached, list(islice(cycle(batches), num_steps))) for _ in range(3)]
    return make_figure(
        "gpu_busy", float(np.median(shares)), runs={"share": shares}, num_steps=num_steps, batch_size=size
    )


def _train(learner: object, cached: object, batches: object) -> None:
    for batch in cached.read(list(batches)):
        adapter.step(learner, batch)
    torch.cuda.synchronize()


def _busy_share(learner: object, cached: object, batches: list) -> float:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began_s = time.perf_counter()
        _train(learner, cached, batches)
        wall_s = time.perf_counter() - began_s
    events = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(NO_KERNEL)
    ]
    return unite_us(events) / 1e6 / wall_s


def unite_us(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _measure_registered(bench: Bench) -> Figure:
    """A whole shard at once from locked mapped pages, against BatchReader's way; both arrive on the GPU."""
    root = open_store(bench)
    size, samples = bench.sizes.batch_size, bench.sizes.store_samples
    reader = adapter.make_batch_reader(adapter.open_train(root, check="never"), batch_size=size, device=bench.device)
    batches = adapter.make_batches(shuffle_passes(samples, passes=bench.sizes.read_passes, seed=4), size)
    slot_bytes = sum(len(batch) for batch in batches) * reader.reader.layout.item_bytes
    try:
        shards = [_lock_pages(path) for path in find_shards(root)]
    except OSError as error:
        return skip_figure("registered_shards", f"cudaHostRegister refused a mapped shard: {error}")
    targets = [torch.empty(len(shard), dtype=torch.uint8, device=bench.device) for shard in shards]

    def send() -> None:
        for shard, target in zip(shards, targets, strict=True):
            target.copy_(shard, non_blocking=True)
        torch.cuda.synchronize()

    def read() -> None:
        adapter.read_all(reader, batches)
        torch.cuda.synchronize()

    send_bytes, runs = sum(len(shard) for shard in shards), {"registered": [], "slots": []}
    for run in (send, read):
        run()
    for _ in range(bench.sizes.read_rounds):
        runs["registered"].append(rate_gb_s(send, size_bytes=send_bytes))
        runs["slots"].append(rate_gb_s(read, size_bytes=slot_bytes))
    for shard in shards:
        torch.cuda.cudart().cudaHostUnregister(shard.data_ptr())
    return make_figure("registered_shards", median_ratio(runs["registered"], runs["slots"]), runs=runs)


def _lock_pages(path: Path) -> torch.Tensor:
    """A mapped file as a tensor whose pages the GPU can read. Raises OSError where CUDA refuses."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nobody writes to this tensor
        shard = torch.from_numpy(np.frombuffer(mapped, np.uint8))
    error = torch.cuda.cudart().cudaHostRegister(shard.data_ptr(), shard.numel(), READ_ONLY)
    if int(error) != 0:
        raise OSError(int(error), torch.cuda.cudart().cudaGetErrorString(error))
    return shard
