"""Caches of coded chunks: smaller files, the same numbers, by us and by others' readers, and damage
met before it is decoded.
"""

import json
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from kdcache.cache import codecs, writer
from kdcache.cache.codecs import choose_codec
from kdcache.cache.layout import shard_key
from kdcache.cache.leftovers import collect_leftovers
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.cache.shards import MappedFiles
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config
from kdcache.errors import CacheCorruptError, CacheError, CacheMismatchError, SettingsError
from kdcache.precompute.build import build_cache, check_free_space
from kdcache.precompute.repair import repair_cache
from kdcache.report.cache_text import describe_cache, format_info
from kdcache.seals import seal_json
from kdcache.training.batches import BatchReader
from kdcache.training.settings import resolve_config
from tests.support import quick
from tests.support.helpers import check_one_line

pytestmark = pytest.mark.usefixtures("quick_teacher")
NAMES = ["blosc-lz4", "blosc-zstd", "zstd", "gzip"]  # the last one by zarr-python

SHUFFLED = {"typesize": 2, "shuffle": "shuffle"}

THEIRS = {
    "blosc-lz4": BloscCodec(cname="lz4", clevel=5, **SHUFFLED),
    "blosc-zstd": BloscCodec(cname="zstd", clevel=1, **SHUFFLED),
    "zstd": ZstdCodec(level=0, checksum=False),
}


@pytest.fixture(scope="module")
def roots(quick_data, tmp_path_factory) -> dict[str, Path]:
    """The same cache by every codec. Read only."""
    folder = tmp_path_factory.mktemp("coded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        return {
            name: build(quick_data, folder / name, name)
            for name in ["raw", *NAMES, "numcodecs.lzma"]
        }


def build(data: Path, root: Path, codec: str) -> Path:
    build_cache(make_config(quick.quick_given(data, root), {"cache": {"codec": codec}}))
    return root


@pytest.fixture
def root(roots, tmp_path) -> Path:
    """A cache of blosc-zstd of this test alone."""
    return Path(shutil.copytree(roots["blosc-zstd"], tmp_path / "cache"))


def read_all(
    root: Path, split: str = "train", *, maps: MappedFiles | None = None, check: str = "first"
) -> dict:
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
    ours = np.array(
        [[reader.read(array, view, sample) for sample in range(3)] for view in range(2)]
    )
    assert ours.tobytes() == zarr.open_array(path, mode="r")[:].tobytes()
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    assert (
        ours.tobytes()
        == np.asarray(tensorstore.open(spec, open=True).result().read().result()).tobytes()
    )


@pytest.mark.parametrize("name", ["blosc-lz4", "blosc-zstd", "zstd"])  # gzip writes the time, too
def test_coded_shards_and_metadata_are_what_zarr_would_have_written(roots, tmp_path, name):
    root, reader = roots[name], open_split(roots[name], "train")
    layout, spec = reader.layout, reader.layout.array("low")
    with zarr.config.set({"array.write_empty_chunks": True}):
        theirs = zarr.create_array(
            tmp_path / "theirs",
            shape=(2, 3, *spec.item_shape),
            dtype=spec.dtype,
            chunks=(1, 1, *spec.item_shape),
            shards=(1, layout.shard_samples, *spec.item_shape),
            fill_value=0,
            compressors=[THEIRS[name], Crc32cCodec()],
            dimension_names=["view", "sample", None, None, None],
        )
        for view in range(2):
            theirs[view] = np.stack([reader.read("low", view, sample) for sample in range(3)])
    for group in layout.groups():
        ours = root / shard_key(spec, group)
        assert (
            ours.read_bytes()
            == (tmp_path / "theirs" / ours.relative_to(root / "train" / "low")).read_bytes()
        )
    said, zarr_says = (
        json.loads((p / "zarr.json").read_text()) for p in (root / "train/low", tmp_path / "theirs")
    )
    assert said == zarr_says


def test_a_coded_cache_is_smaller_and_says_so(roots):
    raw, coded = (
        describe_cache(roots[name])["splits"]["train"]["arrays"] for name in ("raw", "blosc-zstd")
    )
    assert all(coded[array]["bytes"] < raw[array]["bytes"] for array in ("label", "low", "mid"))
    assert raw["low"]["codec"] is None and coded["low"]["codec"]["configuration"]["cname"] == "zstd"
    assert "MB, blosc zstd" in format_info(describe_cache(roots["blosc-zstd"]))


