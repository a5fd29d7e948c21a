"""Trust: a bit that flips anywhere in a cache is found by name, and no reader hands out wrong
numbers.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.cache.layout import (
    CRC_BYTES,
    SPLITS,
    commit_key,
    index_bytes,
    metadata_key,
    shard_key,
)
from kdcache.cache.manifest import read_manifest
from kdcache.cache.shards import ABSENT
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config
from kdcache.precompute.build import build_cache
from tests.support import quick
from tests.support.effort import get_settings, quick_and_full
from tests.support.reading import find_damaged_files, find_reading_errors, flipped, read_all

Region = tuple[Path, int, int]  # file, first byte, number of bytes


@pytest.fixture(params=["raw", "blosc-zstd"])
def root(request, quick_data, whole_root, tmp_path) -> Path:
    """A finished cache of this test alone."""
    if request.param == "raw":
        return Path(shutil.copytree(whole_root, tmp_path / "cache"))
    config = make_config(
        quick.quick_given(quick_data, tmp_path / "cache"), {"cache": {"codec": request.param}}
    )
    build_cache(config)
    return config.cache.path


def find_regions(root: Path) -> dict[str, list[Region]]:
    """Every byte of the cache, by what it is for."""
    layouts = read_manifest(root).layouts
    documents = {
        "manifest": [(root / "manifest.json")],
        "commit record": [
            (root / commit_key(group)) for layout in layouts.values() for group in layout.groups()
        ],
        "group zarr.json": [
            root / metadata_key(),
            *(root / metadata_key(split) for split in layouts),
        ],
        "array zarr.json": [
            root / metadata_key(s, a.name) for s, layout in layouts.items() for a in layout.arrays
        ],
    }
    regions = {
        kind: [(path, 0, path.stat().st_size) for path in paths]
        for kind, paths in documents.items()
    }
    for layout in layouts.values():
        for spec in layout.arrays:
            for group in layout.groups():
                for kind, region in _shard_regions(
                    (root / shard_key(spec, group)), layout.shard_samples
                ):
                    regions.setdefault(kind, []).append(region)
    return regions


def _shard_regions(path: Path, shard_samples: int) -> Iterator[tuple[str, Region]]:
    start, end = path.stat().st_size - index_bytes(shard_samples), path.stat().st_size - CRC_BYTES
    for offset, size in np.frombuffer(path.read_bytes()[start:end], "<u8").reshape(-1, 2).tolist():
        if offset != ABSENT:
            yield "chunk data", (path, offset, size - CRC_BYTES)
            yield "chunk checksum", (path, offset + size - CRC_BYTES, CRC_BYTES)
    yield "index", (path, start, end - start)
    yield "index checksum", (path, end, CRC_BYTES)


@quick_and_full
def test_any_flipped_bit_is_found_and_never_read(root, effort):
    regions, drawn = find_regions(root), Counter()
    truth = {split: read_all(root, split) for split in SPLITS}
    files = {path for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    assert files == {path for kind in regions.values() for path, _, _ in kind}

    flips = get_settings(effort)

    @flips
    @given(st.data())
    def flip(data):
        kind = data.draw(st.sampled_from(sorted(regions)))
        path, start, size = data.draw(st.sampled_from(regions[kind]))
        bit = data.draw(st.integers(8 * start, 8 * (start + size) - 1))
        name = str(path.relative_to(root))
        drawn[kind] += 1
        with flipped(path, bit):
            assert find_damaged_files(root, data=True) == {name}
            assert find_damaged_files(root) == ({name} if kind != "chunk data" else set())
            messages = find_reading_errors(root, truth)
        assert messages and all(str(path) in message for message in messages)

    flip()
    assert not verify_cache(root, data=True).damage
    assert set(drawn) == set(regions) and min(drawn.values()) >= flips.max_examples // 20
    assert sum(drawn.values()) >= flips.max_examples
