"""Repair heals exactly what verify found: afterwards the cache is whole, and nothing else was
touched.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cache_teacher.cli
from kdcache.cache import settings
from kdcache.cache.leftovers import collect_leftovers
from kdcache.cache.manifest import read_manifest
from kdcache.cache.verify import verify_cache
from kdcache.errors import CacheMismatchError, DataError, SettingsError
from kdcache.machine import process
from kdcache.precompute import repair
from kdcache.precompute.repair import repair_cache
from tests.faults.committed import committed_files
from tests.faults.damages import FAULTS
from tests.support import quick
from tests.support.effort import FULL, quick_and_full
from tests.support.helpers import check_one_line


@pytest.fixture
def root(whole_root, tmp_path):
    shutil.copytree(whole_root, tmp_path / "cache")
    return tmp_path / "cache"


def files_of(name: str, files: dict) -> set:
    """The files of a group among `files`."""
    split, view, index = name.split("-")
    place = f"/c/{int(view[1:])}/{int(index[1:])}/"
    return {
        path
        for path in files
        if name in path.name or (f"/{split}/" in str(path) and place in str(path))
    }


def write_folder(folder: Path) -> Path:
    """A folder of one image that no cache has."""
    folder.mkdir()
    Image.fromarray(np.full((20, 20, 3), 9, np.uint8)).save(folder / "nine.png")
    return folder


def check_repairs_exactly(root, whole, damaged: set[str]) -> None:
    before = {
        path: (path.stat().st_ino, path.read_bytes()) for path in root.rglob("*") if path.is_file()
    }
    planned = repair_cache(root, {}, dry_run=True)
    assert {group.name for group in planned.groups} == damaged
    assert before == {
        path: (path.stat().st_ino, path.read_bytes()) for path in root.rglob("*") if path.is_file()
    }
    done = repair_cache(root, {})
    assert done.groups == planned.groups and done.documents == planned.documents
    assert quick.snapshot(root) == whole
    findings = verify_cache(root, data=True)
    assert not findings.damage and not findings.unwritten
    after = committed_files(root)
    healed = {path for name in damaged for path in files_of(name, after)} | {
        root / "manifest.json",
        *done.documents,
    }
    assert all(after[path][0] == before[path][0] for path in after.keys() - healed)


@quick_and_full
def test_random_damage_is_repaired_and_nothing_else_is_touched(root, whole, effort):
    for seed in range(100 if effort == FULL else 20):
        random = np.random.Generator(np.random.Philox(seed))
        damaged = set()
        for fault in random.permutation(len(FAULTS))[: random.integers(1, 4)]:
            damaged |= FAULTS[fault](root, random)
        found = {group.name for group in verify_cache(root, data=True).damaged_groups}
        assert found <= damaged  # two faults may undo each other
        check_repairs_exactly(root, whole, found)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_is_found_and_repaired(root, whole, fault):
    damaged = fault(root, np.random.Generator(np.random.Philox(1)))
    assert verify_cache(root, data=True).damage
    check_repairs_exactly(root, whole, damaged)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_among_unlabelled_images_is_found_and_repaired(bare_root, tmp_path, fault):
    whole, root = quick.snapshot(bare_root), tmp_path / "cache"
    shutil.copytree(bare_root, root)
    damaged = fault(root, np.random.Generator(np.random.Philox(1)), split="unlabelled")
    found = verify_cache(root, data=True)
    assert found.damage and {group.name for group in found.damaged_groups} == damaged
    check_repairs_exactly(root, whole, damaged)


def test_without_its_unlabelled_images_a_cache_is_not_repaired(bare_root, tmp_path):
    root = tmp_path / "cache"
    shutil.copytree(bare_root, root)
    (root / "commits/train-v0000-g00000.json").unlink()
    other, before = write_folder(tmp_path / "other"), quick.snapshot(root)
    with pytest.raises(SettingsError) as error:
        repair_cache(root, {"dataset": {"unlabelled": None}})
    check_one_line(error, "dataset.unlabelled is None", "the images the cache was built with")
    with pytest.raises(CacheMismatchError, match="unlabelled.dataset.sha256 is"):
        repair_cache(root, {"dataset": {"unlabelled": str(other)}})
    assert quick.snapshot(root) == before


def test_a_sound_cache_is_left_alone_and_needs_no_data_set(root, whole, capsys):
    done = repair_cache(root, {"dataset": {"root": "nowhere"}})
    assert not done.groups and not done.documents and quick.snapshot(root) == whole
    assert cache_teacher.cli.main(["repair", str(root)]) == 0
    assert "sound, nothing to repair" in capsys.readouterr().out


def test_repair_with_another_data_set_or_teacher_is_refused_and_changes_nothing(
    root, whole, tmp_path, monkeypatch
):
    (root / "commits/train-v0000-g00000.json").unlink()
    before = quick.snapshot(root)
    other = tmp_path / "other"
    quick.write_quick_data(other)
    image = next((other / "VOCdevkit/VOC2012/JPEGImages").glob("sample_train*"))
    image.write_bytes(image.read_bytes() + b"one byte more")
    with pytest.raises(
        CacheMismatchError,
        match=r"dataset.sha256 is .*expected .*; point dataset.root and teacher.weights",
    ):
        repair_cache(root, {"dataset": {"root": str(other)}})
    monkeypatch.setattr("kdcache.precompute.build.hash_weights", lambda state: "0" * 64)
    with pytest.raises(CacheMismatchError, match="teacher.weights_sha256"):
        repair_cache(root, {})
    monkeypatch.undo()
    monkeypatch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
    with pytest.raises(CacheMismatchError) as error:
        repair_cache(root, {"augment": {"seed": 4}})
    check_one_line(error, "augment.seed is 0, expected 4")
    with pytest.raises(DataError, match="folder is missing"):
        repair_cache(root, {"dataset": {"root": str(tmp_path / "nowhere")}})
    assert quick.snapshot(root) == before


def test_repair_also_writes_what_phase_one_had_not(quick_data, whole, tmp_path):
    root = tmp_path / "cache"
    quick.build_quick(quick_data, root, views=1)
    manifest = (root / "manifest.json").read_bytes()
    quick.build_quick(quick_data, root, views=2)
    assert (root / "manifest.json").read_bytes() != manifest
    (root / "commits/train-v0001-g00001.json").unlink()
    assert not collect_leftovers(root)  # its record is lost, its shards are no garbage
    check_repairs_exactly(root, whole, {"train-v0001-g00001"})


def test_the_manifest_names_every_device_that_wrote_once_there_are_two(
    quick_data, root, tmp_path, monkeypatch
):
    """Never in a cache that CPUs alone have written: not one of its bytes moves."""
    machine = process.describe_machine
    gpu = lambda *args, **more: {**machine(*args, **more), "device": "Some GPU"}  # noqa: E731

    def read_devices(place):
        return [read_manifest(place).information.get(name) for name in ("device", "devices")]

    grown = tmp_path / "grown"
    for _ in range(2):
        quick.build_quick(quick_data, grown, views=1)
    assert read_devices(grown) == read_devices(root) == ["cpu", None]
    monkeypatch.setattr(settings, "describe_machine", gpu)
    quick.build_quick(quick_data, grown, views=1)  # which writes nothing
    assert read_devices(grown) == ["cpu", None]
    quick.build_quick(quick_data, grown, views=2)
    assert read_devices(grown) == ["Some GPU", ["Some GPU", "cpu"]]
    monkeypatch.setattr(settings, "describe_machine", machine)
    quick.build_quick(quick_data, grown, views=3)
    assert read_devices(grown) == ["cpu", ["Some GPU", "cpu"]]
    monkeypatch.setattr(repair, "describe_machine", gpu)
    repair_cache(root, {})  # which finds nothing
    assert read_devices(root) == ["cpu", None]
    (root / "train/low/c/0/1/0/0/0").unlink()
    repair_cache(root, {})
    assert read_devices(root) == ["cpu", ["Some GPU", "cpu"]]


def test_the_command_prints_what_it_would_do_and_does_it(root, whole, capsys):
    (root / "train/low/c/0/1/0/0/0").unlink()
    assert cache_teacher.cli.main(["verify", str(root)]) == 1
    assert f"to repair it: python -m cache_teacher repair {root}" in capsys.readouterr().out
    assert cache_teacher.cli.main(["repair", str(root), "--dry-run"]) == 0
    assert "train-v0000-g00001: samples 2 to 2, would be recomputed" in capsys.readouterr().out
    assert cache_teacher.cli.main(["repair", str(root), "--teacher.batch_size", "1"]) == 0
    assert "1 shard groups recomputed" in capsys.readouterr().out
    assert (
        cache_teacher.cli.main(["verify", str(root), "--data"]) == 0
        and quick.snapshot(root) == whole
    )
