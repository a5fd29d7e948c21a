"""How long it takes until the first sample can be asked for."""

from __future__ import annotations

import statistics

from tests.bench import adapter
from tests.bench.copying import time_s
from tests.bench.data import make_documents
from tests.bench.figures import Figure, make_figure
from tests.bench.sizes import Bench

SHARD_SAMPLES = 16  # the default


def measure(bench: Bench) -> list[Figure]:
    """Open a large cache three times; its documents were read once before."""
    sizes = bench.sizes
    root = make_documents(
        bench.folder / "large",
        num_samples=sizes.open_samples,
        num_views=sizes.open_views,
        shard_samples=SHARD_SAMPLES,
    )
    adapter.open_train(root, check="first")
    times_s = [time_s(lambda: adapter.open_train(root, check="first")) for _ in range(3)]
    num_bytes = sum(path.stat().st_size for path in root.rglob("*.json"))
    return [
        make_figure(
            "open_s",
            statistics.median(times_s),
            runs={"seconds": times_s},
            documents_mb=num_bytes / 1e6,
            num_samples=sizes.open_samples,
            num_views=sizes.open_views,
        )
    ]
