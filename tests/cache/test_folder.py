"""A cache's folder: begun, lost, foreign, full, held by others; and the files in it are those zarr
would have written.
"""

import json
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from kdcache.cache.index import read_group_record
from kdcache.cache.layout import commit_key, shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.cache.records import write_record
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config, merge
from kdcache.errors import CacheCorruptError, CacheError, CacheMismatchError
from kdcache.precompute.build import build_cache
from kdcache.precompute.group import collect_views
from kdcache.precompute.repair import repair_cache
from kdcache.storage import LocalFolder, open_storage
from kdcache.storage.lock import LeaseLostError
from tests.support.quick import snapshot


def test_what_a_process_killed_in_its_first_moment_left_is_no_obstacle(cache, given, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "manifest.json.partial").write_text("{")
    build_cache(make_config(merge(given, {"cache": {"path": str(begun)}})))
    (begun / "manifest.json.partial").unlink(missing_ok=True)
    without_lock = {name: data for name, data in snapshot(begun).items() if name != ".lock"}
    assert without_lock == {
        name: data for name, data in snapshot(cache.cache.path).items() if name != ".lock"
    }


def test_a_damaged_zarr_json_is_one_line_and_made_anew_by_repair(cache):
    path, before = cache.cache.path / "train" / "image" / "zarr.json", snapshot(cache.cache.path)
    path.write_text("")
    with pytest.raises(
        CacheCorruptError, match="zarr.json: file is no JSON .*run `python -m cache_teacher repair"
    ):
        build_cache(cache)
    repair_cache(cache.cache.path, {})
    assert snapshot(cache.cache.path) == before


def test_a_manifest_that_was_moved_away_is_made_anew_and_committed_groups_are_kept(cache):
    root, before = cache.cache.path, snapshot(cache.cache.path)
    (root / "manifest.json").unlink()
    assert build_cache(cache).num_samples == 0
    assert snapshot(root) == before and read_manifest(root).complete_views == {"train": 2, "val": 1}


def test_without_manifest_groups_of_another_cache_are_refused(cache, given):
    (cache.cache.path / "manifest.json").unlink()
    with pytest.raises(
        CacheMismatchError,
        match="commits/.*identity is not that of these settings; use the settings",
    ):
        build_cache(make_config(merge(given, {"augment": {"seed": 1}})))


def test_a_group_that_another_process_holds_is_waited_for_and_not_written_again(
    cache, caplog, monkeypatch
):
    """The other process: a thread with a descriptor of its own, for which the lock is as strange as
    for a process.
    """
    root, before = cache.cache.path, snapshot(cache.cache.path)
    record = root / commit_key(read_manifest(root).layouts["train"].group(0, 1))
    kept = record.read_bytes()
    record.unlink()
    held, stop = threading.Event(), threading.Event()

    def hold():
        with open_storage(root).take_lease("train-v0000-g00001") as lease:
            held.set()
            stop.wait()
            lease.check()
            record.write_bytes(kept)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()

    read_holder = LocalFolder.read_holder

    def read_holder_and_stop(*args):
        holder = read_holder(*args)
        stop.set()
        return holder

    monkeypatch.setattr(LocalFolder, "read_holder", read_holder_and_stop)
    assert build_cache(cache).num_samples == 0
    other.join()
    assert (
        f"waiting for shard group train-v0000-g00001, which process {os.getpid()} on" in caplog.text
    )
    assert snapshot(root) == before


def test_a_lease_that_was_removed_under_its_holder_commits_nothing(cache, monkeypatch):
    root = cache.cache.path
    (root / "commits" / "train-v0000-g00001.json").unlink()
    before = snapshot(root)

    def draw_and_lose(*args, **kwargs):
        (root / "leases" / "train-v0000-g00001").unlink()
        return collect_views(*args, **kwargs)

    monkeypatch.setattr("kdcache.precompute.group.collect_views", draw_and_lose)
    with pytest.raises(LeaseLostError, match="lease was removed while it was held"):
        build_cache(cache)
    assert snapshot(root) == before


