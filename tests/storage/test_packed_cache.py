"""A packed cache is the one in a folder: read, trained on, verified, and a folder again, byte for
byte.
"""

import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest
import torch

from cache_teacher.cli import main as cache_teacher
from kdcache.cache.index import read_group_record
from kdcache.cache.layout import shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.cache.pack import pack_cache
from kdcache.cache.reader import open_split
from kdcache.cache.shards import ShardSource
from kdcache.cache.unpack import unpack_cache
from kdcache.cache.verify import verify_cache
from kdcache.storage import LocalFolder, open_storage
from kdcache.storage.packed import PackedFile
from kdcache.training.batches import BatchReader
from kdcache.training.samples import find_need
from tests.support.packed_kinds import KINDS, build, read_files, read_samples
from train_student.cli import main as train_student

pytestmark = pytest.mark.usefixtures("quick_teacher")
SUBSETS = [
    ("raw", ["low", "high"], None),
    ("raw", [], 1),
    ("raw", None, 1),
    ("lz4", ["mid"], 1),
    ("half", ["mid"], None),
    ("compact", [], None),
    ("mixed", ["mid", "high"], 1),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_of_a_packed_cache_is_that_of_the_folder(roots, files, kind):
    for split in ("train", "val"):
        assert read_samples(files[kind], split) == read_samples(roots[kind], split)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_made_of_a_packed_cache_has_the_bytes_of_the_first(roots, files, kind, tmp_path):
    groups, size_bytes = unpack_cache(open_storage(files[kind]), tmp_path / "back")
    assert read_files(tmp_path / "back") == read_files(roots[kind])
    shards = [
        data
        for name, data in read_files(roots[kind]).items()
        if "/c/" in name and "basis" not in name
    ]
    assert groups == 5 and size_bytes == sum(map(len, shards))


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_cache_holds_the_documents_byte_for_byte_and_is_sound(roots, files, kind):
    small = {
        name: data
        for name, data in read_files(roots[kind]).items()
        if name.endswith(".json") or "basis" in name
    }
    with h5py.File(files[kind]) as opened:
        found = {}
        opened["documents"].visititems(
            lambda name, one: found.update(
                {name: one[()].tobytes()} if isinstance(one, h5py.Dataset) else {}
            )
        )
    assert found == small
    findings = verify_cache(open_storage(files[kind]), data=True)
    assert not findings.damage and not findings.unwritten and findings.num_groups == 5


def test_any_reader_of_hdf5_gets_the_numbers(roots, files):
    with h5py.File(files["raw"]) as opened:
        for name in ("image", "logits", "low"):
            expected = open_split(roots["raw"], "train").read(name, 1, 2)
            assert opened["train"][name].dtype == expected.dtype
            assert np.array_equal(opened["train"][name][1, 2], expected)
        assert opened.attrs["format"] == "kdcache" and opened.attrs["complete"] == 1


@pytest.mark.parametrize(("kind", "number"), [("lz4", 32001), ("compact", 32001), ("zstd", 32015)])
def test_coded_chunks_are_named_by_the_registered_filter_and_stored_as_they_were(
    roots, files, kind, number
):
    reader = open_split(roots[kind], "train")
    with h5py.File(files[kind]) as opened:
        dataset = opened["train/mid"]
        assert dataset.id.get_create_plist().get_filter(0)[:2] == (number, h5py.h5z.FLAG_OPTIONAL)
        mask, chunk = dataset.id.read_direct_chunk((1, 2, 0, 0, 0))
    assert mask == 0 and chunk == reader.read_stored("mid", 1, 2).tobytes()


@pytest.mark.parametrize(("kind", "levels", "views"), SUBSETS)
def test_a_subset_is_the_cache_that_its_settings_would_have_made(
    roots, quick_data, tmp_path, kind, levels, views, monkeypatch
):
    pack_cache(roots[kind], tmp_path / "some.h5", levels=levels, num_views=views)
    unpack_cache(open_storage(tmp_path / "some.h5"), tmp_path / "back")
    settings = read_manifest(tmp_path / "back").information["settings"]
    asked = {name: settings["cache"][name] for name in ("levels", "encoding", "codec", "rank")}
    if kind == "compact":  # bases are learned of levels together or alone with the same result
        assert asked["codec"] == "blosc-zstd"
    made = build(quick_data, tmp_path / "made", views=settings["augment"]["views"], **asked)
    found, expected = read_files(tmp_path / "back"), read_files(made)
    documents = [json.loads(files.pop("manifest.json")) for files in (found, expected)]
    assert found == expected
    for document in documents:
        del document["sha256"]
        information = document.pop("information")
        information["settings"]["cache"].pop("path")
        document["settings"] = information["settings"]
        document["scores"] = [
            information[name] for name in ("teacher_miou", "teacher_train_miou", "scored_views")
        ]
    assert documents[0] == documents[1]


def test_levels_of_all_are_the_whole_cache(roots, tmp_path):
    pack_cache(roots["raw"], tmp_path / "all.h5", levels=["high", "low", "mid"], num_views=2)
    unpack_cache(open_storage(tmp_path / "all.h5"), tmp_path / "back")
    assert read_files(tmp_path / "back") == read_files(roots["raw"])


def test_a_packed_cache_can_be_packed_again(roots, files, tmp_path):
    pack_cache(open_storage(files["lz4"]), tmp_path / "again.h5", levels=["mid"])
    pack_cache(roots["lz4"], tmp_path / "direct.h5", levels=["mid"])
    for name in ("again", "direct"):
        unpack_cache(open_storage(tmp_path / f"{name}.h5"), tmp_path / name)
    assert read_files(tmp_path / "again") == read_files(tmp_path / "direct")


def test_both_programs_and_the_commands_take_a_packed_cache(root, tmp_path, capsys):
    packed = tmp_path / "one.h5"
    assert cache_teacher(["export", str(root), str(packed)]) == 0
    assert "8 samples" in capsys.readouterr().out
    facts = {}
    for place in (root, packed):
        assert cache_teacher(["info", str(place), "--json"]) == 0
        facts[place] = json.loads(capsys.readouterr().out)
        assert (
            cache_teacher(["info", str(place)])
            == cache_teacher(["verify", str(place), "--data"])
            == 0
        )
        capsys.readouterr()
    for split in ("train", "val"):
        a, b = (facts[place]["splits"][split] for place in (root, packed))
        sizes = [
            {name: array.pop("bytes") for name, array in one["arrays"].items()} for one in (a, b)
        ]
        assert a == b and all(
            0 < sizes[1][name] < sizes[0][name] for name in sizes[0]
        )  # no checksums, no index
    runs = {}
    for place in (root, packed):
        run = tmp_path / place.name / "run" if place != packed else tmp_path / "packed" / "run"
        given = [
            "--cache.path",
            str(place),
            "--train.epochs",
            "1",
            "--train.batch_size",
            "2",
            "--student.pretrained",
            "false",
            "--student.aspp_channels",
            "16",
            "--run.dir",
            str(run),
            "--train.device",
            "cpu",
        ]
        assert train_student(given) == 0
        runs[place] = json.loads((run / "metrics.jsonl").read_text())
        assert str(place) in (run / "config.yaml").read_text()
    assert all(runs[root][name] == runs[packed][name] for name in ("total", "miou"))
    assert cache_teacher(["import", str(packed), str(tmp_path / "back")]) == 0
    assert "5 shard groups" in capsys.readouterr().out
    assert read_files(tmp_path / "back")["commits/val-v0000-g00000.json"]


def test_export_takes_levels_and_views_from_the_command_line(root, tmp_path, capsys):
    packed = tmp_path / "few.h5"
    assert (
        cache_teacher(["export", str(root), str(packed), "--levels", "none", "--views", "1"]) == 0
    )
    layout = read_manifest(open_storage(packed)).layouts["train"]
    assert [spec.name for spec in layout.arrays] == [
        "image",
        "label",
        "logits",
    ] and layout.num_views == 1


@pytest.mark.parametrize("residency", ["disk", "ram"])
def test_batches_come_from_one_mapping_without_hdf5(roots, files, residency, monkeypatch):
    readers = {place: open_split(place, "train") for place in (roots["half"], files["half"])}
    monkeypatch.setattr(h5py, "File", None)  # what is open by now needs it no more
    batches, names = (
        [[(0, 0), (1, 2)], [(1, 1), (0, 2)]] * 2,
        [spec.name for spec in readers[roots["half"]].layout.arrays],
    )
    found = []
    for reader in readers.values():
        made = BatchReader(
            reader, arrays=names, batch_size=2, device=torch.device("cpu"), residency=residency
        )
        found.append(
            [
                {name: array.clone() for name, array in batch.arrays.items()}
                for batch in made.read(batches)
            ]
        )
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in names)
    assert residency == "disk" or len(made.maps._maps) == 1


