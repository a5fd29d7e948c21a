"""A packed cache that cannot be made, or be made a folder again, is one line, and nothing of it is
left behind.
"""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from kdcache import disk
from kdcache.cache.layout import commit_key, shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.cache.pack import pack_cache
from kdcache.cache.packed_writer import create_file
from kdcache.cache.unpack import unpack_cache
from kdcache.cache.verify import verify_cache
from kdcache.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
)
from kdcache.storage import open_storage
from tests.support.helpers import check_one_line
from tests.support.packed_kinds import build, check_refused, flip, read_files

pytestmark = pytest.mark.usefixtures("quick_teacher")


def check_nothing_left(out: Path) -> None:
    assert not [path for path in out.parent.iterdir() if path.name.startswith(out.name)]


def test_a_damaged_cache_is_not_packed(root, tmp_path):
    layout = read_manifest(root).layouts["train"]
    path = root / shard_key(layout.array("high"), layout.group(1, 0))
    flip(path, 5)
    with pytest.raises(CacheCorruptError) as error:
        pack_cache(root, tmp_path / "x.h5")
    check_one_line(error, str(path), "view 1", "its checksum differs", "repair")
    check_nothing_left(tmp_path / "x.h5")
    pack_cache(root, tmp_path / "x.h5", levels=["low", "mid"])  # what is sound of it
    assert not verify_cache(open_storage(tmp_path / "x.h5"), data=True).damage


def test_a_half_built_cache_is_not_packed_but_its_complete_views_are(root, tmp_path):
    (root / commit_key(read_manifest(root).layouts["train"].group(1, 1))).unlink()
    manifest = root / "manifest.json"
    with pytest.raises(CacheIncompleteError, match="3 of 4 shard groups of train are there"):
        pack_cache(root, tmp_path / "x.h5")
    check_nothing_left(tmp_path / "x.h5")
    pack_cache(root, tmp_path / "x.h5", num_views=1)
    assert (
        read_manifest(open_storage(tmp_path / "x.h5")).complete_views["train"] == 1
        and manifest.exists()
    )


def test_an_existing_file_is_never_replaced(root, tmp_path, capsys):
    out = tmp_path / "x.h5"
    out.write_bytes(b"mine")
    check_refused(
        ["export", str(root), str(out)],
        capsys,
        f"{out}: file is there already, expected a new name",
    )
    assert out.read_bytes() == b"mine"


def test_a_name_taken_while_packing_is_not_replaced(root, tmp_path, monkeypatch):
    out = tmp_path / "x.h5"
    monkeypatch.setattr(
        "kdcache.cache.pack._read_back", lambda partial, progress: out.write_bytes(b"mine")
    )
    for _ in range(2):
        with pytest.raises(CacheError, match="file is there already, expected a new name"):
            pack_cache(root, out)
        assert out.read_bytes() == b"mine" and not out.with_name("x.h5.partial").exists()
        out.unlink()
        monkeypatch.setattr("kdcache.disk.os.link", refuse_link)


