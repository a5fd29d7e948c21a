"""A data set that grows: what is new costs itself, and what was there stays as it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cache_teacher.cli
from kdcache.cache.manifest import read_manifest
from kdcache.cache.pack import pack_cache
from kdcache.cache.reader import open_split
from kdcache.cache.unpack import unpack_cache
from kdcache.cache.verify import verify_cache
from kdcache.config import Config
from kdcache.config.parser import make_config, merge
from kdcache.data.sample_set import write_sample_set
from kdcache.data.voc import VOC_DIR
from kdcache.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheMismatchError,
    OtherRunError,
    TeacherError,
)
from kdcache.machine.process import Worker
from kdcache.precompute import build
from kdcache.precompute.build import build_cache
from kdcache.precompute.repair import repair_cache
from kdcache.progress import Silent
from kdcache.report.cache_text import describe_cache
from kdcache.seals import seal_json
from kdcache.training.distill import distill
from kdcache.training.run_folder import read_result
from tests.support.helpers import check_one_line, write_list
from tests.support.quick import QuickTeacher, make_quick_teacher, quick_given, snapshot

IDS = {
    "train": [f"sample_train_{number:04d}" for number in range(24)],
    "val": [f"sample_val_{number:04d}" for number in range(6)],
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("growing")
    write_sample_set(root, num_train=24, num_val=6, size_px=48)
    return root


class World:
    """A data set whose lists a test writes, its cache, and what the teacher was asked about."""

    def __init__(self, data: Path, root: Path) -> None:
        self.data, self.root, self.asked = data, root, 0
        self.fail_after: int | None = None

    def list(self, **lists: list[str]) -> None:
        for name, ids in lists.items():
            write_list(self.data / VOC_DIR, name, ids)

    def build(self, root: Path | None = None, *, views: int = 2, **sections: dict) -> int:
        """Phase one; returns how many pictures the teacher was asked about."""
        before = self.asked
        build_cache(self.read_config(root, views=views, **sections))
        return self.asked - before

    def read_config(self, root: Path | None = None, *, views: int = 2, **sections: dict) -> Config:
        given = quick_given(self.data, root or self.root, views=views, unlabelled="more")
        return make_config(given, sections)

    def own_folder(self, name: str) -> Path:
        """A copy of a folder of pictures, which may be changed."""
        folder = self.data / VOC_DIR / name
        pictures = folder.resolve()
        folder.unlink()
        return Path(shutil.copytree(pictures, folder))

    def make_teacher(self, *args: object, **given: object):
        teacher, weights = make_quick_teacher(*args, **given)
        return Counted(self, teacher), weights


class Counted(QuickTeacher):
    def __init__(self, world: World, teacher: QuickTeacher) -> None:
        vars(self).update(vars(teacher))
        self.world = world

    def __call__(self, image_NHWC):
        if self.world.fail_after is not None and self.world.asked >= self.world.fail_after:
            raise TeacherError("the power is gone")
        self.world.asked += len(image_NHWC)
        return super().__call__(image_NHWC)


@pytest.fixture
def world(pictures, tmp_path, monkeypatch) -> World:
    """5 training images, 3 of val, 4 without label; the rest is in no list."""
    made = World(tmp_path / "data", tmp_path / "cache")
    (made.data / VOC_DIR).mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClass"):
        (made.data / VOC_DIR / folder).symlink_to(pictures / VOC_DIR / folder)
    (made.data / VOC_DIR / "ImageSets" / "Segmentation").mkdir(parents=True)
    made.list(train=IDS["train"][:5], val=IDS["val"][:3], more=IDS["train"][20:])
    monkeypatch.setattr(build, "build_teacher", made.make_teacher)
    return made


def swap(one: Path, other: Path) -> None:
    """Exchange the contents of two files."""
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


def read_everything(root: Path, split: str) -> dict[tuple, np.ndarray]:
    """(array, view, place in the list, id) -> what is read."""
    reader = open_split(root, split)
    return {
        (spec.name, view, number, id): reader.read(spec.name, view, number)
        for spec in reader.layout.arrays
        for view in range(reader.num_views)
        for number, id in enumerate(reader.sample_ids)
    }


def check_same(root: Path, other: Path) -> None:
    """Both caches are the same to whoever trains."""
    ours, theirs = read_manifest(root), read_manifest(other)
    assert ours.identity == theirs.identity and ours.identity_hash == theirs.identity_hash
    assert ours.listed == theirs.listed
    for split in theirs.identity:
        found, expected = read_everything(root, split), read_everything(other, split)
        assert list(found) == list(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


LISTS = {
    "train": (IDS["train"][:8], 3 * 2),
    "val": (IDS["val"], 3),
    "more": (IDS["train"][15:], 5 * 2),
}


@pytest.mark.parametrize("name", LISTS)
def test_images_that_are_appended_cost_themselves(world, name, tmp_path):
    world.build()
    before, (ids, asked) = snapshot(world.root), LISTS[name]
    world.list(**{name: ids})
    assert world.build() == asked
    after = snapshot(world.root)
    assert {file: after[file] for file in before} == before
    split = {"more": "unlabelled"}.get(name, name)
    assert all(f"{split}_2" in file for file in after.keys() - before.keys())
    assert world.build() == 0 and snapshot(world.root) == after
    assert world.build(tmp_path / "anew") > asked
    check_same(world.root, tmp_path / "anew")
    findings = verify_cache(world.root, data=True)
    assert not findings.damage and not findings.unwritten


def test_all_three_lists_grow_at_once_and_again(world, tmp_path):
    """In the middle of the list, and in another order: training has today's order."""
    world.build()
    world.list(train=[IDS["train"][7], *IDS["train"][:6]], val=IDS["val"][::-1][:5])
    world.list(more=IDS["train"][18:])
    assert world.build() == 2 * 2 + 3 + 2 * 2
    last = {"train": IDS["train"][9::-1], "val": IDS["val"], "more": IDS["train"][16:][::-1]}
    world.list(**last)
    assert world.build() == 3 * 2 + 2 * 2
    assert open_split(world.root, "train").sample_ids == last["train"]
    assert read_manifest(world.root).format_version == 5
    world.build(tmp_path / "anew")
    check_same(world.root, tmp_path / "anew")


