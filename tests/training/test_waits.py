"""How often a step and an evaluation batch would wait for a GPU."""

from __future__ import annotations

import torch

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.config.parser import merge
from kdcache.training import loop
from kdcache.training.batches import BatchReader
from kdcache.training.learner import list_arrays, open_learner
from kdcache.training.processes import Alone
from kdcache.training.settings import resolve_config
from tests.support.waits import Waits


def open_all(given: dict, root, **changes) -> tuple:
    """A learner, a batch of every array it reads, and a reader of val."""
    settings = merge(merge(given, {"cache": {"path": str(root)}}), changes)
    config = resolve_config(root, read_manifest(root), settings)
    train, val = open_split(root, "train"), open_split(root, "val")
    learner, cpu = open_learner(config, train, Alone()), torch.device("cpu")
    reader = BatchReader(train, arrays=list_arrays(learner), batch_size=4, device=cpu)
    (batch,) = reader.read([[(0, sample) for sample in range(4)]])
    return learner, batch, BatchReader(val, arrays=["image", "label"], batch_size=2, device=cpu)


def test_a_step_waits_once_for_whether_its_loss_is_finite(given, built_root):
    learner, batch, _ = open_all(given, built_root)
    learner.student.train()
    loop.train_step(learner, batch, where="warm-up")  # makes the optimiser's state
    with Waits() as waits:
        loop.train_step(learner, batch, where="here")
    assert waits.seen == ["_local_scalar_dense"]


def test_evaluation_does_not_wait(given, built_root):
    learner, _, val = open_all(given, built_root)
    with Waits() as waits:
        confusion = loop.evaluate(learner, val, num_classes=8, batch_size=2)
    assert not waits.seen and confusion.sum() > 0
