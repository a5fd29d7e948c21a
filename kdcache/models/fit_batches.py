"""What a teacher is fitted to: batches of the views that phase one caches, and weights of classes.

N: batch, H, W: size of a view, K: classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from kdcache.config import VOID, Config
from kdcache.data.pictures import Sample, read_sample
from kdcache.data.views import apply, draw


def plan_epoch(num_samples: int, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of sample numbers: every sample once, in an order drawn from (seed, epoch).

    Sizes differ by one at most, so that no batch is one sample where that can be avoided: its
    statistics would move BatchNorm as much as those of a whole batch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    return np.array_split(order, -(-num_samples // batch_size))


def make_batches(
    config: Config, samples: Sequence[Sample], batches: Sequence[np.ndarray], *, view: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 [N, H, W, 3] and labels uint8 [N, H, W] of each batch, made one batch ahead.

    Args:
        batches: sample numbers. view: which view of each sample, 0 or more; those below
            `augment.views` are the cached ones.
    """
    with ThreadPoolExecutor(2) as pool:

        def start(batch: np.ndarray) -> list:
            return [pool.submit(make_view, config, samples[k], view) for k in batch]

        coming = start(batches[0])
        for batch in [*batches[1:], []]:
            made, coming = [future.result() for future in coming], start(batch)
            images, labels = zip(*made, strict=True)
            yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def make_view(config: Config, sample: Sample, view: int) -> tuple[np.ndarray, np.ndarray]:
    """A view as phase one stores it: image uint8 [H, W, 3], label uint8 [H, W]."""
    image, label = read_sample(config.dataset, sample)
    size_hw = config.dataset.size_hw
    drawn = draw(
        config.augment, sample_id=sample.id, view=view, image_hw=label.shape, size_hw=size_hw
    )
    return apply(drawn, image, label)


def weigh_classes(config: Config, samples: Sequence[Sample]) -> Tensor | None:
    """Weights float32 [K] of the classes as `fit.class_weights` says; None if all are equal."""
    if config.fit.class_weights == "none":
        return None
    with ThreadPoolExecutor(2) as pool:
        counts = pool.map(lambda sample: _count_pixels(config, sample), samples)
        return weigh_by_frequency(sum(counts))


def weigh_by_frequency(pixels_K: np.ndarray) -> Tensor:
    """The square root of the inverse frequency, float32 [K], with mean 1 over classes that occur.

    A class that does not occur weighs 1, and nothing.

    >>> weigh_by_frequency(np.array([900, 100, 0]))
    tensor([0.5000, 1.5000, 1.0000])
    """
    there = pixels_K > 0
    roots = 1 / np.sqrt(np.where(there, pixels_K, 1))
    weights = np.where(there, roots / roots[there].mean(), 1.0)
    return torch.from_numpy(weights).float()


def _count_pixels(config: Config, sample: Sample) -> np.ndarray:
    label = read_sample(config.dataset, sample)[1]
    return np.bincount(label[label != VOID], minlength=config.dataset.num_classes)
