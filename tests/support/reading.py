"""Everything that a cache says, as bytes to compare, and what verifying and reading say of one that
is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.cache.layout import SPLITS
from kdcache.cache.reader import open_split
from kdcache.cache.verify import verify_cache
from kdcache.errors import CacheError
from tests.support.helpers import check_one_line


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """One bit of a file is the other one, in place, until the block ends."""
    descriptor = os.open(path, os.O_RDWR)
    good = os.pread(descriptor, 1, bit // 8)
    try:
        os.pwrite(descriptor, bytes([good[0] ^ 1 << bit % 8]), bit // 8)
        yield
    finally:
        os.pwrite(descriptor, good, bit // 8)
        os.close(descriptor)


def read_all(root: Path, split: str) -> dict[tuple, bytes]:
    """Every sample of every array and view of a split."""
    reader = open_split(root, split)
    return {
        (array.name, view, sample): reader.read(array.name, view, sample).tobytes()
        for array in reader.layout.arrays
        for view in range(reader.num_views)
        for sample in range(reader.layout.num_samples)
    }


def find_damaged_files(root: Path, *, data: bool = False) -> set[str]:
    """The files that verifying blames, by their paths in the cache."""
    try:
        return {damage.key for damage in verify_cache(root, data=data).damage}
    except CacheError as error:  # of the manifest
        check_one_line(error, str(root), "manifest.json")
        return {"manifest.json"}


def find_reading_errors(root: Path, truth: dict[str, dict[tuple, bytes]]) -> list[str]:
    """Read both splits: the message of each that cannot be read; other numbers must be right."""
    messages = []
    for split in SPLITS:
        try:
            found = read_all(root, split)
            assert found.keys() == truth[split].keys() and found == truth[split]
        except CacheError as error:
            check_one_line(error, str(root))
            messages.append(str(error))
    return messages