def test_one_file_is_what_must_be_kept_mapped(roots, files):
    folder, packed = (
        find_need(open_split(place, "train"), ["image", "mid"])
        for place in (roots["raw"], files["raw"])
    )
    assert (folder.num_files, packed.num_files) == (8, 1) and folder.size_bytes == packed.size_bytes


def read_elsewhere(pickled: bytes) -> bytes:
    """In a process that has not opened the cache itself."""
    return pickle.loads(pickled).read("mid", 1, 2).tobytes()


def test_a_reader_works_in_another_process(files):
    reader = open_split(files["raw"], "train")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(read_elsewhere, pickle.dumps(reader)).result()
    assert found == reader.read("mid", 1, 2).tobytes()


@pytest.mark.parametrize("kind", ["raw", "lz4"])
def test_shard_files_are_read_from_it_as_if_they_were_there(roots, files, kind):
    packed, folder = open_storage(files[kind]), roots[kind]
    manifest = read_manifest(packed)
    layout = manifest.layouts["train"]
    spec = layout.array("mid")
    for group in layout.groups():
        record = read_group_record(packed, manifest, group)
        file, crcs = record.files["mid"], record.crcs["mid"]
        for storage in (packed, open_storage(folder)):
            source = ShardSource(storage, layout, spec, group, file=file, crcs=crcs)
            parts = b"".join(part.tobytes() for part in source.read_parts(100))
            assert parts == (folder / shard_key(spec, group)).read_bytes()


