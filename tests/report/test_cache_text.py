"""A cache that is being built, watched from outside."""

from __future__ import annotations

import pytest

import cache_teacher.cli
from kdcache.cache.layout import Group, commit_key
from kdcache.config.parser import make_config
from kdcache.errors import CacheMismatchError
from kdcache.precompute.build import build_cache
from kdcache.report.cache_text import watch_cache
from kdcache.storage import open_storage
from tests.support import quick
from tests.support.helpers import check_one_line

LAST = Group("train", 1, 1, 2, 3)


@pytest.fixture
def root(quick_data, tmp_path, quick_teacher):
    """A cache whose last group has no record yet."""
    build_cache(make_config(quick.quick_given(quick_data, tmp_path / "cache")))
    path = tmp_path / "cache" / commit_key(LAST)
    path.rename(tmp_path / "record")
    return tmp_path / "cache"


class Bars:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.totals, self.advances = [], []

    def start(self, title, *, total, unit):
        self.totals.append(total)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def advance(self, count, *, size_bytes=0):
        self.advances.append((count, size_bytes > 0))


def test_it_looks_until_all_is_there(root, tmp_path):
    bars, words, naps = Bars(), [], []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            (tmp_path / "record").rename(root / commit_key(LAST))

    with open_storage(root).take_lease(LAST.name):
        watch_cache(root, every_s=7.0, progress=bars, say=words.append, sleep=sleep)
    assert (
        naps == [7.0] * 3
        and bars.totals == [1]
        and bars.advances == [(0, False), (0, False), (1, True)]
    )
    (line,) = words
    assert (
        f"{root}: 7 of 8 samples are there; writing now, with so many shard groups: process "
        in line
        and "(1)" in line
    )


def test_a_complete_cache_is_said_to_be_at_once(root, tmp_path, capsys):
    (tmp_path / "record").rename(root / commit_key(LAST))
    assert cache_teacher.cli.main(["info", str(root), "--watch"]) == 0
    captured = capsys.readouterr()
    assert (
        "8 of 8 samples are there; nobody is writing" in captured.err and "complete" in captured.out
    )


def test_what_is_no_cache_is_not_watched(tmp_path):
    with pytest.raises(CacheMismatchError) as error:
        watch_cache(tmp_path, every_s=1.0, progress=Bars(), say=print)
    check_one_line(error, "manifest.json is missing")


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "1e9"])
def test_a_wrong_number_of_seconds_is_one_line(root, capsys, seconds):
    assert cache_teacher.cli.main(["info", str(root), f"--watch={seconds}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--watch is {seconds!r}, expected a number from 0.01 to 86400" in line