def test_a_split_that_is_not_asked_for_stays_as_it_is(world):
    world.build()
    world.list(more=IDS["train"][19:])
    world.fail_after = world.asked + 1
    with pytest.raises(TeacherError):
        world.build()
    world.fail_after = None
    before = read_manifest(world.root)
    world.list(train=IDS["train"][:6])
    assert world.build(dataset={"unlabelled": None}) == 2
    after = read_manifest(world.root)
    assert after.growing == before.growing and after.lists["train"].num_samples == 6
    assert after.information["settings"]["dataset"]["unlabelled"] == "more"
    assert world.build() == 1  # the second view, before which it had broken off
    assert open_split(world.root, "unlabelled").sample_ids == IDS["train"][19:]


def test_views_can_be_added_to_a_cache_that_grew(world, tmp_path):
    world.build()
    world.list(train=IDS["train"][:8])
    world.build()
    assert world.build(views=3) == 8 + 4
    world.list(train=IDS["train"][:9])
    assert world.build() == 3  # as many views as the others have
    world.build(tmp_path / "anew", views=3)
    check_same(world.root, tmp_path / "anew")


def test_a_growth_that_breaks_off_leaves_the_cache_of_before(world, tmp_path):
    world.build()
    before, identity = read_everything(world.root, "train"), read_manifest(world.root).identity_hash
    reader = open_split(world.root, "train")
    world.list(train=IDS["train"][:11])
    world.fail_after = world.asked + 5
    with pytest.raises(TeacherError):
        world.build()
    world.fail_after = None
    found = read_everything(world.root, "train")
    assert list(found) == list(before) and read_manifest(world.root).identity_hash == identity
    findings = verify_cache(world.root, data=True)
    assert not findings.damage and {g.split for g in findings.unwritten} == {"train_2"}
    kept = snapshot(world.root)
    assert world.build() == 6 * 2 - 6  # three groups of two were committed
    assert {name: snapshot(world.root)[name] for name in kept} == kept
    assert len(open_split(world.root, "train").sample_ids) == 11
    assert np.array_equal(reader.read("image", 1, 3), found["image", 1, 3, IDS["train"][3]])
    world.build(tmp_path / "anew")
    check_same(world.root, tmp_path / "anew")


def test_an_image_that_is_taken_out_stays_until_it_comes_back(world, tmp_path):
    world.build()
    before = snapshot(world.root)
    world.list(train=[*IDS["train"][:2], IDS["train"][3]], val=IDS["val"][1:3])
    assert world.build() == 0 and snapshot(world.root) == before
    world.build(tmp_path / "anew")
    check_same(world.root, tmp_path / "anew")
    world.list(train=IDS["train"][:5])
    assert world.build() == 0 and snapshot(world.root) == before