def test_a_stage_keeps_copies_of_shard_files_of_a_packed_cache(file, tmp_path, capsys):
    given = [
        "--cache.path",
        str(file),
        "--train.epochs",
        "1",
        "--train.batch_size",
        "2",
        "--student.pretrained",
        "false",
        "--student.aspp_channels",
        "16",
        "--run.dir",
        str(tmp_path / "run"),
        "--run.baseline",
        "false",
        "--train.device",
        "cpu",
        "--cache.stage_dir",
        str(tmp_path / "stage"),
    ]
    assert train_student(given) == 0
    assert len([path for path in (tmp_path / "stage").rglob("*") if path.is_file()]) > 4


def test_places_are_told_apart(tmp_path, file):
    assert open_storage(file) == PackedFile(file) and not open_storage(file).is_remote
    assert open_storage(tmp_path) == LocalFolder(tmp_path)
    assert open_storage(tmp_path / "new.hdf5") == PackedFile(tmp_path / "new.hdf5")
    (tmp_path / "folder.h5").mkdir()
    assert open_storage(tmp_path / "folder.h5") == LocalFolder(tmp_path / "folder.h5")
    link = tmp_path / "link.h5"
    link.symlink_to(file)
    assert read_samples(link, "val") == read_samples(file, "val")


def test_a_raw_cache_is_packed_into_the_same_bytes_each_time(roots, files, tmp_path):
    pack_cache(roots["half"], tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == files["half"].read_bytes()


def test_an_import_that_was_stopped_goes_on(roots, files, tmp_path):
    out = tmp_path / "back"
    unpack_cache(open_storage(files["raw"]), out)
    (out / "manifest.json").unlink()
    kept = read_files(out)
    shutil.rmtree(out / "train" / "low" / "c" / "1")
    (out / "commits" / "train-v0001-g00000.json").unlink()
    (out / "commits" / "train-v0001-g00001.json").write_bytes(
        kept["commits/train-v0001-g00001.json"]
    )
    assert unpack_cache(open_storage(files["raw"]), out)[0] == 1
