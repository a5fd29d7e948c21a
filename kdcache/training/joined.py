"""The labelled and the unlabelled training samples of a cache, read as if they were one split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kdcache.cache.layout import ArraySpec
from kdcache.cache.reader import CacheReader
from kdcache.cache.shards import MappedFiles
from kdcache.config import VOID

LABELLED = "labelled"
"""An array of our own, uint8 [1] for each sample: 1 if it has a label, 0 if not."""


class JoinedReader:
    """Samples of "train", then those of "unlabelled", whose label is VOID everywhere.

    Offers what a `BatchReader` asks of a `CacheReader`, and the array LABELLED.

    Args:
        labelled, unlabelled: both splits of one cache; the views that both have are used.
    """

    def __init__(self, labelled: CacheReader, unlabelled: CacheReader) -> None:
        self.parts = labelled, unlabelled
        self.num_labelled = labelled.layout.num_samples
        self.num_unlabelled = unlabelled.layout.num_samples
        arrays = (*labelled.layout.arrays, ArraySpec(LABELLED, (1,), "uint8"))
        num_samples = self.num_labelled + self.num_unlabelled
        self.layout = replace(labelled.layout, num_samples=num_samples, arrays=arrays)
        self.sample_ids = [*labelled.sample_ids, *unlabelled.sample_ids]
        self.storage = labelled.storage
        self.num_views = min(part.num_views for part in self.parts)
        self.encodings, self.bases = labelled.encodings, labelled.bases
        self.is_remote, self.is_single_file = labelled.is_remote, labelled.is_single_file

    def stored_bytes(self, array: str) -> int:
        """Bytes of an array's shard files in all views, estimated from view 0."""
        return sum(
            part.stored_bytes(array)
            for part in self.parts
            if array in {spec.name for spec in part.layout.arrays}
        )

    def read_into(
        self,
        slot: np.ndarray,
        *,
        array: str,
        view: int,
        sample: int,
        maps: MappedFiles | None = None,
    ) -> None:
        """Like `CacheReader.read_into`; samples from `num_labelled` on are unlabelled."""
        is_labelled = sample < self.num_labelled
        if array == LABELLED:
            slot[:] = is_labelled
        elif array == "label" and not is_labelled:
            slot[:] = VOID
        else:
            part = self.parts[0 if is_labelled else 1]
            own = sample if is_labelled else sample - self.num_labelled
            part.read_into(slot, array=array, view=view, sample=own, maps=maps)