def test_a_raw_cache_stays_of_the_version_that_older_readers_know(roots):
    assert read_manifest(roots["raw"]).format_version == 2
    assert read_manifest(roots["gzip"]).format_version == 3
    assert json.loads((roots["gzip"] / "manifest.json").read_text())["format_version"] == 3


def test_another_codec_on_a_finished_cache_is_refused_with_the_difference(roots, quick_data):
    with pytest.raises(CacheMismatchError) as error:
        build(quick_data, roots["raw"], "blosc-lz4")
    check_one_line(
        error, "cache.codec is 'raw', expected 'blosc-lz4'", "give what the cache was built with"
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
    gzip = [
        {"name": "gzip", "configuration": settings}
        for settings in ({"bogus": 1}, {"level": "x"}, {"level": 99}, [])
    ]
    for codec in (
        *gzip,
        {"name": "gzip", "must_understand": True},
        {"name": "rot13"},
        {"name": "blosc"},
        {"name": 3},
        [],
        {"name": "zstd", "configuration": {"level": []}},
    ):
        document["splits"]["train"]["arrays"][3]["codec"] = codec
        (root / "manifest.json").write_bytes(seal_json(document))
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
    check_one_line(
        error, "cannot be coded (codec blosc changes image)", "set cache.codec to another"
    )
    assert not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.parametrize("check", ["first", "always"])
@pytest.mark.parametrize("mapped", [False, True])
def test_damage_is_met_before_it_is_decoded(root, monkeypatch, check, mapped):
    group = read_manifest(root).layouts["train"].group(0, 0)
    path = root / shard_key(read_manifest(root).layouts["train"].array("low"), group)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(codecs.blosc, "decompress", lambda *args: pytest.fail("decoded"))
    slot, maps = np.empty((4, 8, 8), np.float16), MappedFiles() if mapped else None
    with pytest.raises(CacheCorruptError, match="train/low view 0 sample .* its checksum differs"):
        open_split(root, "train", check=check).read_into(
            slot, array="low", view=0, sample=0, maps=maps
        )
    assert [damage.sample_id for damage in verify_cache(root, data=True).damage] == [
        open_split(root, "train").sample_ids[0]
    ]


def test_repair_makes_a_coded_group_anew(root):
    before = quick.snapshot(root)
    path = root / shard_key(
        read_manifest(root).layouts["train"].array("mid"),
        read_manifest(root).layouts["train"].group(1, 0),
    )
    path.write_bytes(path.read_bytes()[:-1])
    repair_cache(root, {})
    assert quick.snapshot(root) == before


def test_many_threads_decode_what_one_does(roots):
    """Each has memory of its own for coded chunks; all samples at once, again and again."""
    places = [(view, sample) for view in range(2) for sample in range(3)] * 8
    batches = {}
    for name in ("raw", "blosc-zstd"):
        reader = open_split(roots[name], "train")
        arrays = [spec.name for spec in reader.layout.arrays]
        batch_reader = BatchReader(
            reader, arrays=arrays, batch_size=2, device=torch.device("cpu"), residency="ram"
        )
        batch_reader.slots = [_grow(slots, len(places)) for slots in batch_reader.slots]
        batches[name] = [
            {array: values.numpy().tobytes() for array, values in batch.arrays.items()}
            for batch in batch_reader.read([places] * 5)
        ]
    assert batches["raw"] == batches["blosc-zstd"] and len(batches["raw"]) == 5


def _grow(slots: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty((rows, *slot.shape[1:]), dtype=slot.dtype) for name, slot in slots.items()
    }


def test_strange_codecs_leave_the_warnings_of_a_process_alone(roots):
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read_all(roots["numcodecs.lzma"]), range(4)))
    added = [kept for kept in warnings.filters if kept not in before]
    assert len(added) <= 1 and all(
        kept[1] is not None for kept in added
    )  # one message, no whole category


