"""A forecast leaves no trace, and it does not touch the cache that is there."""

from dataclasses import replace
from pathlib import Path

import pytest
import quick
from changes import encode
from helpers import check_one_line

from kdcache.cache.build import build_cache
from kdcache.cache.layout import Group, commit_path
from kdcache.errors import CacheError, CacheMismatchError, TeacherError
from kdcache.forecast import forecast_cache
from kdcache.report.forecast import format_forecast


def look(folder: Path) -> dict:
    """Every path with contents and time of change."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def test_nothing_is_left_behind(config, caches):
    before = look(caches)
    forecast_cache(config)
    assert look(caches) == before


def test_folders_above_the_cache_are_not_made(config, tmp_path):
    forecast_cache(replace(config, cache=replace(config.cache, path=tmp_path / "a" / "b" / "c")))
    assert not (tmp_path / "a").exists() and [path.name for path in tmp_path.iterdir()] == ["caches"]


@pytest.mark.parametrize("stop_at", [1, 7, 12])
@pytest.mark.parametrize("error", [KeyboardInterrupt, TeacherError])
def test_nothing_is_left_behind_by_an_interruption_or_a_failure(config, caches, monkeypatch, error, stop_at):
    asked = iter(range(1, 1000))

    def ask(self, image_NHWC, real=quick.QuickTeacher.__call__):
        if next(asked) == stop_at:
            raise error("stop")
        return real(self, image_NHWC)

    monkeypatch.setattr(quick.QuickTeacher, "__call__", ask)
    with pytest.raises(error):
        forecast_cache(config)
    assert list(caches.iterdir()) == []


def test_nothing_is_left_behind_by_a_disk_that_refuses(config, caches, monkeypatch):
    def refuse(path, parts):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(CacheError, match="No space left"):
        patch.setattr("kdcache.cache.durable.write_file", refuse)
        forecast_cache(config)
    assert list(caches.iterdir()) == []


def test_a_cache_that_is_there_is_not_touched_and_what_is_missing_is_told(config, caches):
    config = encode(config, "compact")
    build_cache(config)
    for name in ("train-v0001-g00002", "train-v0001-g00018"):  # 8 samples and the last 6
        commit_path(config.cache.path, Group("train", 0, 0, 0, 0)).with_name(f"{name}.json").unlink()
    before = look(caches)
    facts = forecast_cache(config)
    assert look(caches) == before
    train = facts["splits"]["train"]
    assert (train["groups"], train["groups_committed"], train["num_missing"]) == (38, 36, 14)
    assert facts["size"]["missing_bytes"] < 0.1 * facts["size"]["bytes"]
    assert facts["time"]["missing_s"] < facts["time"]["all_s"]
    assert "39 of 41 shard groups are there; still to do: 14 samples, " in format_forecast(facts)


def test_a_complete_cache_has_nothing_to_do_and_keeps_its_views(config):
    build_cache(config)
    facts = forecast_cache(replace(config, augment=replace(config.augment, views=1)))
    assert facts["size"]["missing_bytes"] == 0 and facts["splits"]["train"]["num_views"] == 2
    assert "complete, nothing is to do" in format_forecast(facts)


def test_another_cache_is_refused(config):
    build_cache(config)
    with pytest.raises(CacheMismatchError) as error:
        forecast_cache(encode(config, "half"))
    check_one_line(error, "cache.encoding is")
