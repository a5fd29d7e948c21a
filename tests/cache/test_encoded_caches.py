"""Whole caches of encoded answers: what is decoded, who may go on with them, and what becomes of a
lost basis.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr

from kdcache.cache.basis import BasisLearner, basis_key, hash_basis, read_basis
from kdcache.cache.encodings import Targets
from kdcache.cache.leftovers import collect_leftovers
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config, merge
from kdcache.errors import (
    CacheCorruptError,
    CacheError,
    CacheMismatchError,
    SettingsError,
    TeacherError,
)
from kdcache.precompute import build as phase_one
from kdcache.precompute.build import build_cache
from kdcache.precompute.repair import repair_cache
from kdcache.progress import Silent
from kdcache.seals import seal_json
from kdcache.storage import open_storage
from kdcache.training.learner import open_targets
from kdcache.training.settings import resolve_config
from tests.support import quick
from tests.support.helpers import check_one_line

pytestmark = pytest.mark.usefixtures("quick_teacher")
RANKS = {"low": 2, "mid": 3, "high": 4}

MIXED = {"logits": "int8", "low": "lowrank", "mid": "int8"}

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def roots(quick_data, tmp_path_factory) -> dict[str, Path]:
    """The same cache by every encoding. Read only."""
    folder = tmp_path_factory.mktemp("encoded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        kinds = {"float16": "float16", "half": "half", "compact": "compact", "mixed": MIXED}
        return {name: build(quick_data, folder / name, kind) for name, kind in kinds.items()}


def encoded_given(data: Path, root: Path, encoding: object, **cache: object) -> dict:
    return merge(
        quick.quick_given(data, root), {"cache": {"encoding": encoding, "rank": RANKS, **cache}}
    )


def build(data: Path, root: Path, encoding: object, **cache: object) -> Path:
    build_cache(make_config(encoded_given(data, root, encoding, **cache)))
    return root


@pytest.fixture
def root(roots, tmp_path) -> Path:
    """A compact cache of this test alone."""
    return Path(shutil.copytree(roots["compact"], tmp_path / "cache"))


def decode_all(root: Path) -> dict[str, np.ndarray]:
    reader = open_split(root, "train")
    grid = [
        (view, sample)
        for view in range(reader.num_views)
        for sample in range(reader.layout.num_samples)
    ]
    return {
        name: np.stack([reader.decode(name, *place) for place in grid]) for name in reader.encodings
    }


@pytest.mark.parametrize("name", ["half", "compact", "mixed"])
def test_what_is_decoded_is_what_the_exact_cache_holds(roots, name):
    exact, found = decode_all(roots["float16"]), decode_all(roots[name])
    assert found.keys() == exact.keys()
    for answer, encoding in read_manifest(roots[name]).encodings.items():
        ours, truth = found[answer], exact[answer]
        if encoding.kind == "lowrank":  # the quick teacher's features lie in one direction
            truth = truth / np.linalg.norm(truth, axis=1, keepdims=True)
        np.testing.assert_allclose(ours, truth, atol=0.03 * np.abs(truth).max())
        assert ours.dtype == np.float32


def test_encoded_caches_are_smaller_and_sound(roots):
    sizes = {
        name: sum(path.stat().st_size for path in (root / "train").rglob("c/*/*/*/*/*"))
        for name, root in roots.items()
    }
    assert sizes["compact"] < sizes["half"] < sizes["float16"]
    for root in roots.values():
        assert not verify_cache(root, data=True).damage and not collect_leftovers(
            root, dry_run=True
        )


def test_zarr_and_tensorstore_read_every_array_and_basis(roots):
    for name in ("compact", "mixed"):
        root, reader = roots[name], open_split(roots[name], "train")
        group = zarr.open_group(root, mode="r")["train"]
        for spec in reader.layout.arrays:
            ours = np.array(
                [[reader.read(spec.name, view, n) for n in range(3)] for view in range(2)]
            )
            assert ours.dtype == spec.dtype and np.array_equal(ours, group[spec.name][:])
            spec_ts = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(root / "train" / spec.name)},
            }
            assert np.array_equal(
                ours, np.asarray(tensorstore.open(spec_ts, open=True).result().read().result())
            )
        assert np.array_equal(group["low_basis"][:], reader.bases["low"]) and reader.bases[
            "low"
        ].shape == (4, 2)


def test_training_reads_the_stored_numbers_only(roots):
    targets = open_targets(open_split(roots["mixed"], "train"), CPU)
    names = {name: targets.list_arrays(name) for name in ("logits", "low", "mid", "high")}
    assert names == {
        "logits": ["logits", "logits_scale"],
        "low": ["low"],
        "mid": ["mid", "mid_scale"],
        "high": ["high"],
    }
    assert targets.make("low", {"image": torch.zeros(1)}) is None and Targets().list_arrays(
        "low"
    ) == ["low"]


def test_building_again_learns_no_basis_and_writes_nothing(root, quick_data, monkeypatch):
    monkeypatch.setattr(
        "kdcache.precompute.bases.learn_bases",
        lambda *args, **kwargs: pytest.fail("learned again"),
    )
    before = quick.snapshot(root)
    config = make_config(encoded_given(quick_data, root, "compact"))
    assert build_cache(config).num_samples == 0 and quick.snapshot(root) == before


def test_views_are_added_with_the_basis_that_is_there(root, quick_data):
    before, basis = quick.snapshot(root, documents=False), (root / basis_key("low")).read_bytes()
    more = {"augment": {"views": quick.NUM_VIEWS + 1}}
    build_cache(make_config(encoded_given(quick_data, root, "compact"), more))
    after = quick.snapshot(root, documents=False)
    assert after.items() > before.items() and (root / basis_key("low")).read_bytes() == basis


@pytest.mark.parametrize(("change", "difference"), [
    ({"encoding": "half"}, "cache.encoding is {'logits': 'int8', 'low': 'lowrank'"),
    ({"encoding": "exact"}, "'high': 'lowrank'}, expected {'logits': 'float16'"),
    ({"rank": {"low": 1}}, "cache.rank is {'low': 2, 'mid': 3, 'high': 4}, expected {'low': 1"),
    ({"codec": "raw"}, "cache.codec is 'blosc-zstd', expected 'raw'"),
])  # fmt: skip
def test_another_encoding_on_a_finished_cache_is_refused_with_the_differences(
    root, quick_data, change, difference
):
    with pytest.raises(CacheMismatchError) as error:
        build_cache(
            make_config(merge(encoded_given(quick_data, root, "compact"), {"cache": change}))
        )
    check_one_line(
        error, difference, "give what the cache was built with, or set cache.path to another folder"
    )


def test_training_refuses_another_encoding_than_the_caches(roots):
    manifest = read_manifest(roots["compact"])
    same = {
        "cache": {
            "encoding": {"logits": "half", "low": "lowrank", "mid": "compact", "high": "lowrank"}
        }
    }
    assert resolve_config(roots["compact"], manifest, same).cache.codec_name == "blosc-zstd"
    for given_, field in (
        ({"encoding": "half"}, "encoding"),
        ({"rank": {"mid": 9}}, "rank"),
        ({"codec": "raw"}, "codec"),
    ):
        with pytest.raises(CacheMismatchError, match=f"cache.{field} is .*expected"):
            resolve_config(roots["compact"], manifest, {"cache": given_})


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        ({"encoding": "lowrnk"}, "cache.encoding is 'lowrnk', expected exact, half or compact"),
        ({"encoding": {"lw": "int8"}}, "cache.encoding is"),
        ({"encoding": {"logits": "lowrank"}}, "float16 or int8 for logits"),
        (
            {"encoding": "compact", "rank": {"low": 5}},
            "cache.rank.low is 5, expected 1 to 4, the channels of low",
        ),
        ({"rank": {"high": 0}}, "cache.rank.high is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(quick_data, tmp_path, cache, words):
    with pytest.raises(SettingsError) as error:
        build_cache(
            make_config(
                merge(encoded_given(quick_data, tmp_path / "cache", "float16"), {"cache": cache})
            )
        )
    check_one_line(error, words)
    assert not (tmp_path / "cache").exists()


def test_answers_that_are_not_finite_are_refused_and_large_ones_only_by_float16(
    quick_data, tmp_path, monkeypatch
):
    ask = quick.QuickTeacher.__call__

    def shout(size):
        def answer(self, images):
            found = ask(self, images)
            found["low"][0, 0, 0, 0] = size
            return found

        return answer

    for kind, size, cure in (
        ("float16", 1e5, "float16 cannot hold it"),
        ("half", float("inf"), "check the weights"),
    ):
        monkeypatch.setattr(quick.QuickTeacher, "__call__", shout(size))
        with pytest.raises(TeacherError) as error:
            build(quick_data, tmp_path / kind, kind)
        check_one_line(error, "teacher's low reaches", cure)
    monkeypatch.setattr(quick.QuickTeacher, "__call__", shout(1e5))
    assert np.abs(
        decode_all(build(quick_data, tmp_path / "large", "half"))["low"]
    ).max() == pytest.approx(1e5)


def test_a_damaged_basis_is_found_and_learned_again(root):
    before = quick.snapshot(root)
    path = root / basis_key("mid")
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert [(damage.key, damage.group) for damage in verify_cache(root).damage] == [
        (str(path.relative_to(root)), None)
    ]
    with pytest.raises(
        CacheCorruptError, match="mid_basis/c/0/0: basis is not the one this cache was written with"
    ):
        open_split(root, "train")
    open_split(root, "val")
    repair_cache(root, {})
    assert quick.snapshot(root) == before and not verify_cache(root, data=True).damage


@pytest.mark.parametrize("change", ["remove", "cut", "link"])
def test_a_basis_that_is_not_there_is_one_line(root, tmp_path, change):
    path = root / basis_key("low")
    data = path.read_bytes()
    path.unlink()
    if change == "cut":
        path.write_bytes(data[:-1])
    if change == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheCorruptError) as error:
        open_split(root, "train")
    check_one_line(error, "low_basis/c/0/0", "run `python -m cache_teacher repair")


def test_a_basis_that_cannot_be_learned_to_the_last_bit_is_not_replaced(root, monkeypatch):
    (root / basis_key("high")).unlink()
    finish = BasisLearner.finish
    monkeypatch.setattr(
        BasisLearner,
        "finish",
        lambda self, ranks: {k: v * (1 + 2e-7) for k, v in finish(self, ranks).items()},
    )
    with pytest.raises(CacheCorruptError) as error:
        repair_cache(root, {})
    check_one_line(
        error, "high_basis", "learned again it differs in its last bits", "restore it from a copy"
    )
    assert not (root / basis_key("high")).exists()


def test_a_lost_manifest_is_made_anew_with_the_same_basis(root, quick_data):
    before = quick.snapshot(root)
    (root / "manifest.json").unlink()
    assert build_cache(make_config(encoded_given(quick_data, root, "compact"))).num_samples == 0
    assert quick.snapshot(root) == before


@pytest.mark.parametrize("change", [
    lambda split: split["identity"]["encoding"]["low"].update(rank=3),
    lambda split: split["identity"]["encoding"]["low"].update(kind="int8"),
    lambda split: split["identity"]["encoding"]["low"].update(kind=[]),
    lambda split: split["identity"]["encoding"]["low"].update(more=1),
    lambda split: split["identity"]["encoding"].pop("mid"),
    lambda split: split["identity"].update(encoding=[1]),
    lambda split: split["arrays"].pop(3),
    lambda split: split["arrays"][3].update(dtype="float64"),
    lambda split: split["arrays"][4].update(item_shape=[8]),
])  # fmt: skip
def test_a_manifest_whose_arrays_and_encodings_differ_is_one_line(root, change):
    document = json.loads((root / "manifest.json").read_text())
    document.pop("sha256")
    change(document["splits"]["train"])
    (root / "manifest.json").write_bytes(seal_json(document))
    with pytest.raises(CacheError) as error:
        open_split(root, "train")
    check_one_line(error, "manifest.json: manifest is damaged")


def test_read_basis_returns_what_was_learned(roots):
    encoding = read_manifest(roots["compact"]).encodings["low"]
    basis = read_basis(open_storage(roots["compact"]), "low", encoding)
    assert hash_basis(basis) == encoding.basis_sha256 and np.allclose(
        basis.T @ basis, np.eye(2), atol=1e-6
    )


def test_a_lost_manifest_is_made_anew_by_a_process_of_other_ways(root, quick_data, monkeypatch):
    """The basis that lies there counts, not one that another batch size, thread count or machine
    would learn.
    """
    before = quick.snapshot(root)
    (root / "manifest.json").unlink()
    monkeypatch.setattr(
        "kdcache.precompute.bases.learn_bases",
        lambda *args, **kwargs: pytest.fail("learned again"),
    )
    assert build_cache(make_config(encoded_given(quick_data, root, "compact"))).num_samples == 0
    assert quick.snapshot(root) == before


@pytest.mark.parametrize("looked_too_early", [False, True])
def test_a_process_that_began_at_the_same_time_takes_the_basis_that_is_there(
    quick_data, tmp_path, monkeypatch, looked_too_early
):
    config = make_config(encoded_given(quick_data, tmp_path / "cache", "compact"))
    late = phase_one.prepare_job(config, Silent())  # before there is a cache
    finish = BasisLearner.finish
    monkeypatch.setattr(
        BasisLearner,
        "finish",
        lambda self, ranks: {k: v * (1 + 2e-7) for k, v in finish(self, ranks).items()},
    )
    before = {}

    def build_meanwhile(plan):
        if before:
            return adopt_bases(plan)
        monkeypatch.setattr(phase_one, "adopt_bases", adopt_bases)
        build_cache(config)
        monkeypatch.setattr(phase_one, "adopt_bases", build_meanwhile)
        before.update(quick.snapshot(config.cache.path))
        return plan if looked_too_early else adopt_bases(plan)

    adopt_bases = phase_one.adopt_bases
    monkeypatch.setattr(phase_one, "adopt_bases", build_meanwhile)
    adopted, missing = phase_one.open_job(late)
    assert not missing and adopted.manifest.identity == read_manifest(config.cache.path).identity
    assert quick.snapshot(config.cache.path) == before
    assert hash_basis(adopted.bases["low"]) != hash_basis(late.bases["low"])


def test_an_encoding_of_a_level_that_is_not_cached_is_refused(quick_data, tmp_path):
    given = merge(
        encoded_given(quick_data, tmp_path / "cache", {"low": "int8"}),
        {"cache": {"levels": ["high"]}},
    )
    with pytest.raises(SettingsError) as error:
        build_cache(make_config(given))
    check_one_line(
        error,
        "cache.encoding is {'low': 'int8'}, expected no low, which cache.levels does not have",
    )


def test_a_teacher_that_is_not_finite_is_met_while_a_basis_is_learned(
    quick_data, tmp_path, monkeypatch
):
    ask = quick.QuickTeacher.__call__
    monkeypatch.setattr(
        quick.QuickTeacher,
        "__call__",
        lambda self, images: {k: v / (k != "mid") for k, v in ask(self, images).items()},
    )
    with pytest.raises(TeacherError, match="sample '.*': teacher's mid is not finite"):
        build(quick_data, tmp_path / "cache", "compact")