def test_a_cache_keeps_its_codec_where_the_librarys_default_has_changed(
    roots, quick_data, tmp_path, monkeypatch
):
    root = Path(shutil.copytree(roots["gzip"], tmp_path / "cache"))
    monkeypatch.setattr(GzipCodec.__init__, "__kwdefaults__", {"level": 6})
    assert dict(choose_codec("gzip", "uint8").settings) == {"level": 6}
    layout, truth = read_manifest(root).layouts["train"], read_all(roots["raw"])
    (root / shard_key(layout.array("mid"), layout.group(0, 0))).unlink()
    repair_cache(root, {})
    assert read_all(root) == truth
    build_cache(
        make_config(quick.quick_given(quick_data, root, views=3), {"cache": {"codec": "gzip"}})
    )
    assert read_manifest(root).complete_views["train"] == 3
    assert dict(read_manifest(root).layouts["train"].array("low").codec.settings) == {"level": 5}


@pytest.mark.parametrize("name", ["blosc-zstd", "gzip"])
def test_coded_caches_grow_lose_their_manifest_and_are_tidied_like_others(
    roots, quick_data, tmp_path, name
):
    root = Path(shutil.copytree(roots[name], tmp_path / "cache"))
    given = quick.quick_given(quick_data, root, views=3)
    build_cache(make_config(given, {"cache": {"codec": name}}))
    before = quick.snapshot(root)
    (root / "manifest.json").unlink()
    assert build_cache(make_config(given, {"cache": {"codec": name}})).num_samples == 0
    assert quick.snapshot(root) == before
    assert not collect_leftovers(root) and not verify_cache(root, data=True).damage


def test_a_manifest_that_asks_for_terabytes_is_one_line(root):
    document = json.loads((root / "manifest.json").read_text())
    document.pop("sha256")
    document["splits"]["train"]["arrays"][2]["item_shape"] = [1024, 2**20, 2**10]
    (root / "manifest.json").write_bytes(seal_json(document))
    with pytest.raises(CacheCorruptError, match="a sample of 'logits' has more than"):
        open_split(root, "train")


def test_a_manifest_of_version_2_has_no_codecs(root):
    document = json.loads((root / "manifest.json").read_text())
    document.pop("sha256")
    (root / "manifest.json").write_bytes(seal_json({**document, "format_version": 2}))
    with pytest.raises(CacheCorruptError, match="format_version is 2, its arrays are of 3"):
        open_split(root, "train")


def test_an_unknown_codec_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(SettingsError, match="cache.codec is 'lz4', expected raw, blosc-lz4"):
        build(tmp_path / "no data here", tmp_path / "cache", "lz4")


def test_a_disk_that_may_be_too_small_is_only_warned_about(tmp_path, caplog):
    check_free_space(tmp_path, needed_bytes=2 * 10**9, free_bytes=10**9, at_most=True)
    assert "up to 2.00 GB are still to be written" in caplog.text
    with pytest.raises(
        CacheError,
        match="free disk space is 1.00 GB, expected 2.00 GB or more; .*cache.encoding compact",
    ):
        check_free_space(tmp_path, needed_bytes=2 * 10**9, free_bytes=10**9, at_most=False)


def test_a_reader_can_be_sent_to_another_process(roots):
    reader = pickle.loads(pickle.dumps(open_split(roots["blosc-lz4"], "train")))
    assert reader.read("low", 0, 0).tobytes() in read_all(roots["raw"])["low", 0, 0]


def test_a_manifest_whose_arrays_are_not_those_of_its_identity_is_one_line(root):
    document = json.loads((root / "manifest.json").read_text())
    document.pop("sha256")
    for codec in ({"name": "gzip", "configuration": {"level": 5}}, None, 5):
        array = document["splits"]["train"]["arrays"][3]
        array["codec"] = codec
        if codec is None:
            array.pop("codec")
        (root / "manifest.json").write_bytes(seal_json(document))
        with pytest.raises(CacheCorruptError) as error:
            open_split(root, "train")
        check_one_line(
            error,
            "manifest is damaged ("
            + ("codec of low is 5" if codec == 5 else "arrays of train are not"),
        )


def test_a_zarr_json_with_another_codec_shows_where_it_differs(root):
    path = root / "train/low/zarr.json"
    path.write_text(path.read_text().replace('"clevel": 1', '"clevel": 9'))
    with pytest.raises(CacheCorruptError) as error:
        open_split(root, "train")
    check_one_line(error, "codecs.0.configuration.codecs.1.configuration.clevel is 9, expected 1")


def test_training_with_a_misspelt_codec_is_told_what_there_is(roots):
    with pytest.raises(SettingsError, match="cache.codec is 'gzp', expected raw, blosc-lz4"):
        resolve_config(roots["raw"], read_manifest(roots["raw"]), {"cache": {"codec": "gzp"}})
