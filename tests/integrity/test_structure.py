"""The cache's files are those that were committed, and its records fit each other."""

import pytest

from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.verify import verify_cache
from tests.integrity.opened import tell
from tests.integrity.structure import (
    choose_within,
    find_id_disorder,
    find_missing_records,
    find_strays,
)


@pytest.fixture(scope="module")
def manifest(cache_root) -> Manifest:
    return read_manifest(cache_root)


def test_documents_sizes_and_stored_checksums_are_those_committed(cache_root):
    findings = verify_cache(cache_root)
    assert findings.damage == []


def test_every_byte_is_the_one_committed(cache_root, manifest, seed):
    """Of a large cache: the groups that a random draw of 4 GB holds."""
    choose = choose_within(manifest, size_bytes=4 * 10**9, seed=seed)
    findings = verify_cache(cache_root, data=True, choose=choose)
    assert findings.damage == []
    assert findings.num_bytes > 0


def test_views_that_were_complete_have_all_commit_records(cache_root, manifest):
    assert not (found := find_missing_records(cache_root, manifest)), tell(found)


def test_every_view_has_the_same_samples_in_the_same_order_each_once(cache_root, manifest):
    assert not (found := find_id_disorder(cache_root, manifest)), tell(found)


def test_no_shard_lies_beyond_the_grid(cache_root, manifest):
    assert not (found := find_strays(cache_root, manifest)), tell(found)
