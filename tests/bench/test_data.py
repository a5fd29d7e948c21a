"""The caches of random numbers that the bench reads are caches: what changes in the format shows
here at once, and not in `make bench`.
"""

from __future__ import annotations

import pytest

from kdcache.cache.reader import open_split
from kdcache.cache.verify import verify_cache
from tests.bench.data import make_documents, make_store


@pytest.mark.parametrize("codec", ["raw", "blosc-lz4"])
def test_a_store_of_random_numbers_is_whole_and_sound(tmp_path, codec):
    root = make_store(tmp_path / "store", px=64, num_samples=3, shard_samples=2, codec=codec)
    findings = verify_cache(root, data=True)
    assert not findings.damage and not findings.unwritten
    assert [len(open_split(root, split).sample_ids) for split in ("train", "val")] == [3, 1]


def test_documents_alone_open(tmp_path):
    root = make_documents(tmp_path / "store", num_samples=5, num_views=2, shard_samples=2)
    assert len(open_split(root, "train").sample_ids) == 5
    assert len(open_split(root, "val").sample_ids) == 1