def test_a_picture_that_is_gone_needs_no_file(world, tmp_path):
    images = world.own_folder("JPEGImages")
    world.build()
    (images / f"{IDS['train'][1]}.jpg").unlink()
    world.list(train=[*IDS["train"][2:7], IDS["train"][0]])
    assert world.build() == 2 * 2
    world.build(tmp_path / "anew")
    check_same(world.root, tmp_path / "anew")


@pytest.mark.parametrize("codec", ["raw", "blosc-zstd"])
@pytest.mark.parametrize("grown", [False, True], ids=["plain", "grown"])
def test_a_changed_image_or_label_is_asked_about_again_and_no_other(world, tmp_path, grown, codec):
    given = {"cache": {"codec": codec}}
    images, labels = world.own_folder("JPEGImages"), world.own_folder("SegmentationClass")
    world.build(**given)
    if grown:
        world.list(train=IDS["train"][:6])
        world.build(**given)
    swap(images / f"{IDS['train'][1]}.jpg", images / f"{IDS['train'][10]}.jpg")
    swap(labels / f"{IDS['train'][3]}.png", labels / f"{IDS['train'][11]}.png")
    swap(images / f"{IDS['train'][21]}.jpg", images / f"{IDS['train'][12]}.jpg")
    before = snapshot(world.root)
    assert world.build(**given) == 2 * 2 + 2
    after = snapshot(world.root)
    assert {name: after[name] for name in before} == before
    world.build(tmp_path / "anew", **given)
    check_same(world.root, tmp_path / "anew")
    swap(images / f"{IDS['train'][1]}.jpg", images / f"{IDS['train'][10]}.jpg")
    world.list(train=IDS["train"][:3])
    assert world.build(**given) == 0  # the image of before is there


def gc(root: Path, *options: str) -> None:
    assert cache_teacher.cli.main(["gc", str(root), "--unlisted", *options]) == 0


def find_stored(root: Path) -> set[str]:
    """Ids in all records."""
    records = (root / "commits").glob("*.json")
    return {id for path in records for id in json.loads(path.read_text())["sample_ids"]}


@pytest.mark.parametrize("codec", ["raw", "blosc-zstd"])
def test_gc_removes_what_is_not_listed_and_asks_no_teacher(world, tmp_path, capsys, codec):
    given = {"cache": {"codec": codec}}
    world.build(**given)
    world.list(train=IDS["train"][:7])
    world.build(**given)
    gone = {IDS["train"][1], IDS["train"][4], IDS["train"][20], IDS["train"][21]}
    world.list(train=[id for id in IDS["train"][:7] if id not in gone], more=IDS["train"][22:])
    assert world.build(**given) == 0 and gone < find_stored(world.root)
    before, asked = snapshot(world.root), world.asked
    gc(world.root, "--dry-run")
    assert "4 samples that are not listed" in (dry := capsys.readouterr().out)
    assert snapshot(world.root) == before
    gc(world.root)
    assert capsys.readouterr().out.splitlines()[0] == dry.splitlines()[0].replace("would be ", "")
    assert world.asked == asked and not gone & find_stored(world.root)
    assert not any(id.encode() in (world.root / "manifest.json").read_bytes() for id in gone)
    findings = verify_cache(world.root, data=True)
    assert not findings.damage and not findings.unwritten
    assert describe_cache(world.root)["splits"]["train"]["not_listed"] == 0
    assert world.build(tmp_path / "anew", **given) == 5 * 2 + 3 + 2 * 2
    check_same(world.root, tmp_path / "anew")
    assert sum(map(len, snapshot(world.root, documents=False).values())) < sum(
        len(data) for name, data in before.items() if not name.endswith(".json")
    )
    assert world.build(**given) == 0
    world.list(train=IDS["train"][:7])
    assert world.build(**given) == 2 * 2  # what was removed costs itself again
    assert open_split(world.root, "train").sample_ids == IDS["train"][:7]


