"""A full disk or quota never corrupts: a clean error with the bytes needed, and the build goes on
after space is made.
"""

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess

import pytest

from kdcache.cache.verify import verify_cache
from kdcache.errors import CacheError
from tests.faults import children
from tests.faults.committed import committed_files
from tests.support import quick
from tests.support.effort import choose_steps, quick_and_full
from tests.support.helpers import check_one_line


def check_clean_and_goes_on(data_root, root, whole, *, views: int = quick.NUM_VIEWS) -> None:
    before = committed_files(root) if root.exists() else {}
    quick.build_quick(data_root, root, views=views)
    after = committed_files(root)
    assert all(after[path] == facts for path, facts in before.items())
    assert quick.snapshot(root) == whole and not verify_cache(root, data=True).damage


@quick_and_full
def test_refused_at_any_step_a_build_ends_cleanly_and_goes_on_later(
    quick_data, one_view, tmp_path, monkeypatch, effort
):
    root = tmp_path / "cache"
    with monkeypatch.context() as patch:
        names = children.meet(children.refuse, step=-2, setattr=patch.setattr)
        quick.build_quick(quick_data, tmp_path / "other", views=1)
    assert len(names) > 80
    for step in choose_steps(names, effort):
        with monkeypatch.context() as patch:
            steps = children.meet(children.refuse, step=step, setattr=patch.setattr)
            with pytest.raises(CacheError) as error:
                quick.build_quick(quick_data, root, views=1)
            check_one_line(error, os.strerror(errno.ENOSPC), str(root))
        assert len(steps) > step
        check_clean_and_goes_on(quick_data, root, one_view, views=1)
        shutil.rmtree(root)


def test_the_error_of_a_full_disk_says_how_many_bytes_are_needed(quick_data, tmp_path, monkeypatch):
    def refuse_shards(path, parts):
        children.refuse("write_file", (path, parts))

    monkeypatch.setattr("kdcache.disk.write_file", refuse_shards)
    with monkeypatch.context() as patch:
        patch.setattr("kdcache.cache.lifecycle.write_manifest", lambda root, manifest: None)
        patch.setattr(
            "kdcache.cache.lifecycle.write_metadata", lambda root, manifest, replace: None
        )
        with pytest.raises(
            CacheError,
            match=r"shard group \S+ cannot be written .*it needs \d+ bytes and \d+ are free",
        ):
            quick.build_quick(quick_data, tmp_path / "cache")


def _build_with_limit(given: dict, most_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    children.build(given)


@pytest.mark.parametrize("most_bytes", [700, 4_000, 9_000])
def test_a_limit_on_file_sizes_ends_cleanly(quick_data, whole, tmp_path, most_bytes):
    root = tmp_path / "cache"
    assert children.run(_build_with_limit, quick.quick_given(quick_data, root), most_bytes) == 3
    error = children.error_file(root).read_text()
    assert re.search(r"CacheError .*(unwritable|cannot be written) \(File too large", error)
    check_clean_and_goes_on(quick_data, root, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_ends_cleanly_and_goes_on_after_space_is_made(
    quick_data, whole, small_disk, monkeypatch
):
    root, ballast = small_disk / "cache", small_disk / "ballast"
    monkeypatch.setattr(
        "kdcache.precompute.build.check_free_space", lambda *args, **kwargs: None
    )  # others fill it meanwhile
    quick.build_quick(quick_data, root)
    shutil.rmtree(root / "train/low/c")
    for record in root.glob("commits/train-*"):
        record.unlink()
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    os.truncate(ballast, ballast.stat().st_size - 32_768)  # room for documents, not for shards
    with pytest.raises(
        CacheError, match="No space left on device.*it needs .* bytes and .* are free"
    ):
        quick.build_quick(quick_data, root)
    ballast.unlink()
    check_clean_and_goes_on(quick_data, root, whole)
