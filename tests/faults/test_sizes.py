"""Trust: no file takes more memory than it has bytes, and none leads to another one.

Each file here is small on disk and says that it stands for gigabytes, or is a link inside HDF5.
"""

import bz2
import gzip
import lzma
import os
import resource
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from kdcache.cache.codecs import Codec, choose_codec, make_coder
from kdcache.cache.manifest import read_manifest
from kdcache.cache.pack import pack_cache
from kdcache.errors import CacheCorruptError, CacheError, KdcacheError, TeacherError, TrainingError
from kdcache.models.weights import read_state_dict
from kdcache.storage import open_storage
from kdcache.training.checkpoint import read_checkpoint
from kdcache.training.run_folder import read_history
from tests.support.helpers import check_one_line

MOST_S, MOST_BYTES = 10.0, 1 << 29
GIGABYTES = 1 << 32


@pytest.fixture(autouse=True)
def _little_memory_and_time() -> Iterator[None]:
    """Whoever takes much more than is in use now gets a MemoryError, which is no typed error."""
    before, began_s = resource.getrlimit(resource.RLIMIT_AS), time.monotonic()
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.monotonic() - began_s < MOST_S


@pytest.fixture(scope="module")
def packed(whole_root, tmp_path_factory) -> Path:
    """A packed cache. Read only."""
    out = tmp_path_factory.mktemp("packed") / "whole.h5"
    pack_cache(whole_root, out)
    return out


@pytest.fixture
def file(packed, tmp_path) -> Path:
    return Path(shutil.copy(packed, tmp_path / "x.h5"))


def _sparse(opened: h5py.File, name: str, how: h5py.h5p.PropDCID, count: int = 1 << 28) -> None:
    """An array of so many samples, none of them written."""
    del opened[name]
    space = h5py.h5s.create_simple((2, count, 4))
    h5py.h5d.create(opened.id, name.encode(), h5py.h5t.NATIVE_INT8, space, how)


def _chunked(opened: h5py.File, *, early: bool = False) -> None:
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_chunk((1, 1, 4))
    if not early:
        how.set_deflate(1)
    _sparse(opened, "train/label", how, 1 << (20 if early else 28))


def _contiguous(opened: h5py.File) -> None:
    _sparse(opened, "train/label", h5py.h5p.create(h5py.h5p.DATASET_CREATE))


def _external_storage(opened: h5py.File) -> None:
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_external(b"/etc/passwd", 0, 2 * 4 * 4)
    _sparse(opened, "train/label", how, 4)


def _virtual(opened: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(2, 3, 4), dtype="u1", maxshape=(2, None, 4))
    source = h5py.VirtualSource("pipe", "a", shape=(2, 3, 4), maxshape=(2, None, 4))
    layout[:, : h5py.h5s.UNLIMITED] = source[:, : h5py.h5s.UNLIMITED]
    del opened["train/label"]
    opened.create_virtual_dataset("train/label", layout)


def _link(name: str, link: object) -> Callable[[h5py.File], None]:
    def put(opened: h5py.File) -> None:
        del opened[name]
        opened[name] = link

    return put


