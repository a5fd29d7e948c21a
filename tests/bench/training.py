"""What a step costs: cached with all terms, labels alone from memory, and with the teacher in the
loop.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch

from kdcache.training.batches import BatchReader
from tests.bench import adapter
from tests.bench.copying import time_s
from tests.bench.data import NUM_CLASSES, make_store
from tests.bench.figures import Figure, make_figure, median_ratio, skip_figure
from tests.bench.sizes import Bench

NUM_BATCHES = 3  # of the cache; steps go round and round
ON_CPU = "no GPU in this machine"
WITH_TEACHER = ("online", "teacher")
Kinds = dict[str, Callable[[int], None]]  # name -> does so many steps


def measure(bench: Bench) -> list[Figure]:
    """At the usual batch size."""
    size, sizes = bench.sizes.batch_size, bench.sizes
    kinds, sample_bytes = _make_kinds(bench, size)
    runs = _alternate(bench, kinds, ("cached", "labels_only"), num_rounds=sizes.tax_rounds)
    cached_s, facts = statistics.median(runs["cached"]), {"batch_size": size, "px": _px(bench)}
    tax = make_figure(
        "kd_tax",
        median_ratio(runs["cached"], runs["labels_only"]),
        gpu=bench.gpu,
        runs=runs,
        **facts,
    )
    rate = make_figure(
        "train_rate", size / cached_s, gb_s=size * sample_bytes / cached_s / 1e9, **facts
    )
    speedup = _measure_speedup(bench, "online_speedup", kinds)
    return [tax, speedup, rate, measure_residency(bench, kinds)]


def measure_residency(bench: Bench, kinds: Kinds) -> Figure:
    """Cached steps from the page cache and from the GPU's own memory."""
    if "resident" not in kinds:
        return skip_figure("residency_gpu", ON_CPU)
    names = ("cached", "resident")
    runs = _alternate(bench, kinds, names, num_rounds=bench.sizes.tax_rounds)
    ratio = median_ratio(*(runs[name] for name in names))
    return make_figure("residency_gpu", ratio, gpu=bench.gpu, runs=runs, px=_px(bench))


def measure_batch32(bench: Bench) -> list[Figure]:
    """With a batch that a GPU is not bored by."""
    if not bench.gpu:
        return [skip_figure("online_speedup_batch32", ON_CPU)]
    return [
        _measure_speedup(
            bench, "online_speedup_batch32", _make_kinds(bench, 4 * bench.sizes.batch_size)[0]
        )
    ]


def _measure_speedup(bench: Bench, key: str, kinds: Kinds) -> Figure:
    runs = _alternate(
        bench, kinds, ("online", "cached", "teacher"), num_rounds=bench.sizes.online_rounds
    )
    both = [
        teacher + cached for teacher, cached in zip(runs["teacher"], runs["cached"], strict=True)
    ]
    bound = median_ratio(both, runs["cached"])
    speedup = median_ratio(runs["online"], runs["cached"])
    goal = None if bench.gpu else max(3.0, 0.95 * bound)
    return make_figure(
        key, speedup, gpu=bench.gpu, goal=goal, runs=runs, bound=bound, px=_px(bench)
    )


def _alternate(
    bench: Bench, kinds: Kinds, names: tuple[str, ...], *, num_rounds: int
) -> dict[str, list[float]]:
    """Seconds a step of each kind, round by round."""
    few = bench.sizes.train_gpu_steps if bench.gpu else bench.sizes.train_steps
    steps = {name: few if bench.gpu or name not in WITH_TEACHER else 1 for name in names}
    for name in names:  # compiled, slots touched, checksums of the first reading done
        _finish(bench, kinds[name], 1 if name in WITH_TEACHER else NUM_BATCHES)
    runs: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(num_rounds):
        for name in names:
            took_s = time_s(lambda name=name: _finish(bench, kinds[name], steps[name]))
            runs[name].append(took_s / steps[name])
    return runs


def _finish(bench: Bench, run: Callable[[int], None], num_steps: int) -> None:
    run(num_steps)
    if bench.gpu:
        torch.cuda.synchronize()


def _make_kinds(bench: Bench, batch_size: int) -> tuple[Kinds, int]:
    """What is timed, and the bytes of a sample. `online` and `cached` train the same student with
    the same loss.
    """
    config = adapter.training_config(px=_px(bench), batch_size=batch_size)
    cached = open_cached(bench, batch_size)
    images = adapter.make_batch_reader(
        cached.reader, batch_size=batch_size, device=bench.device, arrays=["image", "label"]
    )
    batches = _plan(cached.reader.layout.num_samples, batch_size)
    learner = adapter.make_learner(config)
    plain = adapter.make_learner(
        adapter.training_config(px=_px(bench), batch_size=batch_size, loss=adapter.LABELS_ONLY)
    )
    precision = adapter.precision_of(learner)
    teacher = adapter.make_teacher(
        num_classes=NUM_CLASSES, device=bench.device, precision=precision
    )
    in_memory = _load(images, batches)

    def step_from(reader: BatchReader, num_steps: int) -> None:
        for batch in reader.read(list(islice(cycle(batches), num_steps))):
            adapter.step(learner, batch)

    def step_plain(num_steps: int) -> None:
        for batch in islice(cycle(in_memory), num_steps):
            adapter.step(plain, batch)

    def step_online(num_steps: int) -> None:
        for batch in images.read(list(islice(cycle(batches), num_steps))):
            answer = teacher(batch.arrays["image"])
            adapter.step(learner, adapter.make_batch({**batch.arrays, **answer}, batch.sample_ids))

    def ask(num_steps: int) -> None:
        for batch in islice(cycle(in_memory), num_steps):
            teacher(batch.arrays["image"])

    kinds = {
        "cached": partial(step_from, cached),
        "labels_only": step_plain,
        "online": step_online,
        "teacher": ask,
    }
    if bench.gpu:
        kinds["resident"] = partial(step_from, open_cached(bench, batch_size, residency="gpu"))
    return kinds, cached.reader.layout.item_bytes


def open_cached(bench: Bench, batch_size: int, *, residency: str = adapter.WARM) -> BatchReader:
    """A BatchReader of all arrays, settings as a run has them."""
    reader = adapter.open_train(open_store(bench, batch_size)[0], check="first")
    return adapter.make_batch_reader(
        reader, batch_size=batch_size, device=bench.device, residency=residency
    )


def open_store(bench: Bench, batch_size: int) -> tuple[Path, int]:
    """The cache that is trained from, and the height and width of its images."""
    sizes = {"px": _px(bench), "num_samples": NUM_BATCHES * batch_size, "shard_samples": 8}
    return make_store(bench.folder / f"train{batch_size}", **sizes), sizes["px"]


def _load(images: object, batches: list) -> list:
    """Batches of image and label that stay in memory."""
    kept = []
    for batch in images.read(batches):
        arrays = {name: tensor.clone() for name, tensor in batch.arrays.items()}
        kept.append(adapter.make_batch(arrays, list(batch.sample_ids)))
    return kept


def _plan(num_samples: int, batch_size: int) -> list:
    return adapter.make_batches(list(range(num_samples)), batch_size)


def _px(bench: Bench) -> int:
    return bench.sizes.train_gpu_px if bench.gpu else bench.sizes.train_px
