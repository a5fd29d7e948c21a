"""A shard file that another file or a change in place has become, after it was read and checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.cache.index import Location
from kdcache.cache.pack import pack_cache
from kdcache.cache.reader import CacheReader, open_split
from kdcache.cache.shards import MappedFiles
from kdcache.errors import CacheCorruptError
from kdcache.training.batches import BatchReader

CPU = torch.device("cpu")


@pytest.fixture
def copy(built_root, tmp_path) -> Path:
    return Path(shutil.copytree(built_root, tmp_path / "copy"))


def pack(root: Path, out: Path) -> Path:
    pack_cache(root, out)
    return out


def read(reader: CacheReader, array: str, sample: int, maps: MappedFiles | None) -> np.ndarray:
    """One sample of view 0, from the map if it was read before."""
    spec = reader.layout.array(array)
    slot = np.empty(spec.item_shape, spec.dtype)
    reader.read_into(slot, array=array, view=0, sample=sample, maps=maps)
    return slot


def change_byte(data: bytearray, place: Location) -> bytearray:
    data[place.offset + 5] ^= 4
    return data


def damage_in_place(place: Location) -> None:
    """Its times of change are put back, except for the one that only the system sets."""
    facts = place.path.stat()
    with place.path.open("r+b") as file:
        file.write(change_byte(bytearray(place.path.read_bytes()), place))
    os.utime(place.path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def replace_by_damaged(place: Location) -> None:
    other = place.path.with_name("other")
    other.write_bytes(change_byte(bytearray(place.path.read_bytes()), place))
    other.replace(place.path)


@pytest.mark.parametrize("damage", [damage_in_place, replace_by_damaged])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "h5"])
@pytest.mark.parametrize("mapped", [False, True], ids=["position", "mapped"])
def test_a_file_damaged_after_its_first_reading_is_found(copy, tmp_path, damage, packed, mapped):
    """Another file is checked again, though each chunk was checked already."""
    root = pack(copy, tmp_path / "packed.h5") if packed else copy
    reader, maps = open_split(root, "train"), MappedFiles() if mapped else None
    for _ in range(3):
        read(reader, "mid", 3, maps), read(reader, "mid", 4, maps)
    damage(reader.locate("mid", 0, 3))
    with pytest.raises(CacheCorruptError, match="its checksum differs"):
        read(reader, "mid", 3, maps)
    read(reader, "mid", 4, maps)


@pytest.mark.parametrize("residency", ["disk", "ram"])
def test_training_ends_at_a_file_damaged_after_the_first_epoch(copy, residency):
    reader = open_split(copy, "train")
    batches = BatchReader(reader, arrays=["mid"], batch_size=2, device=CPU, residency=residency)
    for _ in range(2):
        list(batches.read([[(0, 3), (0, 4)]]))
    replace_by_damaged(reader.locate("mid", 0, 3))
    with pytest.raises(CacheCorruptError, match="its checksum differs"):
        list(batches.read([[(0, 3), (0, 4)]]))


def test_a_repaired_file_is_read_on(copy):
    """The same bytes in another file."""
    reader, maps = open_split(copy, "train"), MappedFiles()
    first = read(reader, "mid", 3, maps)
    place = reader.locate("mid", 0, 3)
    other = place.path.with_name("other")
    other.write_bytes(place.path.read_bytes())
    other.replace(place.path)
    for _ in range(3):
        assert np.array_equal(read(reader, "mid", 3, maps), first)