def refuse_link(old: Path, new: Path) -> None:
    """As of a file system that has no links."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_links_a_packed_file_gets_its_name_too(root, files, tmp_path, monkeypatch):
    monkeypatch.setattr("kdcache.disk.os.link", refuse_link)
    pack_cache(root, tmp_path / "x.h5")
    assert not verify_cache(open_storage(tmp_path / "x.h5"), data=True).damage
    assert not (tmp_path / "x.h5.partial").exists()


def test_a_finished_file_is_not_written_over_by_the_name_a_killed_export_left(root, file, tmp_path):
    before = file.read_bytes()
    (tmp_path / "x.h5.partial").hardlink_to(file)
    with pytest.raises(CacheError) as error:
        pack_cache(root, tmp_path / "x.h5")
    check_one_line(
        error, "x.h5.partial: file is another name of a finished file", "remove this name"
    )
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--levels", "low,hihg"],
            "--levels is 'hihg', expected some of the cached levels (low, mid, high)",
        ),
        (["--views", "3"], "--views is 3, expected 1 to 2, the views of the cache"),
        (["--views", "none"], "--views is 'none', expected a whole number from 1 to 10000"),
    ],
)
def test_levels_and_views_that_it_has_not_are_refused(root, tmp_path, capsys, options, words):
    check_refused(["export", str(root), str(tmp_path / "x.h5"), *options], capsys, words, code=2)
    check_nothing_left(tmp_path / "x.h5")


def test_a_bucket_or_missing_folder_as_target_is_refused(root, tmp_path, capsys):
    check_refused(
        ["export", str(root), "s3://b/x.h5"], capsys, "expected a path of this machine", code=2
    )
    check_refused(
        ["export", str(root), str(tmp_path / "no" / "x.h5")],
        capsys,
        "is missing, expected one to write into",
    )


def test_a_codec_without_a_filter_is_refused(quick_data, tmp_path):
    root = build(quick_data, tmp_path / "gzip", views=1, codec="gzip")
    with pytest.raises(CacheError) as error:
        pack_cache(root, tmp_path / "x.h5")
    check_one_line(
        error, "train/image: codec is gzip, expected none, blosc or zstd", "cache.codec raw"
    )
    check_nothing_left(tmp_path / "x.h5")


def test_a_disk_that_is_too_small_is_met_before_anything_is_written(root, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "kdcache.cache.packed_writer.shutil.disk_usage",
        lambda path: type("Usage", (), {"free": 1000}),
    )
    with pytest.raises(
        CacheError, match=r"free disk space is 0.00 GB, expected 0.00 GB or more; make room"
    ):
        pack_cache(root, tmp_path / "x.h5")
    check_nothing_left(tmp_path / "x.h5")


def test_a_disk_that_is_full_half_way_leaves_nothing(root, tmp_path, monkeypatch):
    calls, pwrite = [], os.pwrite

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(
            descriptor, data[: max(len(data) // 2, 1)], offset
        )  # a short write is no error

    monkeypatch.setattr("kdcache.cache.packed_writer.os.pwrite", write)
    with pytest.raises(CacheError) as error:
        pack_cache(root, tmp_path / "x.h5")
    check_one_line(
        error, f"{tmp_path / 'x.h5'}: file cannot be written (No space left on device); make room"
    )
    check_nothing_left(tmp_path / "x.h5")


@pytest.mark.parametrize("step", [0, 1, 2, 20, 40])
def test_room_that_cannot_be_reserved_is_one_line_at_any_step(roots, tmp_path, monkeypatch, step):
    calls = []

    def refuse(descriptor: int, offset: int, size_bytes: int) -> None:
        calls.append(size_bytes)
        if len(calls) > step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(descriptor, offset, size_bytes)

    monkeypatch.setattr("kdcache.cache.packed_writer._STEP", 1)
    monkeypatch.setattr("kdcache.cache.packed_writer.reserve", refuse)
    with pytest.raises(CacheError, match=r"file cannot be written \(No space left on device\)"):
        pack_cache(roots["lz4"], tmp_path / "x.h5")
    check_nothing_left(tmp_path / "x.h5")


def test_room_for_the_index_of_coded_chunks_is_reserved_before_hdf5_takes_it(
    roots, tmp_path, monkeypatch
):
    ends, manifest = [], read_manifest(roots["lz4"])
    many = {
        split: replace(layout, num_samples=50_000) for split, layout in manifest.layouts.items()
    }
    monkeypatch.setattr("kdcache.cache.packed_writer._STEP", 1)
    monkeypatch.setattr(
        "kdcache.cache.packed_writer.reserve",
        lambda _, offset, size_bytes: ends.append(offset + size_bytes),
    )
    with (
        (tmp_path / "x.h5").open("wb") as held,
        create_file(
            tmp_path / "x.h5", held.fileno(), replace(manifest, layouts=many), []
        ) as packed,
    ):
        for name in packed.arrays:
            packed.put(name, 0, 0, np.zeros(100, np.uint8))
        packed.finish()
    assert max(ends) > packed.size_bytes > 1_400_000 * len(manifest.layouts["train"].arrays)


@pytest.mark.parametrize(("kind", "most_bytes"), [("raw", 20_000), ("lz4", 70_000)])
def test_a_quota_is_met_before_hdf5_meets_it(roots, tmp_path, kind, most_bytes):
    """In a process of its own, whose files may not grow larger: documents and coded chunks are
    HDF5's to write.
    """
    out = tmp_path / "x.h5"
    command = [sys.executable, "-m", "cache_teacher", "export", str(roots[kind]), str(out)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
    )
    *_, line = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(
        f"cache_teacher export: {out}: file cannot be written ("
    ), done.stderr
    assert "Traceback" not in done.stderr
    check_nothing_left(out)


def test_what_is_written_wrong_gets_no_name(root, tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(
        "kdcache.cache.packed_writer.os.pwrite",
        lambda fd, data, offset: pwrite(fd, bytes(len(data)), offset),
    )
    with pytest.raises(CacheCorruptError, match="its checksum differs"):
        pack_cache(root, tmp_path / "x.h5")
    check_nothing_left(tmp_path / "x.h5")


def test_two_exports_do_not_write_the_same_file(root, tmp_path):
    partial = tmp_path / "x.h5.partial"
    with partial.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CacheError, match="another process is packing into it"):
            pack_cache(root, tmp_path / "x.h5")
        assert partial.exists()
    pack_cache(root, tmp_path / "x.h5")  # what a killed export left is no obstacle
    assert (
        not partial.exists() and not verify_cache(open_storage(tmp_path / "x.h5"), data=True).damage
    )


def test_an_interrupted_export_leaves_nothing(root, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdcache.cache.pack._read_back", stop)
    with pytest.raises(KeyboardInterrupt):
        pack_cache(root, tmp_path / "x.h5")
    check_nothing_left(tmp_path / "x.h5")


# --- import


def test_import_refuses_a_folder_that_is_in_use(file, root, tmp_path, capsys):
    check_refused(
        ["import", str(file), str(root)],
        capsys,
        f"{root}: it is a cache already, expected a new folder",
    )
    other = tmp_path / "photos"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"mine")
    check_refused(
        ["import", str(file), str(other)],
        capsys,
        "manifest.json is missing, expected a kdcache cache",
    )
    assert read_files(other) == {"photo.jpg": b"mine"}


def test_import_refuses_what_is_not_packed(root, tmp_path, capsys):
    places = [
        (root, "a folder or bucket"),
        ("s3://b/x", "a folder or bucket"),
        (tmp_path / "no", "missing"),
        (tmp_path / "no.h5", "missing"),
    ]
    for place, found in places:
        words = f"{place}: it is {found}, expected a packed cache; give the file"
        check_refused(["import", str(place), str(tmp_path / "back")], capsys, words)
    assert not (tmp_path / "back").exists()


def test_import_of_a_damaged_file_says_where_and_goes_on_with_a_sound_one(
    file, files, roots, tmp_path
):
    with h5py.File(file) as opened:
        flip(file, opened["train/mid"].id.get_offset())
    with pytest.raises(CacheCorruptError, match="train/mid view 0 sample .* its checksum differs"):
        unpack_cache(open_storage(file), tmp_path / "back")
    assert not (tmp_path / "back" / "manifest.json").exists()
    unpack_cache(open_storage(files["raw"]), tmp_path / "back")
    found = {
        name: data
        for name, data in read_files(tmp_path / "back").items()
        if not name.startswith("leases/")
    }
    assert found == read_files(roots["raw"])


@pytest.mark.parametrize(
    ("full_at", "words"),
    [("zarr.json", "make room"), ("/c/", "mend that and run the same command again")],
)
def test_import_onto_a_full_disk_is_one_line(file, tmp_path, monkeypatch, full_at, words):
    write = disk.write_file

    def refuse(path, parts):
        if full_at in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, parts)

    with monkeypatch.context() as patch:
        patch.setattr("kdcache.disk.write_file", refuse)
        with pytest.raises(CacheError) as error:
            unpack_cache(open_storage(file), tmp_path / "back")
    check_one_line(error, str(tmp_path / "back"), "No space left on device", words)
    assert unpack_cache(open_storage(file), tmp_path / "back")[0] == 5