PIPE = h5py.ExternalLink("pipe", "/a")
HARMS = {
    "sparse chunks": _chunked,
    "sparse array": _contiguous,
    "bytes in another file": _external_storage,
    "virtual array": _virtual,
    **{
        f"{kind} link, {name}": _link(name, link)
        for name in ("train", "val", "train/label", "documents", "documents/manifest.json")
        for kind, link in {"external": PIPE, "soft": h5py.SoftLink("/val/label")}.items()
    },
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", HARMS)
def test_a_packed_cache_has_only_what_is_in_it(file, harm):
    os.mkfifo(file.parent / "pipe")
    with h5py.File(file, "r+") as opened:
        HARMS[harm](opened)
    with pytest.raises(CacheError) as error:
        read_manifest(open_storage(file))
        open_storage(file).table  # noqa: B018  a document that is a link is only missing
    check_one_line(error, "x.h5")


def test_a_file_with_holes_does_not_fill_memory(file):
    with h5py.File(file, "r+") as opened:
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        _sparse(opened, "train/label", how, 1 << 28)
    assert file.stat().st_blocks * 512 < 1 << 20 < file.stat().st_size
    with pytest.raises(CacheCorruptError) as error:
        read_manifest(open_storage(file))
    check_one_line(error, "has 2 x 268435456 samples")


# --- codecs

ZEROS = bytes(1 << 27)
BOMBS = {
    "numcodecs.bz2": bz2.compress(ZEROS),
    "numcodecs.zlib": zlib.compress(ZEROS),
    "gzip": gzip.compress(ZEROS),
    "numcodecs.lzma": lzma.compress(ZEROS),
}
ITEM = np.arange(2000, dtype=np.float32)
CODECS = [*BOMBS, "numcodecs.lz4", "numcodecs.zstd", "numcodecs.blosc"]


@pytest.mark.parametrize("name", CODECS)
def test_a_chunk_decodes_to_its_array_or_to_nothing(name):
    coder, slot = (
        make_coder(choose_codec(name, "float32"), shape=(2000,), dtype="float32"),
        np.zeros_like(ITEM),
    )
    sound = np.frombuffer(coder.encode(ITEM), np.uint8)
    coder.decode_into(sound, slot)
    assert np.array_equal(slot, ITEM)
    longer = make_coder(choose_codec(name, "float32"), shape=(4000,), dtype="float32")
    other = np.frombuffer(longer.encode(np.tile(ITEM, 2)), np.uint8)
    header = np.frombuffer(GIGABYTES.to_bytes(8, "big")[::-1] * 3, np.uint8)
    bombs = [np.frombuffer(BOMBS[name], np.uint8)] if name in BOMBS else []
    for harm in (other, sound[: sound.size // 2], header, sound[:0], *bombs):
        with pytest.raises(ValueError):
            coder.decode_into(harm, slot)


# --- checkpoints


def _deflate(path: Path) -> None:
    torch.save({"model_state_dict": {"w": torch.zeros(1 << 25)}}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(
        path.with_suffix(".small"), "w", zipfile.ZIP_DEFLATED
    ) as small:  # fmt: skip
        for one in whole.infolist():
            small.writestr(one.filename, whole.read(one))
    path.with_suffix(".small").replace(path)


@pytest.mark.parametrize("reads", ["run", "teacher"])
@pytest.mark.parametrize("harm", ["deflated", "pipe", "folder", "link"])
def test_a_file_of_tensors_takes_no_more_memory_than_it_has_bytes(tmp_path, reads, harm):
    path = tmp_path / "x.pth"
    if harm == "link":
        path.symlink_to("/dev/zero")
    else:
        {"deflated": _deflate, "pipe": os.mkfifo, "folder": Path.mkdir}[harm](path)
    with pytest.raises((TrainingError, TeacherError)) as error:
        if reads == "run":
            read_checkpoint(path)
        else:
            read_state_dict(path, field="teacher.weights")
    check_one_line(error, "x.pth")


@pytest.mark.parametrize("harm", ["pipe", "large", "link", "folder"])
def test_metrics_are_a_plain_file_of_a_plausible_size(tmp_path, harm):
    path = tmp_path / "metrics.jsonl"
    if harm == "large":
        path.touch()
        os.truncate(path, GIGABYTES)
    elif harm == "link":
        path.symlink_to("/dev/zero")
    else:
        {"pipe": os.mkfifo, "folder": Path.mkdir}[harm](path)
    with pytest.raises(KdcacheError) as error:
        read_history(tmp_path, {})
    check_one_line(error, "metrics.jsonl")


@pytest.mark.parametrize("harm", ["pipe", "large", "folder", "link"])
@pytest.mark.parametrize(
    "name", ["manifest.json", "commits/train-v0000-g00000.json", "leases/train-v0000-g00000"]
)
def test_a_document_of_a_cache_is_a_plain_file_of_a_plausible_size(
    whole_root, tmp_path, capsys, name, harm
):
    from cache_teacher.cli import main

    cache = Path(shutil.copytree(whole_root, tmp_path / "cache"))
    path = cache / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if harm == "large":
        path.touch()
        os.truncate(path, GIGABYTES)
    elif harm == "link":
        path.symlink_to("/dev/zero")
    else:
        {"pipe": os.mkfifo, "folder": Path.mkdir}[harm](path)
    for command in ("info", "verify", "gc"):
        assert main([command, str(cache)]) in (0, 1, 2)
        assert len(capsys.readouterr().err.splitlines()) <= 2


def test_a_codec_whose_chunks_have_no_bound_is_refused_by_name(monkeypatch):
    from zarr.codecs.numcodecs import BZ2

    monkeypatch.setattr("kdcache.cache.codecs._find_class", lambda name: BZ2)  # of a plugin
    with pytest.raises(ValueError, match="codec others.bomb has no bound on what a chunk"):
        make_coder(Codec("others.bomb"), shape=(4,), dtype="uint8")


def test_raw_streams_of_lzma_are_refused():
    settings = (("format", lzma.FORMAT_RAW), ("filters", [{"id": lzma.FILTER_LZMA2}]))
    with pytest.raises(ValueError, match="codec numcodecs.lzma has no bound on what a chunk"):
        make_coder(Codec("numcodecs.lzma", settings), shape=(4,), dtype="uint8")
