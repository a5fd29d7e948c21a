"""Coded chunks: smaller files, the same numbers, by us and by others' readers, and damage that is met before it is decoded."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import quick
import tensorstore
import zarr
from helpers import check_one_line
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from kdcache.cache import codecs, writer
from kdcache.cache.build import build_cache
from kdcache.cache.codecs import Codec, choose_codec, make_coder
from kdcache.cache.documents import write_sealed
from kdcache.cache.layout import shard_path
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.cache.repair import repair_cache
from kdcache.cache.shard import MappedFiles
from kdcache.cache.verify import verify_cache
from kdcache.errors import CacheCorruptError, CacheError, CacheMismatchError, SettingsError
from kdcache.report.cache_info import describe_cache, format_info
from kdcache.settings import make_config
from kdcache.training.settings import resolve_config

NAMES = ["blosc-lz4", "blosc-zstd", "zstd", "gzip"]  # the last one by zarr-python
SHUFFLED = {"typesize": 2, "shuffle": "shuffle"}
THEIRS = {
    "blosc-lz4": BloscCodec(cname="lz4", clevel=5, **SHUFFLED),
    "blosc-zstd": BloscCodec(cname="zstd", clevel=1, **SHUFFLED),
    "zstd": ZstdCodec(level=0, checksum=False),
}


@pytest.fixture(scope="module")
def quick_data(tmp_path_factory) -> Path:
    return quick.write_quick_data(tmp_path_factory.mktemp("quick"))


@pytest.fixture(autouse=True)
def _quick_teacher(monkeypatch):
    monkeypatch.setattr("kdcache.cache.build.build_teacher", quick.make_quick_teacher)


@pytest.fixture(scope="module")
def roots(quick_data, tmp_path_factory) -> dict[str, Path]:
    """The same cache by every codec. Read only."""
    folder = tmp_path_factory.mktemp("coded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.cache.build.build_teacher", quick.make_quick_teacher)
        return {name: build(quick_data, folder / name, name) for name in ["raw", *NAMES, "numcodecs.lzma"]}


def build(data: Path, root: Path, codec: str) -> Path:
    build_cache(make_config(quick.quick_given(data, root), {"cache": {"codec": codec}}))
    return root


@pytest.fixture
def root(roots, tmp_path) -> Path:
    """A cache of blosc-zstd of this test alone."""
    return Path(shutil.copytree(roots["blosc-zstd"], tmp_path / "cache"))


def read_all(root: Path, split: str = "train", *, maps: MappedFiles | None = None, check: str = "first") -> dict:
    """Bytes of every sample, read twice: the second time from mapped files, where there are any."""
    reader, found = open_split(root, split, check=check), {}
    for spec in reader.layout.arrays:
        for view in range(reader.num_views):
            for sample in range(reader.layout.num_samples):
                for _ in range(2):
                    slot = np.full(spec.item_shape, 7, spec.dtype)
                    reader.read_into(slot, array=spec.name, view=view, sample=sample, maps=maps)
                    found.setdefault((spec.name, view, sample), set()).add(slot.tobytes())
    return found


@pytest.mark.parametrize("name", [*NAMES, "numcodecs.lzma"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_codec_gives_the_numbers_of_the_raw_cache(roots, name, split):
    truth = read_all(roots["raw"], split)
    assert all(len(found) == 1 for found in truth.values())
    assert read_all(roots[name], split) == truth
    assert read_all(roots[name], split, maps=MappedFiles(), check="always") == truth
    assert read_all(roots[name], split, maps=MappedFiles(), check="never") == truth


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("array", ["image", "label", "logits", "low", "mid", "high"])
def test_zarr_and_tensorstore_read_coded_chunks_as_we_do(roots, name, array):
    path, reader = roots[name] / "train" / array, open_split(roots[name], "train")
    ours = np.array([[reader.read(array, view, sample) for sample in range(3)] for view in range(2)])
    assert ours.tobytes() == zarr.open_array(path, mode="r")[:].tobytes()
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    assert ours.tobytes() == np.asarray(tensorstore.open(spec, open=True).result().read().result()).tobytes()


@pytest.mark.parametrize("name", ["blosc-lz4", "blosc-zstd", "zstd"])  # gzip writes the time, too
def test_coded_shards_and_metadata_are_what_zarr_would_have_written(roots, tmp_path, name):
    root, reader = roots[name], open_split(roots[name], "train")
    layout, spec = reader.layout, reader.layout.array("low")
    with zarr.config.set({"array.write_empty_chunks": True}):
        theirs = zarr.create_array(
            tmp_path / "theirs", shape=(2, 3, *spec.item_shape), dtype=spec.dtype, chunks=(1, 1, *spec.item_shape),
            shards=(1, layout.shard_samples, *spec.item_shape), fill_value=0, compressors=[THEIRS[name], Crc32cCodec()],
            dimension_names=["view", "sample", None, None, None],
        )  # fmt: skip
        for view in range(2):
            theirs[view] = np.stack([reader.read("low", view, sample) for sample in range(3)])
    for group in layout.groups():
        ours = shard_path(root, spec, group)
        assert ours.read_bytes() == (tmp_path / "theirs" / ours.relative_to(root / "train" / "low")).read_bytes()
    said, zarr_says = (json.loads((p / "zarr.json").read_text()) for p in (root / "train/low", tmp_path / "theirs"))
    assert said == zarr_says


def test_a_coded_cache_is_smaller_and_says_so(roots):
    raw, coded = (describe_cache(roots[name])["splits"]["train"]["arrays"] for name in ("raw", "blosc-zstd"))
    assert all(coded[array]["bytes"] < raw[array]["bytes"] for array in ("label", "low", "mid"))
    assert raw["low"]["codec"] is None and coded["low"]["codec"]["configuration"]["cname"] == "zstd"
    assert "MB, blosc" in format_info(describe_cache(roots["blosc-zstd"]))


def test_a_raw_cache_stays_of_the_version_that_older_readers_know(roots):
    assert read_manifest(roots["raw"]).format_version == 2
    assert read_manifest(roots["gzip"]).format_version == 3
    assert json.loads((roots["gzip"] / "manifest.json").read_text())["format_version"] == 3


def test_another_codec_on_a_finished_cache_is_refused_with_the_difference(roots, quick_data):
    with pytest.raises(CacheMismatchError) as error:
        build(quick_data, roots["raw"], "blosc-lz4")
    check_one_line(
        error, "arrays.low is 'float16 4x8x8'", "expected 'float16 4x8x8 blosc", "rebuild it in another folder"
    )
    given = {"cache": {"codec": "gzip"}}
    with pytest.raises(CacheMismatchError, match="cache.codec is 'raw', expected 'gzip'"):
        resolve_config(roots["raw"], read_manifest(roots["raw"]), given)
    assert resolve_config(roots["gzip"], read_manifest(roots["gzip"]), given).cache.codec == "gzip"


@pytest.mark.parametrize("name", ["gzipp", "", "transpose", "bytes", "numcodecs.delta", "raw "])
def test_a_codec_that_is_none_is_refused_in_one_line(name, quick_data, tmp_path):
    with pytest.raises(SettingsError) as error:
        build(quick_data, tmp_path / "cache", name)
    check_one_line(error, "cache.codec is", "expected raw, blosc-lz4, blosc-zstd")
    assert not (tmp_path / "cache").exists()


def test_a_manifest_with_a_codec_nobody_knows_is_one_line(root):
    document = json.loads((root / "manifest.json").read_text())
    document.pop("sha256")
    for codec in (
        {"name": "rot13"},
        {"name": "blosc"},
        {"name": 3},
        [],
        {"name": "zstd", "configuration": {"level": []}},
    ):
        document["splits"]["train"]["arrays"][3]["codec"] = codec
        write_sealed(root / "manifest.json", document)
        with pytest.raises(CacheCorruptError) as error:
            open_split(root, "train")
        check_one_line(error, "manifest.json: manifest is damaged")


def test_a_codec_that_changes_numbers_is_noticed_while_writing(quick_data, tmp_path, monkeypatch):
    class Rounding:
        def encode(self, item):
            return (item.reshape(-1).view(np.uint8) & 0xFE).tobytes()

        def decode_into(self, chunk, slot):
            slot.reshape(-1).view(np.uint8)[:] = chunk

    monkeypatch.setattr(writer, "make_coder", lambda *args, **kwargs: Rounding())
    with pytest.raises(CacheError) as error:
        build(quick_data, tmp_path / "cache", "blosc-lz4")
    check_one_line(error, "codec blosc changes what it codes", "set cache.codec to another")


@pytest.mark.parametrize("check", ["first", "always"])
@pytest.mark.parametrize("mapped", [False, True])
def test_damage_is_met_before_it_is_decoded(root, monkeypatch, check, mapped):
    group = read_manifest(root).layouts["train"].group(0, 0)
    path = shard_path(root, read_manifest(root).layouts["train"].array("low"), group)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(codecs.blosc, "decompress", lambda *args: pytest.fail("decoded"))
    slot, maps = np.empty((4, 8, 8), np.float16), MappedFiles() if mapped else None
    with pytest.raises(CacheCorruptError, match="train/low view 0 sample .* its checksum differs"):
        open_split(root, "train", check=check).read_into(slot, array="low", view=0, sample=0, maps=maps)
    assert [damage.sample_id for damage in verify_cache(root, data=True).damage] == [
        open_split(root, "train").sample_ids[0]
    ]


def test_repair_makes_a_coded_group_anew(root):
    before = quick.snapshot(root)
    path = shard_path(
        root, read_manifest(root).layouts["train"].array("mid"), read_manifest(root).layouts["train"].group(1, 0)
    )
    path.write_bytes(path.read_bytes()[:-1])
    repair_cache(root, {})
    assert quick.snapshot(root) == before


@pytest.mark.parametrize("name", ["blosc-lz4", "blosc-zstd", "zstd", "gzip"])
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_what_cannot_be_decoded_is_an_error_and_never_more_than_the_slot(name, dtype):
    """With checks off, nothing but the coder stands between a wrong chunk and the memory behind the slot."""
    item = (np.arange(600).reshape(6, 100) % 250).astype(dtype)
    coder = make_coder(choose_codec(name, dtype), shape=item.shape, dtype=dtype)
    chunk = np.frombuffer(coder.encode(item), np.uint8)
    room = np.zeros((3, *item.shape), dtype)
    coder.decode_into(chunk, room[1])
    assert np.array_equal(room[1], item) and not room[0].any() and not room[2].any()
    shorter, longer = item[:3].copy(), np.concatenate([item, item])
    others = [np.frombuffer(make(x).encode(x), np.uint8) for x in (shorter, longer) for make in [maker(name)]]
    for wrong in (chunk[:0], chunk[:10], chunk[: chunk.size // 2], np.append(chunk, chunk), *others):
        with pytest.raises(ValueError):
            coder.decode_into(wrong, room[1])
        assert not room[0].any() and not room[2].any()


def maker(name: str):
    return lambda item: make_coder(choose_codec(name, str(item.dtype)), shape=item.shape, dtype=str(item.dtype))


@pytest.mark.parametrize("name", NAMES)
def test_zeros_are_stored_like_anything_else(name):
    zeros, slot = np.zeros((4, 5), np.uint8), np.ones((4, 5), np.uint8)
    coder = make_coder(choose_codec(name, "uint8"), shape=(4, 5), dtype="uint8")
    coder.decode_into(np.frombuffer(coder.encode(zeros), np.uint8), slot)
    assert not slot.any()


def test_codecs_go_through_json_and_back():
    for codec in (choose_codec("blosc-zstd", "float16"), choose_codec("gzip", "uint8"), Codec("crc32c")):
        assert Codec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec
