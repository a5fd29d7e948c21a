"""A first build that failed before anything was committed leaves its path free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from kdcache.cache.layout import COMMITS, MANIFEST
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config, merge
from kdcache.errors import CacheMismatchError, KdcacheError
from kdcache.precompute import build
from kdcache.precompute.build import build_cache
from kdcache.storage import open_storage
from tests.support import quick

CHANGES = {
    "teacher": {},
    "list": {"dataset": {"train_split": "val", "val_split": "train"}},
    "encoding": {"cache": {"encoding": "half"}},
    "lowrank": {"cache": {"encoding": "compact", "rank": {"low": 2, "mid": 2, "high": 2}}},
    "size": {"dataset": {"size": 48}},
    "levels": {"cache": {"levels": ["high"]}},
    "shard": {"cache": {"shard_samples": 1}},
}


class Silly(quick.QuickTeacher):
    """A teacher that cannot be stored: its file was damaged, say."""

    def __call__(self, image_NHWC):
        answer = super().__call__(image_NHWC)
        return {name: values * torch.inf for name, values in answer.items()}


def fail(config: object) -> None:
    """Build with a teacher that fails at the first group."""

    def make(config: object, **options: object):
        return Silly(options["num_classes"], options["levels"]), {"quick": torch.zeros(1)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_teacher", make)
        with pytest.raises(KdcacheError):
            build_cache(config)


@pytest.fixture
def given(quick_data, tmp_path, quick_teacher) -> dict:
    return quick.quick_given(quick_data, tmp_path / "cache")


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_mended_is_built_at_the_same_path(given, tmp_path, change):
    fail(make_config(given))
    root = tmp_path / "cache"
    assert (root / MANIFEST).exists() and not list((root / COMMITS).iterdir())
    mended = merge(given, CHANGES[change])
    build_cache(make_config(mended))
    assert not verify_cache(open_storage(root), data=True).damage
    elsewhere = merge(mended, {"cache": {"path": str(tmp_path / "elsewhere")}})
    build_cache(make_config(elsewhere))
    ours, theirs = (quick.snapshot(tmp_path / name) for name in ("cache", "elsewhere"))
    assert theirs.items() <= ours.items()
    assert {Path(name).name for name in ours.keys() - theirs.keys()} <= {"zarr.json"}


def test_other_answers_than_those_that_a_basis_was_learned_from(given, tmp_path):
    """The failed build had learned bases from its own teacher."""
    lowrank = merge(given, CHANGES["lowrank"])
    config = make_config(lowrank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_teacher", _make_louder)
        patch.setattr(build, "write_missing", _refuse)
        with pytest.raises(KdcacheError):
            build_cache(config)
    assert len(list((tmp_path / "cache").rglob("*_basis"))) == 3
    build_cache(config)
    build_cache(make_config(merge(lowrank, {"cache": {"path": str(tmp_path / "elsewhere")}})))
    ours, theirs = (quick.snapshot(tmp_path / name) for name in ("cache", "elsewhere"))
    assert ours == theirs


def _make_louder(config: object, **options: object):
    class Louder(quick.QuickTeacher):
        def __call__(self, image_NHWC):
            return {name: x * x for name, x in super().__call__(image_NHWC).items()}

    return Louder(options["num_classes"], options["levels"]), {"quick": torch.full((1,), 7.0)}


def _refuse(*args: object) -> None:
    raise KdcacheError("the disk is away")


def test_what_was_committed_keeps_the_path(given, tmp_path):
    build_cache(make_config(given))
    for record in sorted((tmp_path / "cache" / COMMITS).iterdir())[1:]:
        record.unlink()
    before = quick.snapshot(tmp_path / "cache")
    with pytest.raises(CacheMismatchError, match="rebuild it in another folder"):
        build_cache(make_config(merge(given, CHANGES["size"])))
    for record in (tmp_path / "cache" / COMMITS).iterdir():  # it was complete once
        record.unlink()
    with pytest.raises(CacheMismatchError, match="rebuild it in another folder"):
        build_cache(make_config(merge(given, CHANGES["size"])))
    assert quick.snapshot(tmp_path / "cache").keys() <= before.keys()


def test_what_another_process_is_writing_keeps_the_path(given, tmp_path):
    fail(make_config(given))
    with (
        open_storage(tmp_path / "cache").take_lease("val-v0000-g00000"),
        pytest.raises(CacheMismatchError, match="rebuild it in another folder"),
    ):
        build_cache(make_config(merge(given, CHANGES["size"])))
    build_cache(make_config(merge(given, CHANGES["size"])))


def test_unlabelled_images_of_which_nothing_was_stored_may_change(
    bare_data, tmp_path, quick_teacher
):
    given = quick.quick_given(bare_data, tmp_path / "cache")
    build_cache(make_config(given))
    before = quick.snapshot(tmp_path / "cache")
    folder = tmp_path / "more"
    folder.mkdir()
    rest = merge(given, {"dataset": {"unlabelled": "rest"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "write_missing", _refuse)
        with pytest.raises(KdcacheError):
            build_cache(make_config(rest))
    Image.new("RGB", (48, 40), (9, 8, 7)).save(folder / "new.jpg")
    build_cache(make_config(merge(given, {"dataset": {"unlabelled": str(folder)}})))
    after = quick.snapshot(tmp_path / "cache")
    assert before.items() <= {name: after[name] for name in before}.items()
    assert not verify_cache(open_storage(tmp_path / "cache"), data=True).damage
    with pytest.raises(CacheMismatchError):
        build_cache(make_config(rest))
