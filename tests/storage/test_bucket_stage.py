"""Training from a bucket through a stage: the second epoch asks the bucket for nothing."""

import json

import pytest

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.stage import Stage
from tests.support import quick
from tests.support.s3_server import Faults
from train_student.cli import main as train_student

pytestmark = pytest.mark.usefixtures("quick_teacher")


def test_what_is_staged_is_not_asked_for_again(quick_data, use_server, tmp_path):
    counter = Faults(0.0)
    bucket = use_server(counter)
    quick.build_quick(quick_data, bucket)
    reader = CacheReader(
        bucket, read_manifest(bucket), "train", stage=Stage(tmp_path / "stage", limit_bytes=10**9)
    )
    names, asked = [spec.name for spec in reader.layout.arrays], []
    for _ in range(2):
        before = counter.counts["all"]
        answers = [reader.read(name, 1, sample).tobytes() for name in names for sample in range(3)]
        asked.append(counter.counts["all"] - before)
    assert asked[0] > 0 and asked[1] == 0 and not reader.is_remote
    plain = CacheReader(bucket, read_manifest(bucket), "train")
    assert answers == [
        plain.read(name, 1, sample).tobytes() for name in names for sample in range(3)
    ]


def test_a_staged_run_maps_its_copies(quick_data, bucket, tmp_path, capsys):
    quick.build_quick(quick_data, bucket)
    runs = {}
    for name, more in (("far", []), ("staged", ["--cache.stage_dir", str(tmp_path / "stage")])):
        given = [
            "--cache.path",
            str(bucket),
            "--train.epochs",
            "2",
            "--train.batch_size",
            "2",
            "--student.pretrained",
            "false",
            "--student.aspp_channels",
            "16",
            "--run.dir",
            str(tmp_path / name / "run"),
            *more,
        ]
        assert train_student([*given, "--train.device", "cpu", "--run.baseline", "false"]) == 0
        lines = (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()
        runs[name] = [json.loads(line)["total"] for line in lines], capsys.readouterr().out
    assert runs["far"][0] == runs["staged"][0]
    assert "residency: disk" in runs["far"][1] and "residency: ram" in runs["staged"][1]
