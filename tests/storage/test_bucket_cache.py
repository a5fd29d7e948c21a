"""A cache in a bucket is the one in a folder: built, grown, read, verified, repaired, tidied."""

import json
from dataclasses import replace

import pytest

from cache_teacher.cli import main as cache_teacher
from kdcache.cache.layout import commit_key, shard_key
from kdcache.cache.lifecycle import complete_views, open_for_writing
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config, merge
from kdcache.errors import CacheCorruptError, CacheError, CacheMismatchError, SettingsError
from kdcache.precompute.build import build_cache, prepare_job
from kdcache.precompute.repair import repair_cache
from kdcache.progress import Silent
from kdcache.storage import open_storage
from tests.support import quick
from tests.support.helpers import check_one_line
from tests.support.stored import read_all
from train_student.cli import main as train_student

RANKS = {"low": 2, "mid": 3, "high": 4}
pytestmark = pytest.mark.usefixtures("quick_teacher")


@pytest.fixture
def local(quick_data, tmp_path):
    """The settings of the same cache in a folder."""
    return quick.build_quick(quick_data, tmp_path / "local")


def test_a_cache_in_a_bucket_has_the_bytes_of_one_in_a_folder(quick_data, bucket, local):
    quick.build_quick(quick_data, bucket)
    assert read_all(bucket) == read_all(local.cache.path)
    found, expected = read_manifest(bucket), read_manifest(local.cache.path)
    assert found.identity == expected.identity and found.complete_views == expected.complete_views
    findings = verify_cache(bucket, data=True)
    assert not findings.damage and findings.num_groups == len(quick.GROUPS)


def test_a_compact_cache_in_a_bucket_has_the_same_bytes(quick_data, bucket, tmp_path):
    roots = bucket, tmp_path / "local"
    for root in roots:
        given = merge(
            quick.quick_given(quick_data, root), {"cache": {"encoding": "compact", "rank": RANKS}}
        )
        build_cache(make_config(given))
        build_cache(make_config(given))
    assert read_all(bucket) == read_all(roots[1]) and "train/low_basis/c/0/0" in read_all(bucket)
    bases = [CacheReader(root, read_manifest(root), "train").bases for root in roots]
    assert all((bases[0][level] == bases[1][level]).all() for level in RANKS)


def test_views_are_added_in_a_bucket(quick_data, bucket, local):
    quick.build_quick(quick_data, bucket, views=1)
    before = read_all(bucket)
    quick.build_quick(quick_data, bucket)
    after = read_all(bucket)
    assert after == read_all(local.cache.path)
    assert all(
        after[name] == data for name, data in before.items() if not name.endswith("zarr.json")
    )


def test_unlabelled_images_are_added_in_a_bucket(bare_data, bucket, tmp_path):
    local = tmp_path / "bare"
    quick.build_quick(bare_data, local, unlabelled="rest")
    quick.build_quick(bare_data, bucket)
    before = read_all(bucket)
    quick.build_quick(bare_data, bucket, unlabelled="rest")
    after = read_all(bucket)
    assert after == read_all(local) and before.items() <= after.items()
    findings = verify_cache(bucket, data=True)
    assert not findings.damage and findings.num_groups == len(quick.GROUPS) + 4
    repair_cache(bucket, {})
    far, near = (CacheReader(root, read_manifest(root), "unlabelled") for root in (bucket, local))
    assert (far.read("low", 1, 2) == near.read("low", 1, 2)).all()


def test_every_sample_read_from_a_bucket_is_that_of_the_folder(quick_data, bucket, local):
    quick.build_quick(quick_data, bucket)
    for split in ("train", "val"):
        far, near = (
            CacheReader(root, read_manifest(root), split) for root in (bucket, local.cache.path)
        )
        for spec in near.layout.arrays:
            for view in range(near.num_views):
                for sample in range(near.layout.num_samples):
                    assert (
                        far.read(spec.name, view, sample) == near.read(spec.name, view, sample)
                    ).all()


