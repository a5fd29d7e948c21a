"""Quick caches of every codec and encoding that can be packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_teacher.cli import main as cache_teacher
from kdcache.cache.reader import open_split
from kdcache.config.parser import make_config
from kdcache.precompute.build import build_cache
from tests.support import quick

RANKS = {"low": 2, "mid": 3, "high": 4}
KINDS = {
    "raw": {},
    "lz4": {"codec": "blosc-lz4"},
    "zstd": {"codec": "zstd"},
    "half": {"encoding": "half"},
    "compact": {"encoding": "compact", "rank": RANKS},
    "mixed": {"encoding": {"logits": "int8", "low": "lowrank", "mid": "int8"}, "rank": RANKS},
}


def build(data: Path, root: Path, *, views: int = quick.NUM_VIEWS, **cache: object) -> Path:
    """A quick cache with these settings of its section `cache`; the quick teacher must be set."""
    build_cache(make_config(quick.quick_given(data, root, views=views), {"cache": cache}))
    return root


def read_files(root: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock, by its path."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def read_samples(root: Path, split: str) -> dict[tuple[str, int, int], bytes]:
    """(array, view, sample) -> what the reader gives."""
    reader = open_split(root, split, check="always")
    return {
        (spec.name, view, sample): reader.read(spec.name, view, sample).tobytes()
        for spec in reader.layout.arrays
        for view in range(reader.num_views)
        for sample in range(reader.layout.num_samples)
    }


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def check_refused(
    argv: list[str], capsys: pytest.CaptureFixture, *words: str, code: int = 1
) -> None:
    """One line on stderr, behind lines of progress."""
    assert cache_teacher(argv) == code
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cache_teacher {argv[0]}: ") and all(word in line for word in words), (
        line
    )
