"""A cache in a bucket has the gallery of one in a folder."""

import pytest

from cache_teacher.cli import main as cache_teacher
from kdcache.cache.layout import shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.report.gallery import write_gallery
from tests.support import quick

pytestmark = pytest.mark.usefixtures("quick_teacher")


def test_the_gallery_of_a_bucket_is_that_of_a_folder(
    quick_data, bucket, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for root in (bucket, tmp_path / "one"):
        quick.build_quick(quick_data, root)
    write_gallery(tmp_path / "one", tmp_path / "folder.html", split="train", num_samples=2)
    assert cache_teacher(["view", str(bucket), "--split", "train", "--samples", "2"]) == 0
    assert capsys.readouterr().out.startswith("one-train.html: 2 samples shown, 3 of 3 looked at")
    pages = [
        path.read_text().split("<h2>The cache</h2>")[0]
        for path in (tmp_path / "one-train.html", tmp_path / "folder.html")
    ]
    assert pages[0] == pages[1].replace("folder, train", "one, train")


def test_a_cache_that_is_not_there_is_one_line(bucket, capsys):
    assert cache_teacher(["view", str(bucket)]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert str(bucket) in line and "manifest.json is missing" in line


def test_a_damaged_object_is_named(quick_data, bucket, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick.build_quick(quick_data, bucket)
    layout = read_manifest(bucket).layouts["train"]
    shard = bucket.object(shard_key(layout.array("logits"), layout.group(1, 0)))
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.put(bytes(data))
    assert cache_teacher(["view", str(bucket), "--split", "train"]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("cache_teacher view: ")
        and "train/logits view 1 sample 'sample_train_0000' is damaged" in line
    )
    assert not list(tmp_path.iterdir())
