"""Interruption costs at most the groups in flight: SIGKILL at every step on the disk, and at random
moments.
"""

import shutil
import time

import numpy as np
import pytest

from kdcache.cache.leftovers import collect_leftovers
from kdcache.cache.reader import open_split
from kdcache.cache.unlisted import collect_unlisted, count_unlisted
from kdcache.cache.verify import verify_cache
from kdcache.data.sample_set import write_sample_set
from kdcache.data.voc import VOC_DIR
from tests.faults import children
from tests.faults.committed import committed_files
from tests.support import quick
from tests.support.effort import choose_steps, quick_and_full
from tests.support.helpers import write_list


def count_steps(monkeypatch, data_root, root, *, views: int = 1, **given) -> list[str]:
    """The names of all steps of an uninterrupted build."""
    with monkeypatch.context() as patch:
        steps = children.meet(children.kill, step=-2, setattr=patch.setattr)
        quick.build_quick(data_root, root, views=views, **given)
    shutil.rmtree(root)
    return steps


def check_goes_on(data_root, root, whole, *, views: int = quick.NUM_VIEWS, **given) -> None:
    """The rerun completes, keeps what was committed, and ends with the bytes of an uninterrupted
    build.
    """
    before = committed_files(root) if root.exists() else {}
    quick.build_quick(data_root, root, views=views, **given)
    after = committed_files(root)
    assert all(after[path] == facts for path, facts in before.items())
    assert quick.snapshot(root) == whole
    findings = verify_cache(root, data=True)
    assert not findings.damage and not findings.unwritten
    collect_leftovers(root)
    assert quick.snapshot(root) == whole and not any((root / "leases").iterdir())


@quick_and_full
def test_killed_at_any_step_a_build_goes_on_and_ends_with_the_same_bytes(
    quick_data, one_view, tmp_path, monkeypatch, effort
):
    root = tmp_path / "cache"
    steps = count_steps(monkeypatch, quick_data, root)
    assert len(steps) > 80 and set(steps) >= {"write_file", "rename", "make_folder", "sync_folder"}
    for step in choose_steps(steps, effort):
        write = steps[step] == "write_file"
        for fault in [children.kill, children.tear] if write else [children.kill]:
            given = quick.quick_given(quick_data, root, views=1)
            assert children.run(children.build, given, fault, step) == -9
            check_goes_on(quick_data, root, one_view, views=1)
            shutil.rmtree(root)


@pytest.mark.parametrize(
    "count",
    [
        4,
        pytest.param(10, marks=pytest.mark.nightly),
        pytest.param(200, marks=pytest.mark.exhaustive),
    ],
)
def test_killed_at_random_moments_again_and_again(quick_data, whole, tmp_path, count):
    """Each cache is killed until it is whole: what one process left is found by the next."""
    moments, root, kills = np.random.Generator(np.random.Philox(count)), tmp_path / "cache", 0
    while kills < count:
        writers = 1 + kills % 3
        child = children.start(
            children.build, quick.quick_given(quick_data, root), None, -1, writers
        )
        time.sleep(float(moments.uniform(0.0, 0.35)))
        child.kill()
        child.join()
        kills += child.exitcode == -9
        if child.exitcode == 0 or moments.random() < 0.2:
            check_goes_on(quick_data, root, whole)
            shutil.rmtree(root)


@quick_and_full
def test_killed_at_any_step_of_adding_unlabelled_images_a_cache_is_sound_and_goes_on(
    bare_data, tmp_path, monkeypatch, effort
):
    labelled, bare, root = (tmp_path / name for name in ("labelled", "bare", "cache"))
    quick.build_quick(bare_data, labelled, views=1)
    quick.build_quick(bare_data, bare, views=1, unlabelled="rest")
    shutil.copytree(labelled, root)
    steps = count_steps(monkeypatch, bare_data, root, unlabelled="rest")
    assert len(steps) > 50
    for step in choose_steps(steps, effort):
        shutil.copytree(labelled, root)
        with monkeypatch.context() as patch, pytest.raises(children.Killed):
            children.meet(children.die, step=step, setattr=patch.setattr)
            quick.build_quick(bare_data, root, views=1, unlabelled="rest")
        findings = verify_cache(root, data=True)
        assert not findings.damage, (steps[step], findings.damage)
        assert all(open_split(root, split) for split in ("train", "val"))
        check_goes_on(bare_data, root, quick.snapshot(bare), views=1, unlabelled="rest")
        shutil.rmtree(root)


