"""From a few coded samples to the bytes of a whole split."""

from __future__ import annotations

import numpy as np

from kdcache.cache.layout import CRC_BYTES, ArraySpec, SplitLayout, index_bytes

LEAST_POINTS = 8  # for a slope


def expect_chunk(
    spec: ArraySpec, found: np.ndarray, *, images: np.ndarray, image_mean: float
) -> float:
    """Mean bytes of an array's chunk and its checksum over a whole split.

    The answers about a rich image code worse, too. So the mean of a few is moved along their line of regression, from their
    images to the many that were coded without the teacher (regression estimator; Cochran 1977, chapter 7). The slope of three
    samples may err more than it mends (measured: logits by 3.5 % instead of 1.4 % rms, once by 57 %), from eight on it mended
    every array: of fewer the plain mean is taken.

    Args:
        found, images: bytes of the array's and of the image's chunks of the same samples, float64 [n].
        image_mean: bytes of an image's chunk, over many samples.
    """
    mean = found.mean()
    if len(found) >= LEAST_POINTS and images.var() > 0:
        slope = np.cov(images, found)[0, 1] / images.var(ddof=1)
        mean += slope * (image_mean - images.mean())
    return float(np.clip(mean, CRC_BYTES + 1, spec.most_chunk_bytes + CRC_BYTES))


def add_shards(layout: SplitLayout, sample_bytes: float) -> float:
    """Bytes of all shard files, given those of a sample's chunks with their checksums."""
    count = layout.num_views * layout.num_samples
    return count * sample_bytes + len(layout.arrays) * layout.num_groups * index_bytes(
        layout.shard_samples
    )
