"""What is wrong with a packed cache is one line, and nothing changes it."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest

from cache_teacher.cli import main as cache_teacher
from kdcache.cache.lifecycle import add_information
from kdcache.cache.manifest import read_manifest
from kdcache.cache.pack import pack_cache
from kdcache.cache.reader import open_split
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config
from kdcache.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheMismatchError,
    KdcacheError,
)
from kdcache.precompute.build import build_cache
from kdcache.storage import open_storage
from tests.support import quick
from tests.support.helpers import check_one_line
from tests.support.packed_kinds import check_refused, flip

pytestmark = pytest.mark.usefixtures("quick_teacher")


def test_a_file_that_is_no_hdf5_is_refused(tmp_path):
    for name, data in (("notes.h5", b"hello"), ("empty.hdf5", b""), ("plain", b"x" * 5000)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CacheMismatchError) as error:
            read_manifest(open_storage(tmp_path / name))
        check_one_line(error, name, "file is no HDF5 file, expected a packed cache", "export")


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as opened:
        opened["train/image"] = np.zeros((2, 3))
    with pytest.raises(CacheMismatchError) as error:
        read_manifest(open_storage(tmp_path / "foreign.h5"))
    check_one_line(error, "foreign.h5: attribute format is missing, expected a packed cache")


def test_a_file_that_is_not_there_is_no_cache(tmp_path):
    with pytest.raises(
        CacheMismatchError, match="manifest.json is missing, expected a kdcache cache"
    ):
        read_manifest(open_storage(tmp_path / "none.h5"))


def test_a_half_exported_file_is_refused(file, capsys):
    with h5py.File(file, "r+") as opened:
        opened.attrs["complete"] = np.uint8(0)
    with pytest.raises(
        CacheIncompleteError,
        match="export of it is not finished; wait for it, or remove it and export",
    ):
        read_manifest(open_storage(file))
    check_refused(["info", str(file)], capsys, "is not finished")


def test_a_file_that_is_being_written_is_refused(root, tmp_path, monkeypatch):
    seen = []

    def look(*_: object) -> None:
        for path in (
            tmp_path / "x.h5.partial",
            shutil.copy(tmp_path / "x.h5.partial", tmp_path / "killed.h5"),
        ):
            with pytest.raises(CacheIncompleteError, match="export of it is not finished"):
                read_manifest(open_storage(path))
            seen.append(path)

    monkeypatch.setattr("kdcache.cache.packed_writer.PackedWriter.put", look)
    with pytest.raises(KdcacheError):  # nothing was put where it belongs
        pack_cache(root, tmp_path / "x.h5")
    assert len(seen) > 2


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
def test_a_truncated_file_is_refused(file, share):
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(
        CacheCorruptError, match="file is cut short; copy it again from where it was made"
    ):
        open_split(file, "train")


def test_a_file_that_is_cut_while_it_is_read_is_damage_by_name(file):
    reader = open_split(file, "train")
    reader.read("low", 0, 0)
    os.truncate(file, 100)
    with pytest.raises(CacheCorruptError) as error:
        reader.read("low", 0, 1)
    check_one_line(
        error,
        f"{file}!/train/low/c/0/0/0/0/0",
        "view 0 sample",
        "the file is too short",
        "copy it again",
    )
    with pytest.raises(CacheCorruptError, match="file is cut short; copy it again"):
        reader.read("low", 1, 2)  # where that is, was not known yet


def test_a_flipped_bit_in_a_sample_is_found_by_reader_and_verify(file, capsys):
    with h5py.File(file) as opened:
        flip(file, opened["train/mid"].id.get_offset() + opened["train/mid"].nbytes - 1)
    with pytest.raises(CacheCorruptError) as error:
        open_split(file, "train").read("mid", 1, 2)
    check_one_line(
        error,
        "train/mid view 1 sample",
        "its checksum differs",
        "copy it again",
        "or export it again",
    )
    (damage,) = verify_cache(open_storage(file), data=True).damage
    assert (
        damage.array == "mid"
        and damage.group.name == "train-v0001-g00001"
        and "checksum" in damage.what
    )
    assert cache_teacher(["verify", str(file), "--data"]) == 1
    assert "to repair it: copy it again" in capsys.readouterr().out
    assert cache_teacher(["verify", str(file), "--data", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["repair"] is None


def test_a_flipped_bit_in_a_document_is_found(file):
    with h5py.File(file) as opened:
        documents = {
            name: opened[f"documents/{name}"].id.get_offset()
            for name in ("manifest.json", "commits/val-v0000-g00000.json", "train/low/zarr.json")
        }
    for name, offset in documents.items():
        flip(file, offset + 40)
        with pytest.raises(CacheCorruptError) as error:
            findings = verify_cache(open_storage(file))
            (damage,) = findings.damage
            raise CacheCorruptError(open_storage(file).name(damage.key), damage.what, cure="")
        check_one_line(error, f"{file}!/{name}")
        flip(file, offset + 40)
    assert not verify_cache(open_storage(file)).damage


def test_any_flipped_bit_of_the_structure_is_one_line_or_does_no_harm(file):
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    expected = open_split(file, "train", check="always").read("mid", 1, 2)
    refused = 0
    for offset in [*range(96), *rng.integers(0, len(whole), 150).tolist()]:
        data = bytearray(whole)
        data[offset] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        try:
            assert np.array_equal(
                open_split(file, "train", check="always").read("mid", 1, 2), expected
            )
        except KdcacheError as error:
            check_one_line(error, str(file))
            refused += 1
    assert refused > 50


def test_documents_that_say_another_grid_than_the_arrays_are_refused(file, roots, tmp_path):
    with h5py.File(file, "r+") as opened:
        del opened["train/low"]
    with pytest.raises(CacheCorruptError, match="dataset train/low is missing, expected float16"):
        open_split(file, "train").read("low", 0, 0)


def test_building_repairing_and_tidying_are_refused(file, quick_data, capsys, tmp_path):
    before = file.read_bytes()
    words = {
        file: ("cache is one file, expected a folder", "export that anew"),
        tmp_path / "new.h5": ("expected a folder to build in; build there", "export` packs it"),
    }
    for path, parts in words.items():
        with pytest.raises(CacheError) as error:
            build_cache(make_config(quick.quick_given(quick_data, path)))
        check_one_line(error, str(path), *parts)
    for command in ("repair", "gc", "plan --cache.path"):
        check_refused([*command.split(), str(file)], capsys, "cache is one file, expected a folder")
    with pytest.raises(CacheError, match="cache is one file"):
        add_information(open_storage(file), {"fidelity": {}})
    assert file.read_bytes() == before and not (tmp_path / "new.h5").exists()


def test_a_file_that_is_no_packed_cache_is_called_that_by_whoever_would_change_it(
    quick_data, tmp_path, capsys
):
    (tmp_path / "notes.txt").write_text("mine")
    given = ["--cache.path", str(tmp_path / "notes.txt"), "--dataset.root", str(quick_data)]
    words = "notes.txt: file is no HDF5 file, expected a packed cache; give the folder of a cache"
    for argv in (["gc", given[1]], ["repair", given[1]], ["plan", *given]):
        check_refused(argv, capsys, words)
    with pytest.raises(CacheMismatchError, match=words):
        build_cache(make_config(quick.quick_given(quick_data, tmp_path / "notes.txt")))
    assert (tmp_path / "notes.txt").read_text() == "mine"
