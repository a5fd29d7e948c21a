"""A store that fails: 5xx, throttling, lost answers, cut connections, slow ones. Nothing wrong is
written or read.
"""

import json
import sys

import pytest

from cache_teacher.cli import main as cache_teacher
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.verify import verify_cache
from kdcache.errors import CacheError, KdcacheError, SettingsError
from kdcache.storage import open_storage
from kdcache.storage.bucket_client import BucketObject
from tests.support import quick
from tests.support.helpers import check_one_line
from tests.support.s3_server import ANSWERS, CREDENTIALS, Faults
from tests.support.stored import read_all
from train_student.cli import main as train_student

pytestmark = pytest.mark.usefixtures("quick_teacher")


@pytest.fixture
def local(quick_data, tmp_path):
    return quick.build_quick(quick_data, tmp_path / "local").cache.path


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("kdcache.storage.bucket_client.PAUSES_S", (0.01, 0.01, 0.01, 0.01, None))


@pytest.mark.parametrize("kind", Faults.KINDS)
def test_a_cache_is_built_and_read_through_faults_of_each_kind(kind, quick_data, use_server, local):
    faults = Faults(0.1, seed=3, kinds=(kind,))
    bucket = use_server(faults)
    quick.build_quick(quick_data, bucket)
    reader, near = (
        CacheReader(root, read_manifest(root), "train", check="always") for root in (bucket, local)
    )
    for view in range(near.num_views):
        for sample in range(near.layout.num_samples):
            for spec in near.layout.arrays:
                assert (
                    reader.read(spec.name, view, sample) == near.read(spec.name, view, sample)
                ).all()
    assert faults.counts[kind] >= 3
    faults.share = 0.0
    assert read_all(bucket) == read_all(local) and not verify_cache(bucket, data=True).damage


def test_training_through_faults_has_the_losses_of_the_folder(
    quick_data, use_server, local, tmp_path
):
    faults = Faults(0.05, seed=1)
    bucket = use_server(faults)
    quick.build_quick(quick_data, bucket)
    losses = []
    for name, root in (("far", bucket), ("near", local)):
        given = [
            "--cache.path",
            str(root),
            "--train.epochs",
            "4",
            "--train.batch_size",
            "2",
            "--student.pretrained",
            "false",
            "--student.aspp_channels",
            "16",
            "--run.dir",
            str(tmp_path / name / "run"),
        ]
        assert train_student([*given, "--train.device", "cpu", "--run.baseline", "false"]) == 0
        lines = (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()
        losses.append([(entry["total"], entry["miou"]) for entry in map(json.loads, lines)])
    assert losses[0] == losses[1] and sum(faults.counts[kind] for kind in faults.kinds) > 10


@pytest.mark.parametrize(
    ("kind", "asked_again"),
    [
        ("range", False),
        ("large", False),
        ("unknown", False),
        ("throttled", True),
        ("late", True),
        ("error", True),
    ],
)
def test_only_answers_that_may_change_are_asked_for_again(
    kind, asked_again, use_server, caplog, monkeypatch
):
    monkeypatch.setattr("kdcache.storage.bucket_client._RETRIES", {"max_retries": 0})
    bucket = use_server(faults := Faults(1.0, kinds=(kind,)))
    with pytest.raises(
        OSError,
        match=f"the store does not answer as it should: {ANSWERS[kind][0]} .*{ANSWERS[kind][1]}",
    ):
        bucket.object("x").read_bytes()
    assert faults.counts["all"] == (5 if asked_again else 1)
    assert caplog.text.count("trying again in") == faults.counts["all"] - 1


def test_a_shard_larger_than_one_put_is_refused_before_it_is_sent(
    quick_data, use_server, local, monkeypatch
):
    bucket = use_server(faults := Faults(0.0))
    bucket.object("x").create(b"1")
    sent = faults.counts["all"]
    monkeypatch.setattr("kdcache.storage.bucket_client.MOST_PUT_BYTES", 20)
    for put in (
        BucketObject.put,
        BucketObject.create,
        lambda path, data: path.replace(data, tag=("a", None)),
    ):
        with pytest.raises(
            OSError,
            match=r"object is 2.1e-08 GB, expected 2e-08 GB at most; lower cache.shard_samples",
        ):
            put(bucket.object("x"), bytes(21))
    assert faults.counts["all"] == sent
    bucket.object("x").remove()
    largest = max(path.stat().st_size for path in local.rglob("c/*/*/*/*/*"))
    monkeypatch.setattr("kdcache.storage.bucket_client.MOST_PUT_BYTES", largest - 1)
    with pytest.raises(CacheError) as error:
        quick.build_quick(quick_data, bucket)
    check_one_line(
        error, "shard group", "GB at most; lower cache.shard_samples, in a new cache.path"
    )


@pytest.mark.parametrize(
    ("missing", "named"), [("obstore.store", "obstore"), ("boto3.session", "boto3")]
)
def test_a_missing_package_is_one_line(missing, named, use_server, monkeypatch):
    bucket = use_server()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SettingsError) as error:
        bucket.exists("")
    check_one_line(
        error,
        f"{bucket.bucket}: {named} is not installed, expected it for object stores",
        "kdcache[s3]",
    )


@pytest.mark.parametrize("kind", ["endpoint", "address"])
def test_a_password_in_an_address_is_never_printed(kind, monkeypatch, capsys, caplog):
    monkeypatch.setattr("kdcache.storage.bucket_client._RETRIES", {"max_retries": 0})
    monkeypatch.setattr("kdcache.storage.bucket_client.PAUSES_S", (0.0, None))
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:p@ssw0rd@127.0.0.1:9")
    place = "s3://nobody-listens/cache" if kind == "endpoint" else "s3://me:p@ssw0rd@bucket/cache"
    assert cache_teacher(["info", place]) in (1, 2)
    out, err = capsys.readouterr()
    assert "***@" in err and "ssw0rd" not in out + err + caplog.text
    with pytest.raises(KdcacheError) as error:
        read_manifest(open_storage(place))
    assert "ssw0rd" not in str(error.value)