def test_both_programs_and_the_commands_take_a_bucket(quick_data, bucket, local, tmp_path, capsys):
    quick.build_quick(quick_data, bucket)
    assert cache_teacher(["info", str(bucket), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert cache_teacher(["info", str(local.cache.path), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert found["splits"] == expected["splits"] and found["path"] == str(bucket)
    assert cache_teacher(["verify", str(bucket), "--data"]) == 0
    assert cache_teacher(["info", str(bucket), "--watch", "0.1"]) == 0
    runs = {}
    for name, root in (("far", bucket), ("near", local.cache.path)):
        given = [
            "--cache.path",
            str(root),
            "--train.epochs",
            "1",
            "--train.batch_size",
            "2",
            "--student.pretrained",
            "false",
            "--student.aspp_channels",
            "16",
            "--run.dir",
            str(tmp_path / name / "run"),
        ]
        assert train_student([*given, "--train.device", "cpu"]) == 0
        runs[name] = json.loads((tmp_path / name / "run" / "metrics.jsonl").read_text())
    assert {key: runs["far"][key] for key in ("total", "miou")} == {
        key: runs["near"][key] for key in ("total", "miou")
    }
    assert "cache.stage_dir would keep local copies" in capsys.readouterr().out


def test_damage_in_a_bucket_is_found_refused_and_repaired(quick_data, bucket):
    config = quick.build_quick(quick_data, bucket)
    layout, whole = read_manifest(bucket).layouts["train"], read_all(bucket)
    group = layout.group(1, 0)
    path = bucket.object(shard_key(layout.array("logits"), group))
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.put(bytes(data))
    bucket.object(commit_key(layout.group(0, 1))).remove()
    damaged = {
        (damage.group.name, damage.array) for damage in verify_cache(bucket, data=True).damage
    }
    assert damaged == {(group.name, "logits"), (layout.group(0, 1).name, None)}
    done = repair_cache(bucket, {"dataset": {"root": str(config.dataset.root)}})
    assert [one.name for one in done.groups] == [layout.group(0, 1).name, group.name]
    assert read_all(bucket) == whole
    path.put(bytes(data))
    with pytest.raises(CacheCorruptError) as error:
        CacheReader(bucket, read_manifest(bucket), "train").read("logits", 1, 0)
    check_one_line(error, str(path), "view 1", "its checksum differs", f"repair {bucket}")


def test_a_worker_on_a_gpu_is_named_in_a_bucket_that_a_cpu_began(quick_data, bucket):
    quick.build_quick(quick_data, bucket, views=1)
    manifest = read_manifest(bucket)
    machine = {**manifest.information, "device": "Some GPU"}
    for _ in range(2):
        open_for_writing(bucket, replace(manifest, information=machine))
    assert read_manifest(bucket).information["devices"] == ["Some GPU", "cpu"]


def test_gc_removes_shards_without_record_from_a_bucket(quick_data, bucket, capsys, monkeypatch):
    monkeypatch.setattr("kdcache.storage.bucket_lease.LOST_S", 0.2)  # of a dead lease, not 90 s
    quick.build_quick(quick_data, bucket, views=1)
    layout = read_manifest(bucket).layouts["train"]
    config = make_config(quick.quick_given(quick_data, bucket))
    open_for_writing(bucket, prepare_job(config, Silent()).manifest)
    lost = bucket.object(
        shard_key(layout.array("image"), read_manifest(bucket).layouts["train"].group(1, 0))
    )
    lost.put(b"what a killed run left")
    foreign = bucket.object("notes.txt")
    foreign.put(b"mine")
    dead = bucket.object("leases/documents")
    dead.put(b"of a dead process")
    assert cache_teacher(["gc", str(bucket), "--dry-run"]) == 0 and lost.exists()
    assert cache_teacher(["gc", str(bucket)]) == 0
    assert not lost.exists() and not dead.exists() and foreign.exists()
    assert "2 files, 0.0 MB removed" in capsys.readouterr().out
    build_cache(config)
    assert not verify_cache(bucket, data=True).damage


def test_another_cache_in_a_bucket_is_refused(quick_data, bucket):
    quick.build_quick(quick_data, bucket)
    other = make_config(quick.quick_given(quick_data, bucket), {"augment": {"seed": 5}})
    with pytest.raises(CacheMismatchError) as error:
        build_cache(other)
    check_one_line(error, str(bucket), "augment.seed is 0, expected 5")


def test_foreign_objects_are_no_cache(quick_data, bucket):
    bucket.object("photo.jpg").put(b"mine")
    with pytest.raises(
        CacheMismatchError, match="manifest.json is missing, expected a kdcache cache"
    ):
        quick.build_quick(quick_data, bucket)
    assert list(read_all(bucket)) == ["photo.jpg"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "ftp://host/x",
            "cache.path is 'ftp://host/x', expected a path, or an address that begins with s3://",
        ),
        ("s3://", "cache.path is 's3://', expected s3://BUCKET/KEY"),
        (
            "s3:/bucket/x",
            "cache.path is 's3:/bucket/x', expected s3://BUCKET/KEY, with two slashes",
        ),
    ],
)
def test_addresses_of_another_kind_are_refused(address, words):
    with pytest.raises(SettingsError) as error:
        open_storage(address)
    check_one_line(error, words)


def test_a_bucket_that_is_not_there_is_one_line(quick_data, bucket, capsys):
    address = "s3://bucket-of-nobody/cache"
    assert cache_teacher(["info", address]) == 1
    line = (
        "s3://bucket-of-nobody: manifest cannot be looked for "
        "(bucket is not there: make it, or mend its name); mend that"
    )
    assert line in capsys.readouterr().err
    with pytest.raises(CacheError) as error:
        quick.build_quick(quick_data, open_storage(address))
    check_one_line(error, line)


def test_a_worker_that_finds_everything_ready_takes_no_lease_for_documents(
    quick_data, bucket, monkeypatch
):
    config = quick.build_quick(quick_data, bucket)
    manifest = read_manifest(bucket)
    taken = []
    monkeypatch.setattr(
        "kdcache.storage.bucket.take_object_lease", lambda *args, **_: taken.append(args)
    )
    assert (
        open_for_writing(bucket, prepare_job(config, Silent()).manifest)
        == manifest
        == complete_views(bucket)
    )
    assert taken == []