def test_a_view_that_names_other_samples_is_refused_and_found(cache):
    root, manifest = cache.cache.path, read_manifest(cache.cache.path)
    group = manifest.layouts["train"].group(1, 0)
    record = read_group_record(open_storage(root), manifest, group)
    write_record(open_storage(root), group, replace(record, sample_ids=record.sample_ids[::-1]))
    with pytest.raises(
        CacheCorruptError, match="train-v0001-g00000.json: sample ids are not those of view 0"
    ):
        open_split(cache.cache.path, "train").read("label", 1, 0)
    assert [d.what for d in verify_cache(root).damage] == [
        "sample ids are not those of other views"
    ]


def test_a_foreign_folder_is_refused_and_kept(given, tmp_path):
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "a.txt").write_text("mine")
    with pytest.raises(
        CacheMismatchError, match="manifest.json is missing, expected a kdcache cache"
    ):
        build_cache(make_config(merge(given, {"cache": {"path": str(foreign)}})))
    assert [p.name for p in foreign.iterdir()] == ["a.txt"]


def test_an_unwritable_folder_is_one_line(given, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="folder is unwritable .*set cache.path"):
        build_cache(
            make_config(merge(given, {"cache": {"path": str(tmp_path / "file" / "cache")}}))
        )


def test_too_little_disk_space_is_met_before_the_first_batch(config, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        CacheError, match=r"free disk space is 0.00 GB, expected .* GB or more; make room"
    ):
        build_cache(config)
    assert not config.cache.path.exists()


def test_a_full_disk_is_one_line_and_keeps_what_is_committed(cache, monkeypatch):
    root, before = cache.cache.path, snapshot(cache.cache.path)
    (root / "commits" / "train-v0001-g00002.json").unlink()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CacheError, match=r"No space left on device"):
        build_cache(cache)
    monkeypatch.undo()
    build_cache(cache)
    assert snapshot(root) == before


@pytest.mark.parametrize("name", ["image", "label", "logits", "high"])
def test_shards_and_metadata_are_what_zarr_would_have_written(cache, tmp_path, name):
    """The same numbers written by zarr-python: every byte of every shard, the short last one too,
    and what zarr.json says.
    """
    root, reader = cache.cache.path, open_split(cache.cache.path, "train")
    layout, spec = reader.layout, reader.layout.array(name)
    with zarr.config.set({"array.write_empty_chunks": True}):
        theirs = zarr.create_array(
            tmp_path / "theirs",
            shape=(layout.num_views, layout.num_samples, *spec.item_shape),
            dtype=spec.dtype,
            chunks=(1, 1, *spec.item_shape),
            shards=(1, layout.shard_samples, *spec.item_shape),
            fill_value=0,
            compressors=[Crc32cCodec()],
            dimension_names=["view", "sample", *(None for _ in spec.item_shape)],
        )
        for view in range(layout.num_views):
            theirs[view] = np.stack(
                [reader.read(name, view, sample) for sample in range(layout.num_samples)]
            )
    for group in layout.groups():
        ours = root / shard_key(spec, group)
        assert (
            ours.read_bytes()
            == (tmp_path / "theirs" / ours.relative_to(root / "train" / name)).read_bytes()
        )
    said, zarr_says = (
        json.loads((p / "zarr.json").read_text())
        for p in (root / "train" / name, tmp_path / "theirs")
    )
    assert said == zarr_says


@pytest.mark.parametrize(
    ("check", "noticed"),
    [("always", [True, True]), ("first", [True, True]), ("never", [False, False])],
)
def test_readings_are_checked_as_often_as_asked(cache, check, noticed):
    """Bytes flip after sample 0 was read: the file is another one, and both samples are damaged."""
    root, reader = cache.cache.path, open_split(cache.cache.path, "train", check=check)
    reader.read("label", 0, 0)
    path, found = (root / shard_key(reader.layout.array("label"), reader.layout.group(0, 0))), []
    data = bytearray(path.read_bytes())
    for sample in (0, 1):
        data[reader.locate("label", 0, sample).offset] ^= 1
    path.write_bytes(data)
    for sample in (0, 1):
        try:
            reader.read("label", 0, sample)
            found.append(False)
        except CacheCorruptError as error:
            assert f"train/label view 0 sample 'sample_train_000{sample}'" in str(error)
            found.append(True)
    assert found == noticed


def test_a_folder_that_lost_its_manifest_is_not_called_no_cache(cache):
    (cache.cache.path / "manifest.json").unlink()
    with pytest.raises(
        CacheMismatchError,
        match="manifest.json is missing.*it is made anew and committed groups are kept",
    ):
        read_manifest(cache.cache.path)