@pytest.mark.parametrize("count", [80, pytest.param(400, marks=pytest.mark.nightly)])
def test_ten_images_more_cost_ten_images(tmp_path, monkeypatch, count):
    """In questions, and in bytes of shards and records, where every sample has its part."""
    world = World(tmp_path / "data", tmp_path / "cache")
    write_sample_set(world.data, num_train=count + 10, num_val=2, size_px=48)
    monkeypatch.setattr(build, "build_teacher", world.make_teacher)
    given = {"cache": {"shard_samples": 16}, "dataset": {"unlabelled": None}}
    ids = [f"sample_train_{number:04d}" for number in range(count + 10)]
    world.list(train=ids[:count])
    assert world.build(**given, views=1) == count + 2
    whole = snapshot(world.root)
    part = sum(len(data) for name, data in whole.items() if "train" in name) * 10 / count
    world.list(train=ids)
    assert world.build(**given, views=1) == 10
    grown = snapshot(world.root)
    assert {name: grown[name] for name in whole} == whole
    added = [name for name in grown.keys() - whole.keys() if not name.endswith("zarr.json")]
    assert sum(len(grown[name]) for name in added) == pytest.approx(part, rel=0.1)


def test_a_list_with_nothing_in_common_is_another_cache(world):
    world.build()
    before = snapshot(world.root)
    for name, ids in (("train", IDS["train"][7:9]), ("val", IDS["val"][4:])):
        world.list(**{name: ids})
        with pytest.raises(CacheMismatchError) as error:
            world.build()
        check_one_line(error, "dataset.sha256 is", "; rebuild it in another folder")
        world.list(train=IDS["train"][:5])
    assert snapshot(world.root) == before and read_manifest(world.root).format_version == 4


def test_another_setting_is_refused_whatever_the_list(world):
    world.build()
    world.list(train=IDS["train"][:7])
    with pytest.raises(CacheMismatchError, match="augment.scale_max"):
        world.build(augment={"scale_max": 1.5})


def test_two_that_add_other_images_at_once_both_do(world, monkeypatch, tmp_path):
    """The second looks at the cache before the first has added its part."""
    world.build()
    config = world.read_config()
    world.list(train=IDS["train"][:7])
    first = build.prepare_job(config, Silent())
    world.list(train=[*IDS["train"][:5], IDS["train"][6], IDS["train"][9]])
    second = build.prepare_job(config, Silent())
    plan, turns = build.follow_lists, iter([first])

    def plan_late(job, progress):
        planned = plan(job, progress)
        for other in turns:
            with monkeypatch.context() as patch:
                patch.setattr(build, "follow_lists", plan)
                finish(build.open_job(other), config)
        return planned

    monkeypatch.setattr(build, "follow_lists", plan_late)
    job, missing = build.open_job(second)
    assert {group.split for group in missing} == {"train_3"}
    finish((job, missing), config)
    assert open_split(world.root, "train").sample_ids == [
        *IDS["train"][:5], IDS["train"][6], IDS["train"][9]
    ]  # fmt: skip
    assert set(read_manifest(world.root).layouts) >= {"train_2", "train_3"}
    world.build(tmp_path / "anew")
    check_same(world.root, tmp_path / "anew")


def finish(opened: tuple, config) -> None:
    job, missing = opened
    build.write_missing(job, missing, Worker(), lambda group, size_bytes: None)
    build.finish_cache(config, Worker(), Silent())


