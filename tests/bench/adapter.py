"""What the measurements need of kdcache, in one place: readers, batches, learners, steps, phase
one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from kdcache.cache.layout import DTYPES, list_specs
from kdcache.cache.reader import CacheReader, open_split
from kdcache.cache.stage import Stage
from kdcache.config import Config, LayerConfig
from kdcache.config.parser import make_config, merge
from kdcache.machine.devices import choose_compiling
from kdcache.models.networks import wrap_torchvision
from kdcache.models.teacher import Teacher, build_fcn
from kdcache.precompute import build
from kdcache.training.batches import Batch, BatchReader
from kdcache.training.learner import build_learner, list_arrays
from kdcache.training.loop import Learner, train_step
from kdcache.training.order import split_batches
from kdcache.training.run import compile_learner, make_trial_batch

RESIDENCIES = ("disk", "ram")
WARM = RESIDENCIES[-1]  # what `train.residency auto` takes for samples that fit into memory
LEVELS = {
    "low": (256, 4),
    "mid": (512, 8),
    "high": (1024, 16),
}  # level -> (channels, stride) of FCN-ResNet50
LABELS_ONLY = {"beta": 0.0, "gamma": 0.0}
RECIPE = {"beta": 1.0, "gamma": 0.0, "temperature": 1.0, "pseudo": 1.0}
ALL_ARRAYS = ["image", "label", "logits", *LEVELS]


def open_train(root: Path, *, check: str, stage: Stage | None = None) -> CacheReader:
    """A fresh reader of a cache's training split."""
    return open_split(root, "train", check=check, stage=stage)


def make_batch_reader(
    reader: CacheReader,
    *,
    batch_size: int,
    device: torch.device,
    arrays: list[str] | None = None,
    residency: str = "disk",
) -> BatchReader:
    """As training makes it."""
    arrays = arrays or ALL_ARRAYS
    return BatchReader(
        reader, arrays=arrays, batch_size=batch_size, device=device, residency=residency
    )


def read_all(batch_reader: BatchReader, batches: list[list[tuple[int, int]]]) -> None:
    """Read batches and do nothing with them."""
    for _ in batch_reader.read(batches):
        pass


def make_batches(order: list[int], batch_size: int) -> list[list[tuple[int, int]]]:
    """Batches of view 0."""
    return split_batches([(0, sample) for sample in order], batch_size)


def training_config(*, px: int, batch_size: int, loss: dict | None = None) -> Config:
    """Default weights of the loss but for those given; the student's weights are random."""
    given = {
        "dataset": {"size": px, "download": False},
        "student": {"pretrained": False},
        "train": {"batch_size": batch_size},
    }
    return make_config(merge(given, {"loss": loss or {}}))


def make_learner(config: Config, *, compiled: bool = True) -> Learner:
    """A learner in training mode, compiled where a run would be, unless told otherwise."""
    learner = build_learner(
        config, teacher_channels={level: channels for level, (channels, _) in LEVELS.items()}
    )
    if compiled and choose_compiling("auto", device=learner.device)[0]:
        targets = {"logits": (config.dataset.num_classes, 8), **LEVELS}
        specs = list_specs(
            size_hw=config.dataset.size_hw,
            targets=targets,
            encodings={},
            codecs=dict.fromkeys(DTYPES),
        )
        specs = [spec for spec in specs if spec.name in list_arrays(learner)]
        size = config.train.batch_size
        compile_learner(learner, [make_trial_batch(specs, batch_size=size, device=learner.device)])
    learner.student.train()
    return learner


def step(learner: Learner, batch: Batch) -> None:
    """Forward, loss, backward, update."""
    train_step(learner, batch, where="bench")


def synchronize() -> None:
    """Wait for the GPU."""
    torch.cuda.synchronize()


def make_batch(arrays: dict[str, Tensor], ids: list[str]) -> Batch:
    """A batch that did not come from a reader."""
    return Batch(arrays, ids)


def make_teacher(*, num_classes: int, device: torch.device, **how: object) -> Teacher:
    """FCN-ResNet50 with random weights and the default taps.

    how: precision and the like, as `Teacher` takes them.
    """
    taps = {level: getattr(LayerConfig(), level) for level in LEVELS}
    model = build_fcn("fcn_resnet50", num_classes=num_classes, aux_head=False)
    network = wrap_torchvision(model, num_classes=num_classes)
    return Teacher(network, taps=taps, device=device, **how)


def precision_of(learner: Learner) -> str:
    """Teacher's precision that equals the learner's."""
    return "float32" if learner.autocast is None else str(learner.autocast).removeprefix("torch.")


@contextmanager
def time_writing() -> Iterator[list[float]]:
    """Seconds of phase one's part from the first batch to the last commit, one entry for each build
    in the block.
    """
    times_s: list[float] = []
    original = build.write_missing

    def timed(*args: object, **options: object) -> object:
        began_s = time.perf_counter()
        try:
            return original(*args, **options)
        finally:
            times_s.append(time.perf_counter() - began_s)

    with patch.object(build, "write_missing", timed):
        yield times_s
