"""What only a GPU can tell: how long it idles in phase two, whether page-locked shards save a copy,
what other arithmetic gains a teacher, and what other kernels do to a student's step.
"""

from __future__ import annotations

import mmap
import os
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kdcache.cache.layout import SplitLayout
from kdcache.cache.reader import CacheReader
from kdcache.machine.devices import REPEATABLE, WORKSPACE, use_kernels
from kdcache.training.batches import Batch, BatchReader
from kdcache.training.learner import Learner
from tests.bench import adapter
from tests.bench.copying import rate_gb_s, shuffle_passes, time_s
from tests.bench.data import find_shards
from tests.bench.figures import SPECS, Figure, make_figure, median_ratio, skip_figure
from tests.bench.reading import open_store
from tests.bench.sizes import Bench
from tests.bench.training import ON_CPU, open_cached

READ_ONLY = (
    8  # cudaHostRegisterReadOnly: CUDA refuses pages that are mapped for reading alone without it
)
KERNELS = {
    "float32": {"precision": "float32"},
    "tf32": {"precision": "tf32"},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "cudnn_benchmark": {"precision": "float32", "cudnn_benchmark": True},
}
"""What a teacher can be asked with on a GPU, as arguments of `Teacher`."""
NO_KERNEL = ("Memcpy", "Memset")
PLAIN = {"deterministic": False, "benchmark": False}


def measure(bench: Bench) -> list[Figure]:
    """All of them, or why not."""
    if not bench.gpu:
        return [skip_figure(spec.key, ON_CPU) for spec in SPECS if spec.part == "gpu"]
    return [_measure_busy(bench), measure_registered(bench), measure_teacher(bench)]


def measure_kernels(bench: Bench) -> list[Figure]:
    """What other kernels do to a student's step, or why that is not known."""
    if not bench.gpu:
        return [skip_figure(spec.key, ON_CPU) for spec in SPECS if spec.part == "kernels"]
    return measure_steps(bench)


def measure_teacher(bench: Bench) -> Figure:
    """The teacher in each arithmetic, asked about the same random images."""
    px, size = bench.sizes.train_gpu_px, bench.sizes.batch_size
    images = torch.randint(0, 256, (size, px, px, 3), dtype=torch.uint8).to(bench.device)
    teachers = {}
    for name, how in KERNELS.items():
        torch.manual_seed(0)  # the same weights for all
        teachers[name] = adapter.make_teacher(num_classes=21, device=bench.device, **how)
    answers = {name: teacher(images) for name, teacher in teachers.items()}
    exact, runs = answers["float32"], {name: [] for name in teachers}
    apart = {name: _find_apart(answer, exact) for name, answer in answers.items()}
    for _ in range(bench.sizes.online_rounds):
        for name, teacher in teachers.items():
            asked = partial(_ask, teacher, images, bench.sizes.train_gpu_steps)
            runs[name].append(time_s(asked))
    faster = {name: median_ratio(runs["float32"], times) for name, times in runs.items()}
    details = {"times_faster": faster, "apart": apart, "px": px, "batch_size": size}
    return make_figure("teacher_tf32", faster["tf32"], gpu=bench.gpu, runs=runs, **details)


def _ask(teacher: object, images: Tensor, num_batches: int) -> None:
    for _ in range(num_batches):
        teacher(images)
    if images.is_cuda:
        torch.cuda.synchronize()