def test_workers_share_what_is_new(world, monkeypatch, tmp_path):
    world.build()
    world.list(train=IDS["train"][:15])
    counts = []
    for rank in ("1", "0"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.setenv("SLURM_NTASKS", "2")
        counts.append(world.build())
    assert sum(counts) == 20 and counts[0] > 0
    monkeypatch.delenv("SLURM_PROCID")
    monkeypatch.delenv("SLURM_NTASKS")
    assert open_split(world.root, "train").sample_ids == IDS["train"][:15]
    assert "scored_views" in read_manifest(world.root).information


@pytest.mark.parametrize("codec", ["raw", "blosc-zstd"])
def test_a_packed_cache_is_the_one_of_todays_lists(world, tmp_path, codec):
    given = {"cache": {"codec": codec}}
    world.build(**given)
    world.list(train=[IDS["train"][6], *IDS["train"][:4]], val=IDS["val"][:4])
    world.build(**given)
    pack_cache(world.root, tmp_path / "one.h5")
    unpack_cache(tmp_path / "one.h5", tmp_path / "back")
    world.build(tmp_path / "anew", **given)
    assert snapshot(tmp_path / "back") == snapshot(tmp_path / "anew")
    check_same(tmp_path / "one.h5", tmp_path / "anew")
    assert read_manifest(tmp_path / "back").format_version == 4
    pack_cache(world.root, tmp_path / "less.h5", levels=["high"], num_views=1)
    assert not verify_cache(tmp_path / "less.h5", data=True).damage


def test_repair_mends_a_part_and_takes_back_what_it_cannot(world, tmp_path):
    world.build()
    world.list(train=[IDS["train"][0], *IDS["train"][2:8]])
    world.build()
    before = snapshot(world.root)
    damage(world.root / "train_2/image/c/1/0/0/0/0")
    damage(world.root / "train/low/c/0/0/0/0/0")  # of the first two; one is not listed
    done = repair_cache(world.root, {})
    assert [group.name for group in done.groups] == ["train_2-v0001-g00000"]
    assert [group.name for group in done.left] == ["train-v0000-g00000"]
    after = snapshot(world.root)
    assert all(after[name] == before[name] for name in before if "train_2" in name)
    with pytest.raises(CacheIncompleteError):
        open_split(world.root, "train")
    assert world.build() == 2  # both views of the one that is listed
    world.build(tmp_path / "anew")
    check_same(world.root, tmp_path / "anew")
    assert not verify_cache(world.root, data=True).damage


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def test_info_and_view_show_the_samples_of_today(world, capsys, tmp_path):
    world.build()
    world.list(train=IDS["train"][2:9])
    world.build()
    assert cache_teacher.cli.main(["info", str(world.root)]) == 0
    out = capsys.readouterr().out
    assert "train: 7 samples x 2 views" in out and "complete" in out
    assert "parts: train 5, train_2 4; 2 of these samples are not listed" in out
    page = tmp_path / "train.html"
    options = ["--split", "train", "--out", str(page), "--samples", "7"]
    assert cache_teacher.cli.main(["view", str(world.root), *options]) == 0
    shown = page.read_text()
    assert IDS["train"][8] in shown and IDS["train"][0] not in shown


@pytest.mark.parametrize(
    "change",
    [
        lambda lists, splits: lists["train"]["rows"].append("train 4:5"),
        lambda lists, splits: lists["train"]["rows"].append("train_2 1:9"),
        lambda lists, splits: lists["train"]["rows"].append("val 0:1"),
        lambda lists, splits: lists["train"].update(rows=[]),
        lambda lists, splits: lists["train"].update(sha256="0" * 63),
        lambda lists, splits: lists.update(other=lists["train"]),
        lambda lists, splits: splits["train_2"].pop("identity"),
        lambda lists, splits: splits["train_2"]["identity"]["dataset"].update(num_classes=7),
        lambda lists, splits: splits["train_2"]["samples"].pop(),
        lambda lists, splits: splits["train"]["samples"].__setitem__(0, "../x"),
        lambda lists, splits: splits["train_2"].update(shard_samples=5),
    ],
)
def test_lists_that_cannot_be_are_damage(world, change):
    world.build()
    world.list(train=IDS["train"][1:7])
    world.build()
    path = world.root / "manifest.json"
    document = json.loads(path.read_text())
    document.pop("sha256")
    change(document["lists"], document["splits"])
    path.write_bytes(seal_json(document))
    with pytest.raises(CacheCorruptError, match="manifest is damaged"):
        read_manifest(world.root)


@pytest.mark.nightly
def test_a_student_learns_the_same_as_from_a_cache_of_today(world, tmp_path):
    world.build()
    given = quick_given(world.data, world.root)
    first = train(given, tmp_path / "first")
    world.list(train=[*IDS["train"][6:4:-1], *IDS["train"][:4]], val=IDS["val"][1:5])
    world.build()
    with pytest.raises(OtherRunError, match="cache identity is"):
        train(given, tmp_path / "first")
    world.build(tmp_path / "anew")
    losses = list_losses(first)
    ours, theirs = train(given, tmp_path / "ours"), train(given, tmp_path / "theirs", "anew")
    assert list_losses(ours) == list_losses(theirs) != losses
    results = [read_result(folder) for folder in (first, ours, theirs)]
    for name in ("cache_identity", "pictures_identity", "validation_identity"):  # for `compare`
        before, *today = (result[name] for result in results)
        assert today[0] == today[1] != before
    world.list(train=IDS["train"][:5], val=IDS["val"][:3])
    assert world.build() == 0
    assert list_losses(train(given, tmp_path / "first")) == losses  # the same list: the same run


def train(given: dict, folder: Path, cache: str = "cache") -> Path:
    """A run without a baseline, gone on with if it is there; returns its folder."""
    own = {"run": {"dir": str(folder), "baseline": False, "resume": True}}
    root = folder.parent / cache
    wanted = merge(given, {**own, "cache": {"path": str(root)}, "loss": {"gamma": 0.0}})
    return distill(wanted, root=root).folder


def list_losses(folder: Path) -> list:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(entry["total"], entry["miou"]) for entry in map(json.loads, lines)]
