"""What may happen to a stage: broken copies under running readers, other processes, foreign files,
a disk that is full.
"""

import errno
import logging
import os
import pickle
import threading
import time

import numpy as np
import pytest

from kdcache.cache import stage as staging
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.shards import MappedFiles
from kdcache.cache.stage import Stage, open_stage
from kdcache.config import CacheConfig
from kdcache.errors import SettingsError
from tests.support import quick
from tests.support.helpers import check_one_line
from tests.support.staged import list_copies, open_staged, read_all


@pytest.fixture
def root(quick_data, tmp_path, quick_teacher):
    return quick.build_quick(quick_data, tmp_path / "cache").cache.path


@pytest.fixture
def plain(root) -> list:
    return read_all(CacheReader(root, read_manifest(root), "train"))


def flip(copy, place: int) -> None:
    data = bytearray(copy.read_bytes())
    data[place] ^= 1
    copy.write_bytes(data)


@pytest.mark.parametrize("place", [0, -1, -20])  # a sample's byte, the index's checksum, the index
def test_damage_anywhere_in_a_copy_is_healed(root, plain, tmp_path, place):
    folder = tmp_path / "stage"
    read_all(open_staged(root, folder))
    for copy in list_copies(folder):
        flip(copy, place)
    assert read_all(open_staged(root, folder)) == plain


def test_a_damaged_copy_that_is_mapped_does_not_come_back(root, tmp_path):
    """The first sample is read and mapped from a copy whose second one is damaged."""
    folder, near = tmp_path / "stage", CacheReader(root, read_manifest(root), "train")
    expected = [near.read("image", 0, sample) for sample in (0, 1)]
    reader = open_staged(root, folder)
    (copy,) = [reader.read("image", 0, 0), list_copies(folder)][1]
    flip(copy, reader.locate("image", 0, 1).offset)
    maps, slot = MappedFiles(), np.empty_like(expected[0])
    reader.read_into(slot, array="image", view=0, sample=0, maps=maps)
    for _ in range(3):
        reader.read_into(slot, array="image", view=0, sample=1, maps=maps)
        assert (slot == expected[1]).all()
    reader.read_into(slot, array="image", view=0, sample=0, maps=maps)
    assert (slot == expected[0]).all()


def test_threads_that_find_one_copy_gone_all_read_on(root, plain, tmp_path):
    folder, failed = tmp_path / "stage", []
    reader = open_staged(root, folder)
    read_all(reader)
    for _ in range(20):
        for copy in list_copies(folder):
            copy.unlink()
        start = threading.Barrier(4)

        def read_again(start=start):
            start.wait()
            try:
                assert read_all(reader) == plain
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=read_again) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_foreign_files_in_the_folder_are_neither_counted_nor_removed(root, plain, tmp_path):
    folder = tmp_path / "stage"
    foreign = [
        folder / "ab" / "thesis.tex",
        folder / "notes",
        folder / "00" / ("f" * 64 + ".shard"),
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 30_000)
        os.utime(path, (1, 1))
    assert read_all(open_staged(root, folder, limit_bytes=20_000)) == plain
    assert all(path.exists() for path in foreign)
    assert len(list(folder.glob("??/*.shard"))) > 1


@pytest.mark.parametrize("stage", ["", "above", "inside", "other"])
def test_a_stage_above_or_in_the_cache_is_refused(root, stage):
    place = {
        "": root,
        "above": root.parent,
        "inside": root / "stage",
        "other": root.parent / "stage",
    }[stage]
    config = CacheConfig(path=root, stage_dir=place)
    if stage == "other":
        assert open_stage(config).folder == place
        return
    with pytest.raises(SettingsError) as error:
        open_stage(config)
    check_one_line(error, "cache.stage_dir is", "expected a folder beside the cache")


def test_what_another_process_is_fetching_is_not_removed(root, plain, tmp_path):
    folder = tmp_path / "stage"
    theirs = folder / "ab" / f"ab{'0' * 62}.{'1' * 32}.partial"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"x" * 15_000)
    assert read_all(open_staged(root, folder, limit_bytes=20_000)) == plain and theirs.exists()
    os.utime(theirs, (time.time() - 2 * staging.STALE_S,) * 2)
    assert read_all(open_staged(root, folder, limit_bytes=20_000)) == plain and not theirs.exists()


def test_a_disk_that_says_it_is_full_at_the_end_costs_only_the_copy(
    root, plain, tmp_path, monkeypatch, caplog
):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:7])  # a little at a time, as a pipe would

        def close(self):
            self.file.close()
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    reader, original = open_staged(root, tmp_path / "stage"), staging.disk.open_new

    monkeypatch.setattr(staging.disk, "open_new", lambda path: Full(original(path)))
    with caplog.at_level(logging.WARNING, logger="kdcache"):
        assert read_all(reader) == plain
    assert (
        "stage is full (Disk quota exceeded)" in caplog.text
        and list_copies(tmp_path / "stage") == []
    )


def test_a_copy_of_another_user_is_used(root, plain, tmp_path, monkeypatch):
    folder = tmp_path / "stage"
    read_all(open_staged(root, folder))

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(staging.os, "utime", refuse)
    before = {copy: copy.stat().st_ino for copy in list_copies(folder)}
    assert read_all(open_staged(root, folder)) == plain
    assert before == {copy: copy.stat().st_ino for copy in list_copies(folder)}


def test_a_reader_with_a_stage_can_be_sent_to_another_process(root, plain, tmp_path):
    reader = pickle.loads(pickle.dumps(open_staged(root, tmp_path / "stage")))
    assert isinstance(reader.stage, Stage) and read_all(reader) == plain