def _find_apart(answer: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Answer -> its largest difference from the exact one, over the largest value of that."""
    return {
        name: float((answer[name] - value).abs().max() / value.abs().max())
        for name, value in exact.items()
    }


def measure_steps(bench: Bench) -> list[Figure]:
    """A step of one student with cuDNN's trials, and with sums that repeat if cuBLAS can, beside a
    plain one.
    """
    repeats = os.environ.get(WORKSPACE) in REPEATABLE
    ways = {"plain": {}, "benchmark": {"benchmark": True}}
    ways |= {"deterministic": {"deterministic": True}} if repeats else {}
    runs = _time_ways(bench, {name: {**PLAIN, **way} for name, way in ways.items()})
    facts = {"gpu": bench.gpu, "runs": runs, "num_steps": bench.sizes.train_gpu_steps}
    faster = median_ratio(runs["plain"], runs["benchmark"])
    tried = make_figure("benchmark_step", faster, **facts)
    if not repeats:
        how = f"start again with {WORKSPACE}={REPEATABLE[0]}, which other figures may feel"
        return [tried, skip_figure("deterministic_step", how)]
    ratio = median_ratio(runs["deterministic"], runs["plain"])
    return [tried, make_figure("deterministic_step", ratio, **facts)]


def _time_ways(bench: Bench, ways: dict[str, dict[str, bool]]) -> dict[str, list[float]]:
    """Seconds of some steps of one student, round by round, by arguments of `use_kernels`."""
    size, num_steps = bench.sizes.batch_size, bench.sizes.train_gpu_steps
    cached = open_cached(bench, size)
    batches = adapter.make_batches(list(range(cached.reader.layout.num_samples)), size)
    px = bench.sizes.train_gpu_px if bench.gpu else bench.sizes.train_px
    learner = adapter.make_learner(adapter.training_config(px=px, batch_size=size), compiled=False)
    runs: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for number in range(1 + bench.sizes.tax_rounds):  # the first warms up
            for name, times in runs.items():
                use_kernels(bench.device, **ways[name])
                plan = islice(cycle(batches), num_steps)
                taken = time_s(partial(_train, learner, cached, plan))
                times += [taken] if number else []
    finally:
        use_kernels(bench.device, **PLAIN)
    return runs


def _measure_busy(bench: Bench) -> Figure:
    size, num_steps = bench.sizes.batch_size, 5 * bench.sizes.train_gpu_steps
    cached = open_cached(bench, size)
    batches = adapter.make_batches(list(range(cached.reader.layout.num_samples)), size)
    learner = adapter.make_learner(
        adapter.training_config(px=bench.sizes.train_gpu_px, batch_size=size)
    )
    _train(learner, cached, islice(cycle(batches), 10))
    shares = [
        _busy_share(learner, cached, list(islice(cycle(batches), num_steps))) for _ in range(3)
    ]
    busy, runs = float(np.median(shares)), {"share": shares}
    return make_figure("gpu_busy", busy, gpu=True, runs=runs, num_steps=num_steps, batch_size=size)


def _train(learner: Learner, cached: object, batches: object) -> None:
    for batch in cached.read(list(batches)):
        adapter.step(learner, batch)
    if learner.device.type == "cuda":
        torch.cuda.synchronize()


def _busy_share(learner: object, cached: object, batches: list) -> float:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began_s = time.perf_counter()
        _train(learner, cached, batches)
        wall_s = time.perf_counter() - began_s
    events = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(NO_KERNEL)
    ]
    return unite_us(events) / 1e6 / wall_s


def unite_us(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def measure_registered(bench: Bench) -> Figure:
    """The same chunks in the same batches to the GPU: straight from locked mapped shards, and as
    BatchReader brings them.
    """
    root, size = open_store(bench), bench.sizes.batch_size
    order = shuffle_passes(bench.sizes.store_samples, passes=bench.sizes.read_passes, seed=4)
    batches, shards = adapter.make_batches(order, size), map_shards(root)
    reader = adapter.make_batch_reader(
        adapter.open_train(root, check="never"),
        batch_size=size,
        device=bench.device,
        residency=adapter.WARM,
    )
    slots = make_byte_slots(reader.reader.layout, size, device=bench.device)
    with ExitStack() as locked:
        try:
            lock_s = time_s(lambda: lock_pages(shards.values(), locked))
        except OSError as error:
            forget_error(bench.device)
            return skip_figure(
                "registered_shards", f"cudaHostRegister refused a mapped shard: {error}"
            )
        runs = _alternate(bench, reader, batches, shards=shards, slots=slots)
    locked_gb = sum(shard.numel() for shard in shards.values()) / 1e9
    ratio = median_ratio(runs["registered"], runs["slots"])
    return make_figure(
        "registered_shards", ratio, gpu=True, runs=runs, lock_s=lock_s, locked_gb=locked_gb
    )


def _alternate(
    bench: Bench,
    reader: BatchReader,
    batches: list,
    *,
    shards: dict[Path, Tensor],
    slots: dict[str, Tensor],
) -> dict[str, list[float]]:
    """GB/s of both ways, round by round, once both are warm and have brought the same bytes."""
    stream = torch.cuda.Stream(bench.device)
    stream.wait_stream(torch.cuda.current_stream(bench.device))  # on which the slots were allocated

    def send() -> None:
        with torch.cuda.stream(stream):
            for batch in batches:
                send_batch(reader.reader, batch, shards=shards, slots=slots)
                stream.synchronize()  # BatchReader hands over whole batches, too

    def read() -> None:
        adapter.read_all(reader, batches)
        torch.cuda.synchronize()

    ways = {"registered": send, "slots": read}
    for run in ways.values():
        run()
    (last,) = reader.read(batches[-1:])
    assert not find_differing(last, slots)
    runs: dict[str, list[float]] = {name: [] for name in ways}
    size_bytes = sum(len(batch) for batch in batches) * reader.reader.layout.item_bytes
    for _ in range(bench.sizes.read_rounds):
        for name, run in ways.items():
            runs[name].append(rate_gb_s(run, size_bytes=size_bytes))
    return runs


def make_byte_slots(layout: SplitLayout, rows: int, *, device: torch.device) -> dict[str, Tensor]:
    """uint8 [rows, bytes of a sample] for each array."""
    return {
        spec.name: torch.empty((rows, spec.item_bytes), dtype=torch.uint8, device=device)
        for spec in layout.arrays
    }


def map_shards(root: Path) -> dict[Path, Tensor]:
    """The bytes of each shard file of the training split, mapped read only."""
    return {path: _map_file(path) for path in find_shards(root)}


def _map_file(path: Path) -> Tensor:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nobody writes to this tensor
        return torch.from_numpy(np.frombuffer(mapped, np.uint8))


def send_batch(
    reader: CacheReader,
    batch: list[tuple[int, int]],
    *,
    shards: dict[Path, Tensor],
    slots: dict[str, Tensor],
) -> None:
    """Begin to copy a batch into the first rows of the slots, chunk by chunk, on the stream in use;
    chunks are raw.
    """
    for array, slot in slots.items():
        for row, (view, sample) in enumerate(batch):
            place = reader.locate(array, view, sample)
            chunk = shards[place.path][place.offset : place.offset + place.size_bytes]
            slot[row].copy_(chunk, non_blocking=True)


def find_differing(batch: Batch, slots: dict[str, Tensor]) -> list[str]:
    """Arrays of a batch whose bytes are not those in the first rows of the slots."""
    pairs = {
        name: (values.flatten(1).view(torch.uint8), slots[name])
        for name, values in batch.arrays.items()
    }
    return [
        name for name, (ours, theirs) in pairs.items() if not torch.equal(ours, theirs[: len(ours)])
    ]


def lock_pages(shards: Iterable[Tensor], locked: ExitStack) -> None:
    """Let the GPU fetch from mapped files by itself until `locked` ends. Raises OSError if CUDA
    refuses.
    """
    cudart = torch.cuda.cudart()
    for shard in shards:
        error = cudart.cudaHostRegister(shard.data_ptr(), shard.numel(), READ_ONLY)
        if int(error) != 0:
            raise OSError(int(error), cudart.cudaGetErrorString(error))
        locked.callback(cudart.cudaHostUnregister, shard.data_ptr())


def forget_error(device: torch.device) -> None:
    """Use up what CUDA remembers of a refusal: the next kernel is blamed for it, and here that one
    does not matter.
    """
    with suppress(RuntimeError):
        torch.ones(1, device=device)
