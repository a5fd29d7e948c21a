"""A store that fails: 5xx, throttling, lost answers, cut connections, slow ones. Nothing wrong is written or read."""

import json

import pytest
import quick
from s3_server import Faults
from test_bucket_cache import read_all

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.verify import verify_cache
from train_student.cli import main as train_student

pytestmark = pytest.mark.usefixtures("quick_teacher")


@pytest.fixture
def local(quick_data, tmp_path):
    return quick.build_quick(quick_data, tmp_path / "local").cache.path


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("kdcache.objects.client.PAUSES_S", (0.01, 0.01, 0.01, 0.01, None))


@pytest.mark.parametrize("kind", Faults.KINDS)
def test_a_cache_is_built_and_read_through_faults_of_each_kind(kind, quick_data, use_server, local):
    faults = Faults(0.1, seed=3, kinds=(kind,))
    bucket = use_server(faults)
    quick.build_quick(quick_data, bucket)
    reader, near = (CacheReader(root, read_manifest(root), "train", check="always") for root in (bucket, local))
    for view in range(near.num_views):
        for sample in range(near.layout.num_samples):
            for spec in near.layout.arrays:
                assert (reader.read(spec.name, view, sample) == near.read(spec.name, view, sample)).all()
    assert faults.counts[kind] >= 3
    faults.share = 0.0
    assert read_all(bucket) == read_all(local) and not verify_cache(bucket, data=True).damage


def test_training_through_faults_has_the_losses_of_the_folder(quick_data, use_server, local, tmp_path):
    faults = Faults(0.05, seed=1)
    bucket = use_server(faults)
    quick.build_quick(quick_data, bucket)
    losses = []
    for name, root in (("far", bucket), ("near", local)):
        given = ["--cache.path", str(root), "--train.epochs", "4", "--train.batch_size", "2", "--student.pretrained",
                 "false", "--student.aspp_channels", "16", "--run.dir", str(tmp_path / name / "run")]  # fmt: skip
        assert train_student([*given, "--train.device", "cpu", "--run.baseline", "false"]) == 0
        lines = (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()
        losses.append([(entry["total"], entry["miou"]) for entry in map(json.loads, lines)])
    assert losses[0] == losses[1] and sum(faults.counts[kind] for kind in faults.kinds) > 10
