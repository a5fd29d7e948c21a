"""A cache in a bucket, trained from through a stage: the second epoch against the same epoch from a
folder.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from unittest.mock import patch

import torch

from kdcache.cache.stage import Stage
from kdcache.storage import Storage, open_storage
from kdcache.storage.bucket import Bucket
from tests.bench import adapter
from tests.bench.copying import shuffle_passes, time_s
from tests.bench.figures import Figure, make_figure
from tests.bench.reading import open_store
from tests.bench.sizes import Bench
from tests.support.s3_server import CREDENTIALS, make_bucket, serve_s3

CPU = torch.device("cpu")


def measure(bench: Bench) -> list[Figure]:
    """In each round fresh readers of both, two epochs each; what is in the stage stays from round
    to round.
    """
    root, runs = open_store(bench), {"local": [], "staged": []}
    first: dict[str, list[float]] = {name: [] for name in runs}
    with (
        serve_s3() as endpoint,
        patch.dict(os.environ, {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}),
    ):
        make_bucket(endpoint, "bench")
        far = open_storage("s3://bench/store")
        _upload(root, far)
        for seed in range(bench.sizes.read_rounds):
            for name, place in (("local", root), ("staged", far)):
                first_s, second_s = _time_epochs(bench, place, seed=seed)
                first[name].append(first_s)
                runs[name].append(second_s)
    ratio = statistics.median(
        staged / local for staged, local in zip(runs["staged"], runs["local"], strict=True)
    )
    return [make_figure("staged_epoch", ratio, runs=runs, first_epoch_s=first)]


def _time_epochs(bench: Bench, place: Path | Storage, *, seed: int) -> list[float]:
    """Seconds of the first epoch of a run and of the next; of another place through the stage."""
    sizes = bench.sizes
    stage = (
        Stage(bench.folder / "stage", limit_bytes=10**12) if open_storage(place).is_remote else None
    )
    reader = adapter.make_batch_reader(
        adapter.open_train(place, check="first", stage=stage),
        batch_size=sizes.batch_size, device=CPU, residency=adapter.WARM,
    )  # fmt: skip
    orders = [
        shuffle_passes(sizes.store_samples, passes=1, seed=2 * seed + epoch) for epoch in range(2)
    ]
    epochs = [adapter.make_batches(order, sizes.batch_size) for order in orders]
    return [time_s(lambda batches=batches: adapter.read_all(reader, batches)) for batches in epochs]


def _upload(root: Path, far: Bucket) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            far.object(str(path.relative_to(root))).put(path.read_bytes())
