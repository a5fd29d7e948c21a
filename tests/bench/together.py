"""What it saves to train several students from the same batches: an epoch of all together against one epoch of each alone."""

from __future__ import annotations

from kdcache.config.parser import make_config, merge
from kdcache.progress import Silent
from kdcache.training.batches import BatchReader
from kdcache.training.loop import Learner, train_epoch
from kdcache.training.turn import SharedTurn, Turn
from tests.bench import adapter
from tests.bench.copying import time_s
from tests.bench.data import find_shards
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.reading import drop_pages
from tests.bench.sizes import Bench
from tests.bench.training import open_store

LOSSES = (
    (0.0, 0.0),
    (0.5, 0.0),
    (0.0, 0.3),
    (0.5, 0.3),
)  # beta, gamma: a baseline and three that learn from the teacher


def measure(bench: Bench) -> list[Figure]:
    """With the page cache warm, and from the disk."""
    size = bench.sizes.batch_size
    root, px = open_store(bench, size)
    learners = _make_learners(px, size)
    reader = adapter.open_train(root, check="never")
    batches = adapter.make_batches(list(range(reader.layout.num_samples)), size)
    figures = []
    for key, residency, cold in (
        ("together_warm", adapter.WARM, False),
        ("together_cold", "disk", True),
    ):
        batch_reader = adapter.make_batch_reader(
            reader, batch_size=size, device=bench.device, residency=residency
        )

        def train(
            group: list[Learner], batch_reader: BatchReader = batch_reader, cold: bool = cold
        ) -> None:
            if cold:
                drop_pages(find_shards(root))
            _train_all(group, batch_reader, batches, shared=len(group) > 1)

        runs: dict[str, list[float]] = {"together": [], "alone": []}
        train(learners)
        for _ in range(bench.sizes.together_rounds):
            runs["together"].append(time_s(lambda train=train: train(learners)))
            runs["alone"].append(
                time_s(lambda train=train: [train([learner]) for learner in learners])
            )
        ratio = median_ratio(runs["together"], runs["alone"])
        figures.append(
            make_figure(key, ratio, runs=runs, students=len(learners), px=px, batch_size=size)
        )
    return figures


def _make_learners(px: int, size: int) -> list[Learner]:
    plain = {
        "dataset": {"size": px, "download": False},
        "student": {"pretrained": False},
        "train": {"batch_size": size},
    }
    losses = [{"loss": {"beta": beta, "gamma": gamma}} for beta, gamma in LOSSES]
    return [adapter.make_learner(make_config(merge(plain, loss))) for loss in losses]


def _train_all(
    learners: list[Learner], reader: BatchReader, batches: list, *, shared: bool
) -> None:
    for learner in learners:
        learner.turn = SharedTurn(learner.device) if shared else Turn()
    with Silent().start("", total=None, unit="") as bar:
        train_epoch(learners, reader, batches, epoch=1, bar=bar)
