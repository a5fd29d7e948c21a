"""From a few coded samples to the bytes of a whole split."""

from __future__ import annotations

from kdcache.cache.layout import SplitLayout, index_bytes


def add_shards(layout: SplitLayout, sample_bytes: float) -> float:
    """Bytes of all shard files, given those of a sample's chunks with their checksums."""
    count = layout.num_views * layout.num_samples
    return count * sample_bytes + len(layout.arrays) * layout.num_groups * index_bytes(layout.shard_samples)
