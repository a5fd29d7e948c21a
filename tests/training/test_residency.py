"""Where samples stay: the choice, and that every way delivers the same bits, read no oftener than
it says.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch

from kdcache.cache import shards
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader, open_split
from kdcache.cache.shards import MappedFiles
from kdcache.config.parser import make_config, merge
from kdcache.errors import CacheCorruptError, SettingsError
from kdcache.machine import process
from kdcache.storage.local import PlainFile
from kdcache.training import run, samples
from kdcache.training.batches import BatchReader
from kdcache.training.learner import open_learner
from kdcache.training.order import plan_epoch
from kdcache.training.processes import Alone
from kdcache.training.run import TrainingEvents
from kdcache.training.samples import (
    Need,
    ResidentSamples,
    choose_residency,
    find_need,
)

ARRAYS = ["image", "label", "logits", "low", "mid", "high"]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
GB = 1_000_000_000


def make_need(size_bytes: int, num_files: int) -> Need:
    """Of raw samples."""
    return Need(size_bytes, size_bytes, num_files)


@pytest.fixture
def copy(built_root, tmp_path) -> Path:
    return Path(shutil.copytree(built_root, tmp_path / "copy"))


@pytest.fixture
def machine(monkeypatch):
    """A machine with 10 GB of free memory and a GPU with 4 GB free."""
    monkeypatch.setattr(samples, "find_free_ram", lambda: 10 * GB)
    monkeypatch.setattr(samples, "find_free_gpu", lambda device: 4 * GB)


def read(reader: CacheReader, array: str, view: int, sample: int, maps: MappedFiles) -> np.ndarray:
    """One sample, from the map where it was read before."""
    spec = reader.layout.array(array)
    slot = np.empty(spec.item_shape, spec.dtype)
    reader.read_into(slot, array=array, view=view, sample=sample, maps=maps)
    return slot


# --- the choice


@pytest.mark.parametrize(
    ("setting", "device", "size_gb", "kind"),
    [
        ("auto", GPU, 2.0, "gpu"), ("auto", GPU, 2.1, "ram"), ("auto", GPU, 8.1, "disk"),
        ("auto", CPU, 1.0, "ram"), ("auto", CPU, 8.0, "ram"), ("auto", CPU, 8.1, "disk"),
        ("disk", GPU, 1.0, "disk"), ("disk", CPU, 1.0, "disk"),
        ("ram", GPU, 1.0, "ram"), ("ram", CPU, 100.0, "ram"), ("gpu", GPU, 2.0, "gpu"),
    ],
)  # fmt: skip
def test_auto_takes_the_fastest_memory_that_holds_everything(
    machine, setting, device, size_gb, kind
):
    needs = [make_need(int(size_gb * GB) - GB // 4, 10), make_need(GB // 4, 5)]
    choice = choose_residency(setting, needs, device=device)
    assert choice.kind == kind
    line = choice.describe()
    assert line.startswith(f"residency: {kind}, samples are ") and "\n" not in line
    if setting != "disk":
        assert f"{size_gb:.2f} GB" in line


def test_gpu_residency_is_refused_where_it_cannot_be(machine):
    with pytest.raises(
        SettingsError,
        match="train.residency is 'gpu' and the device is cpu; set train.residency auto",
    ):
        choose_residency("gpu", [make_need(1, 1)], device=CPU)
    with pytest.raises(
        SettingsError, match=r"3.00 GB of samples do not fit into 2.00 GB of GPU memory"
    ):
        choose_residency("gpu", [make_need(3 * GB, 1)], device=GPU)


def test_more_files_than_may_be_open_are_not_mapped(machine, monkeypatch):
    monkeypatch.setattr(process.resource, "getrlimit", lambda which: (1024, 4096))
    choice = choose_residency("auto", [make_need(GB, 3073)], device=CPU)
    assert choice.kind == "disk" and "3073 shard files" in choice.reason
    monkeypatch.setattr(process.resource, "getrlimit", lambda which: (1 << 20, 1 << 20))
    assert choose_residency("auto", [make_need(GB, 32_000)], device=CPU).kind == "ram"
    assert (
        choose_residency("auto", [make_need(GB, 32_001)], device=CPU).kind == "disk"
    )  # vm.max_map_count


def test_the_limit_of_open_files_is_raised_as_far_as_needed(monkeypatch):
    raised = []
    monkeypatch.setattr(process.resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(
        process.resource, "setrlimit", lambda which, limits: raised.append((which, limits))
    )
    assert process.allow_mapped_files(0) and raised == []
    assert process.allow_mapped_files(3072) and raised == [(resource.RLIMIT_NOFILE, (4096, 4096))]


def test_need_counts_the_arrays_and_views_in_use(built_root):
    reader = open_split(built_root, "train", num_views=1)
    need = find_need(reader, ["image", "mid"])
    assert need.num_files == 2 * 3  # 10 samples, 4 a shard
    item_bytes = reader.read("image", 0, 0).nbytes + reader.read("mid", 0, 0).nbytes
    assert need.size_bytes == 10 * item_bytes
    tails_bytes = 2 * (10 * 4 + 3 * (4 * 16 + 4))  # checksums and indices
    assert need.stored_bytes == need.size_bytes + tails_bytes
    both = find_need(open_split(built_root, "train"), ["image", "mid"])
    assert both == Need(20 * item_bytes, 2 * need.stored_bytes, 12)


def test_files_are_mapped_where_what_is_stored_fits_and_kept_on_a_gpu_where_the_samples_do(machine):
    need = [Need(size_bytes=16 * GB, stored_bytes=8 * GB, num_files=1)]
    assert choose_residency("auto", need, device=CPU).kind == "ram"
    assert choose_residency("auto", need, device=GPU).kind == "ram"
    assert "16.00 GB" in str(
        pytest.raises(SettingsError, choose_residency, "gpu", need, device=GPU).value
    )


# --- free memory


def test_free_memory_is_that_of_the_machine_or_its_container_whichever_is_less(
    tmp_path, monkeypatch
):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable:   700 kB\n")
    monkeypatch.setattr(process, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(process, "_CGROUP", tmp_path)
    assert process.find_free_ram() == 700 * 1024  # no container
    for name, text in {
        "memory.max": "max",
        "memory.current": "5",
        "memory.stat": "anon 1\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert process.find_free_ram() == 700 * 1024  # a container without a limit
    (tmp_path / "memory.max").write_text("100000\n")
    (tmp_path / "memory.current").write_text("90000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 20000\nactive_file 30000\n")
    assert process.find_free_ram() == 60_000


def test_free_memory_is_found_here():
    assert 1 << 20 < process.find_free_ram() < 1 << 50


# --- the same bits


def read_epochs(
    root: Path, kind: str, *, epochs: int = 4, **options: str
) -> list[dict[str, bytes]]:
    reader = BatchReader(
        open_split(root, "train", **options),
        arrays=ARRAYS,
        batch_size=3,
        device=CPU,
        residency=kind,
    )
    plans = (
        plan_epoch(num_samples=10, num_views=2, batch_size=3, seed=0, epoch=epoch)
        for epoch in range(epochs)
    )
    return [
        {name: values.numpy().tobytes() for name, values in batch.arrays.items()}
        for plan in plans
        for batch in reader.read(plan)
    ]


@pytest.mark.parametrize("check", ["always", "first", "never"])
@pytest.mark.parametrize("kind", ["ram", "gpu"])
def test_every_residency_delivers_the_bits_of_the_disk(built_root, kind, check):
    """Four epochs of two views: each sample twice in each view."""
    assert read_epochs(built_root, kind, check=check) == read_epochs(built_root, "disk")


def test_mapped_samples_are_what_tensorstore_reads(built_root):
    reader, maps = open_split(built_root, "train"), MappedFiles()
    for name in ARRAYS:
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(built_root / "train" / name)},
        }
        stored = tensorstore.open(spec, read=True).result().read().result()
        for _ in range(2):  # by position, then from the map
            for view, sample in ((0, 0), (1, 9), (0, 5)):
                assert (
                    read(reader, name, view, sample, maps).tobytes()
                    == stored[view, sample].tobytes()
                )


def test_later_readings_come_from_the_map(built_root, monkeypatch):
    reader, maps = open_split(built_root, "train"), MappedFiles()
    first = read(reader, "low", 0, 3, maps)
    monkeypatch.setattr(PlainFile, "read_into", lambda *args: pytest.fail("read by position"))
    assert np.array_equal(read(reader, "low", 0, 3, maps), first)
    with pytest.raises(pytest.fail.Exception, match="read by position"):
        read(reader, "low", 0, 2, maps)  # its first reading


def test_a_run_that_reads_from_disk_maps_nothing_of_one_before_it(built_root, monkeypatch):
    """Baseline and student share a reader; the one may fit into memory and the other not."""
    reader = open_split(built_root, "train")
    mapped = BatchReader(reader, arrays=["label"], batch_size=2, device=CPU, residency="ram")
    positioned = BatchReader(
        reader, arrays=["label", "low"], batch_size=2, device=CPU, residency="disk"
    )
    for batches in (mapped, mapped, positioned):
        list(batches.read([[(0, 1), (0, 2)]]))
    monkeypatch.setattr(MappedFiles, "open", lambda *args, **options: pytest.fail("mapped"))
    list(positioned.read([[(0, 1), (0, 2)]]))
    with pytest.raises(pytest.fail.Exception, match="mapped"):
        list(mapped.read([[(0, 1), (0, 2)]]))


@pytest.mark.parametrize("reason", [errno.EMFILE, errno.ENOMEM])
def test_no_room_for_a_mapping_is_no_damage(built_root, monkeypatch, reason):
    def refuse(*args, **options):
        raise OSError(reason, os.strerror(reason))

    reader, maps = open_split(built_root, "train"), MappedFiles()
    first = read(reader, "low", 0, 3, maps)
    monkeypatch.setattr(shards.mmap, "mmap", refuse)
    assert np.array_equal(read(reader, "low", 0, 3, maps), first)


def test_resident_samples_are_read_once(built_root, monkeypatch):
    places, read_into = [], CacheReader.read_into

    def count(self, slot, **place):
        places.append(tuple(place.values()))
        read_into(self, slot, **place)

    monkeypatch.setattr(CacheReader, "read_into", count)
    read_epochs(built_root, "gpu", epochs=6)
    assert len(places) == len(set(places)) == 6 * 20


def test_resident_samples_of_a_batch_half_there_come_in_its_order(built_root):
    reader = open_split(built_root, "train")
    batches = BatchReader(reader, arrays=["label"], batch_size=3, device=CPU, residency="gpu")
    list(batches.read([[(0, 4), (1, 2)]]))
    (batch,) = batches.read([[(0, 7), (1, 2), (0, 1), (0, 4)]])
    expected = np.stack(
        [reader.read("label", *place) for place in ((0, 7), (1, 2), (0, 1), (0, 4))]
    )
    assert np.array_equal(batch.arrays["label"].numpy(), expected)
    assert batch.sample_ids == [reader.sample_ids[n] for n in (7, 2, 1, 4)]


class Remembering(TrainingEvents):
    def __init__(self):
        self.lines = []

    def said(self, text):
        self.lines.append(text)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("setting", "left_share", "fails", "kinds"),
    [
        ("auto", 1.0, False, ["gpu"]),
        ("auto", 0.4, False, ["gpu", "ram"]),  # others took it at the same moment
        ("auto", 1.0, True, ["gpu", "ram"]),
        ("gpu", 0.4, False, ["gpu"]),  # as it was asked for
    ],
)
def test_samples_leave_a_gpu_that_others_fill(
    monkeypatch, machine, given, built_root, setting, left_share, fails, kinds
):
    config = make_config(merge(given, {"train": {"residency": setting}}))
    data = samples.open_data(built_root, read_manifest(built_root), num_views=2)
    learner, made, events = open_learner(config, data.train, Alone()), [], Remembering()
    learner.device = GPU

    def make(pairs, *, residency, **options):
        made.append(residency)
        if residency == "gpu":
            size_bytes = sum(find_need(*pair).size_bytes for pair in pairs)
            monkeypatch.setattr(samples, "find_free_gpu", lambda device: left_share * size_bytes)
            if fails:
                out_of_memory()
        return residency

    monkeypatch.setattr(run, "_make_readers", make)
    assert run.open_readers(config, data, learner, events) == kinds[-1] and made == kinds
    assert ("others have taken the GPU's memory" in events.lines[0]) is (len(kinds) == 2)


def test_missing_memory_ends_a_run_that_asked_for_the_gpu(monkeypatch, machine, given, built_root):
    config = make_config(merge(given, {"train": {"residency": "gpu"}}))
    data = samples.open_data(built_root, read_manifest(built_root), num_views=2)
    learner = open_learner(config, data.train, Alone())
    learner.device = GPU
    monkeypatch.setattr(run, "_make_readers", lambda pairs, **options: out_of_memory())
    with pytest.raises(torch.OutOfMemoryError):
        run.open_readers(config, data, learner, Remembering())


def test_resident_samples_know_what_is_missing(built_root):
    spec = open_split(built_root, "train").layout.array("label")
    kept = ResidentSamples([spec], shape=(2, 10), device=CPU)
    kept.put([(1, 3)], {"label": torch.ones(1, *spec.item_shape, dtype=torch.uint8)})
    assert kept.find_missing([(0, 3), (1, 3), (1, 4)]) == [(0, 3), (1, 4)]


# --- what happens to mapped files


def test_a_mapped_file_that_is_cut_is_an_error_and_no_crash(copy):
    """Reading behind the end of a mapping would be a bus error, and the end of the process."""
    reader, maps = open_split(copy, "train"), MappedFiles()
    read(reader, "mid", 0, 3, maps), read(reader, "mid", 0, 3, maps)
    os.truncate(reader.locate("mid", 0, 3).path, 100)
    with pytest.raises(
        CacheCorruptError, match=r"train/mid view 0 sample '.*' is damaged: .*too short"
    ):
        read(reader, "mid", 0, 3, maps)


def test_a_file_cut_before_it_is_mapped_is_an_error(copy):
    reader, maps = open_split(copy, "train"), MappedFiles()
    place, _ = reader.locate("mid", 0, 3), read(reader, "mid", 0, 3, maps)
    os.truncate(place.path, place.offset + 8)
    with pytest.raises(CacheCorruptError, match="the file is too short"):
        read(reader, "mid", 0, 3, maps)


def test_a_bit_flipped_under_a_mapping_is_found_where_every_reading_is_checked(copy):
    reader, maps = open_split(copy, "train", check="always"), MappedFiles()
    read(reader, "mid", 0, 3, maps), read(reader, "mid", 0, 3, maps)
    place = reader.locate("mid", 0, 3)
    with place.path.open("r+b") as file:
        file.seek(place.offset + 5)
        byte = file.read(1)[0]
        file.seek(place.offset + 5)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(CacheCorruptError, match="its checksum differs"):
        read(reader, "mid", 0, 3, maps)
