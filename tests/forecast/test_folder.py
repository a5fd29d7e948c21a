"""A forecast leaves no trace, nor do those that were killed, and it does not touch the cache that
is there.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdcache.cache.layout import Group, commit_key
from kdcache.errors import CacheMismatchError, TeacherError
from kdcache.forecast import probe
from kdcache.forecast.forecast import forecast_cache
from kdcache.forecast.probe import make_folder
from kdcache.precompute.build import build_cache
from kdcache.report.phase_one_text import format_forecast
from kdcache.storage.lock import LOCK, hold_folder
from tests.support.forecasts import answer_otherwise, encode
from tests.support.helpers import check_one_line

ROOT = Path(__file__).parents[2]


def look(folder: Path) -> dict:
    """Every path with contents and time of change."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def test_nothing_is_left_behind(config, caches):
    before = look(caches)
    forecast_cache(config, num_compared=8)
    assert look(caches) == before


def test_folders_above_the_cache_are_not_made(config, tmp_path):
    forecast_cache(replace(config, cache=replace(config.cache, path=tmp_path / "a" / "b" / "c")))
    assert not (tmp_path / "a").exists() and [path.name for path in tmp_path.iterdir()] == [
        "caches"
    ]


@pytest.mark.parametrize("stop_at", [1, 7, 12])
@pytest.mark.parametrize("error", [KeyboardInterrupt, TeacherError])
def test_nothing_is_left_behind_by_an_interruption_or_a_failure(
    config, caches, monkeypatch, error, stop_at
):
    def stop(number, answer):
        if number == stop_at:
            raise error("stop")
        return answer

    answer_otherwise(monkeypatch, stop)
    with pytest.raises(error):
        forecast_cache(config)
    assert list(caches.iterdir()) == []


# --- folders of plans that were killed


def leave_folder(caches: Path, name: str, *parts: str) -> Path:
    """What a killed plan of a cache leaves."""
    made = caches / name
    made.mkdir()
    (made / LOCK).touch()
    for part in parts or ("cache", "documents"):
        (made / part).mkdir()
        (made / part / "file").write_bytes(b"rest")
    return made


def test_what_a_killed_plan_left_is_removed_by_the_next_of_the_same_cache(config, caches):
    stale = leave_folder(caches, ".one.plan-k1lled_x")
    other = leave_folder(caches, ".another.plan-k1lled_x")
    forecast_cache(config)
    assert not stale.exists() and [path.name for path in caches.iterdir()] == [other.name]


def test_the_folder_of_a_living_plan_stays(caches):
    with make_folder(caches / "one") as first:
        (first / "cache").mkdir()
        with make_folder(caches / "one") as second:
            assert first != second and first.is_dir() and second.is_dir()
        assert (first / "cache").is_dir() and not second.exists()
    assert list(caches.iterdir()) == []


def test_the_folder_of_a_dead_process_is_not_held(caches):
    code = (
        "import os, sys; from pathlib import Path; from kdcache.forecast.probe import "
        "make_folder\n"
        "with make_folder(Path(sys.argv[1])) as made: (made / 'cache').mkdir(); "
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(caches / "one")], cwd=ROOT)
    (left,) = caches.iterdir()
    assert done.returncode == -9 and (left / "cache").is_dir()
    with make_folder(caches / "one") as made:
        assert list(caches.iterdir()) == [made] != [left]


def test_a_folder_of_somebody_else_stays_whatever_its_name(caches):
    made = leave_folder(caches, ".one.plan-of_mine", "cache", "thoughts")
    (caches / ".one.plan-note").write_text("a file")
    (caches / ".one.plan-link").symlink_to(made / "cache")
    before = look(caches)
    with make_folder(caches / "one"):
        pass
    assert {path.name for path in look(caches)} == {path.name for path in before}


def test_a_folder_that_is_taken_for_stale_before_it_is_locked_is_made_again(caches, monkeypatch):
    robbed = []

    def hold(path, *, real=hold_folder):
        if not robbed:
            robbed.append(path)
            path.rmdir()
        return real(path)

    monkeypatch.setattr(probe, "hold_folder", hold)
    with make_folder(caches / "one") as made:
        assert made.is_dir() and robbed and made != robbed[0]


# --- a cache that is there


def test_a_cache_that_is_there_is_not_touched_and_what_is_missing_is_told(config, caches):
    config = encode(config, "compact")
    build_cache(config)
    for name in ("train-v0001-g00002", "train-v0001-g00018"):  # 8 samples and the last 6
        (config.cache.path / commit_key(Group("train", 0, 0, 0, 0))).with_name(
            f"{name}.json"
        ).unlink()
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
    assert "complete, nothing to do" in format_forecast(facts)


def test_another_cache_is_refused(config):
    build_cache(config)
    with pytest.raises(CacheMismatchError) as error:
        forecast_cache(encode(config, "half"))
    check_one_line(error, "cache.encoding is")
