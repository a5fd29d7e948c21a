"""`gc` removes what killed runs left and nothing else; what may stand in a writer's way is said
before anything is taken back.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import cache_teacher.cli
from kdcache import disk
from kdcache.cache.layout import shard_key
from kdcache.cache.leftovers import collect_leftovers
from kdcache.cache.manifest import read_manifest
from kdcache.cache.writer import write_group
from kdcache.errors import CacheError
from kdcache.precompute.repair import repair_cache
from kdcache.storage import LocalFolder, open_storage
from tests.support import quick


@pytest.fixture
def root(whole_root, tmp_path):
    return shutil.copytree(whole_root, tmp_path / "cache")


def test_of_very_many_groups_only_those_are_asked_about_that_have_a_folder(root, monkeypatch):
    """A million groups took minutes and gigabytes: each file that could be there was asked for."""
    manifest, asked = read_manifest(root), []
    many = replace(manifest.layouts["train"], num_views=2, num_samples=100_000)
    manifest = replace(manifest, layouts={**manifest.layouts, "train": many})
    monkeypatch.setattr("kdcache.cache.leftovers.read_manifest", lambda storage: manifest)
    original = LocalFolder.find_sizes

    def find_sizes(self, keys):
        keys = list(keys)
        asked.extend(keys)
        return original(self, keys)

    monkeypatch.setattr(LocalFolder, "find_sizes", find_sizes)
    litter = [
        root / "commits/train-v0001-g40000.json.partial",
        root / "train/mid/c/1/39999/0/0/0.partial",
    ]
    for path in litter:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    found = collect_leftovers(root, dry_run=True)
    assert sorted(one.path for one in found) == sorted(map(str, litter))
    assert len(asked) < 300


def test_all_kinds_of_leftovers_are_found_by_a_dry_run_and_removed_by_the_next(
    quick_data, tmp_path, whole
):
    root = tmp_path / "cache"
    quick.build_quick(quick_data, root, views=1)
    before = quick.snapshot(root)
    manifest = root / "manifest.json"
    layout = read_manifest(root).layouts["train"]
    litter = [
        root / "manifest.json.partial",
        root / "train/low/zarr.json.partial",
        root / "commits/val-v0000-g00000.json.partial",
        (root / shard_key(layout.array("mid"), layout.group(0, 1))).with_name("0.partial"),
        (root / "leases/train-v0000-g00000"),
        (root / "leases/score"),
    ]
    for path in litter:
        path.parent.mkdir(exist_ok=True)
        path.write_text("torn")
    kept = [
        root / "notes.txt",
        root / "train/low/c/0/0/0/0/0.bak",
        root / "leases/probe-mine",
        root / "leases/documents",
    ]
    for path in kept:
        path.write_text("mine")
    assert {Path(leftover.path) for leftover in collect_leftovers(root, dry_run=True)} == set(
        litter
    )
    assert all(path.exists() for path in litter)
    assert {Path(leftover.path) for leftover in collect_leftovers(root)} == set(litter)
    assert not any(path.exists() for path in litter) and all(
        path.read_text() == "mine" for path in kept
    )
    for path in kept:
        path.unlink()
    assert quick.snapshot(root) == before and manifest.exists()


def test_shards_whose_records_are_lost_are_no_garbage(root):
    before = quick.snapshot(root, documents=False)
    shutil.rmtree(root / "commits")
    assert collect_leftovers(root) == [] and quick.snapshot(root, documents=False) == before


def test_files_of_a_group_that_is_being_written_stay(root):
    partial = root / "train/low/c/0/0/0/0/0.partial"
    partial.write_text("half")
    with open_storage(root).take_lease("train-v0000-g00000"):
        assert collect_leftovers(root) == [] and collect_leftovers(root, dry_run=True) == []
    assert [Path(leftover.path) for leftover in collect_leftovers(root)] == [partial]
    with open_storage(root).take_lease("score"):
        assert collect_leftovers(root) == [] and (root / "leases/score").exists()


def test_a_folder_in_a_shards_place_is_named_before_the_record_is_taken_back(root):
    shard = root / "train/mid/c/0/0/0/0/0"
    shard.unlink()
    shard.mkdir()
    with pytest.raises(
        CacheError,
        match="mid/c/0/0/0/0/0: it is a folder, expected a file of the cache; move it away",
    ):
        repair_cache(root, {})
    assert (root / "commits/train-v0000-g00000.json").exists()


def test_a_shard_that_another_writer_replaced_after_it_was_read_back_is_not_committed(
    quick_data, root, monkeypatch
):
    """A writer that was stopped within one step, robbed of its lease, and goes on while the next
    one works.
    """
    (root / "commits/train-v0000-g00000.json").unlink()

    def write_and_be_disturbed(storage, manifest, group, **kwargs):
        original = disk.rename

        def rename(old, new):
            if (
                "image" in old.parts
            ):  # the first to be renamed: the others still have their partial names
                (root / "train/low/c/0/0/0/0/0.partial").write_bytes(b"half")
            original(old, new)

        monkeypatch.setattr(disk, "rename", rename)
        write_group(storage, manifest, group, **kwargs)

    monkeypatch.setattr("kdcache.precompute.group.write_group", write_and_be_disturbed)
    with pytest.raises(CacheError, match="cannot be written .another writer has replaced it"):
        quick.build_quick(quick_data, root)
    assert not (root / "commits/train-v0000-g00000.json").exists()


def test_verify_that_cannot_look_ends_with_2_and_a_damaged_manifest_with_1_and_json(
    root, capsys, monkeypatch
):
    def refuse(*args, **kwargs):
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("kdcache.cache.verify.read_manifest", refuse)
        assert cache_teacher.cli.main(["verify", str(root)]) == 2
    assert "cannot be verified" in capsys.readouterr().err
    (root / "manifest.json").write_text("{}")
    assert cache_teacher.cli.main(["verify", str(root), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["sound"] and found["damage"][0]["file"].endswith("manifest.json")
    assert cache_teacher.cli.main(["verify"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