@quick_and_full
def test_killed_at_any_step_of_adding_a_view_a_cache_is_sound_and_grows_later(
    quick_data, one_view, whole, tmp_path, monkeypatch, effort
):
    root = tmp_path / "cache"
    shutil.copytree(tmp_path / "one_view", root)
    steps = count_steps(monkeypatch, quick_data, root, views=2)
    assert len(steps) > 50
    for step in choose_steps(steps, effort):
        shutil.copytree(tmp_path / "one_view", root)
        with monkeypatch.context() as patch, pytest.raises(children.Killed):
            children.meet(children.die, step=step, setattr=patch.setattr)
            quick.build_quick(quick_data, root, views=2)
        findings = verify_cache(root, data=True)
        assert not findings.damage, (steps[step], findings.damage)
        assert all(open_split(root, split, num_views=1) for split in ("train", "val"))
        check_goes_on(quick_data, root, whole)
        shutil.rmtree(root)


@pytest.fixture
def growing(tmp_path) -> tuple:
    """A data set of 6 training images, 3 of them listed, and a cache of that list."""
    data, root = tmp_path / "data", tmp_path / "three"
    write_sample_set(data, num_train=6, num_val=2, size_px=48)
    ids = [f"sample_train_{number:04d}" for number in range(6)]
    write_list(data / VOC_DIR, "train", ids[:3])
    quick.build_quick(data, root, views=1)
    return data, root, ids


@quick_and_full
def test_killed_at_any_step_of_growing_a_cache_is_that_of_before_or_after(
    growing, tmp_path, monkeypatch, effort
):
    data, three, ids = growing
    root, lists = tmp_path / "cache", (ids[:3], [ids[4], ids[0], ids[2], ids[5]])
    write_list(data / VOC_DIR, "train", lists[1])
    grown = tmp_path / "grown"
    shutil.copytree(three, grown)
    quick.build_quick(data, grown, views=1)
    shutil.copytree(three, root)
    steps = count_steps(monkeypatch, data, root)
    for step in choose_steps(steps, effort):
        shutil.copytree(three, root)
        with monkeypatch.context() as patch, pytest.raises(children.Killed):
            children.meet(children.die, step=step, setattr=patch.setattr)
            quick.build_quick(data, root, views=1)
        findings = verify_cache(root, data=True)
        assert not findings.damage, (steps[step], findings.damage)
        assert open_split(root, "train").sample_ids in lists
        check_goes_on(data, root, quick.snapshot(grown), views=1)
        assert open_split(root, "train").sample_ids == lists[1]
        shutil.rmtree(root)


@quick_and_full
def test_killed_at_any_step_of_removing_unlisted_samples_all_listed_ones_are_there(
    growing, tmp_path, monkeypatch, effort
):
    data, three, ids = growing
    root, left = tmp_path / "cache", [ids[2], ids[0]]
    write_list(data / VOC_DIR, "train", left)
    quick.build_quick(data, three, views=1)
    expected = read_split(three)
    shutil.copytree(three, root)
    with monkeypatch.context() as patch:
        steps = children.meet(children.kill, step=-2, setattr=patch.setattr)
        collect_unlisted(root)
    shutil.rmtree(root)
    assert set(steps) >= {"write_file", "rename", "remove"}
    for step in choose_steps(steps, effort):
        shutil.copytree(three, root)
        with monkeypatch.context() as patch, pytest.raises(children.Killed):
            children.meet(children.die, step=step, setattr=patch.setattr)
            collect_unlisted(root)
        for _ in range(2):
            findings = verify_cache(root, data=True)
            assert not findings.damage, (steps[step], findings.damage)
            assert read_split(root) == expected
            collect_unlisted(root)
            collect_leftovers(root)
        assert count_unlisted(root) == 0 and not any((root / "leases").iterdir())
        records = (root / "commits").glob("train*.json")
        assert not any(ids[1].encode() in path.read_bytes() for path in records)
        named = {path.name.partition("-v")[0] for path in (root / "commits").glob("train*")}
        stored = {path.relative_to(root).parts[0] for path in root.glob("train*/image/c/*/*/0/0/0")}
        assert named == stored
        shutil.rmtree(root)


def read_split(root) -> list:
    reader = open_split(root, "train")
    images = [reader.read("image", 0, number).tobytes() for number in range(2)]
    return [reader.sample_ids, images]
