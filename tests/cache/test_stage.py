"""Local copies of shard files: fetched once, verified, kept within a limit, healed where they
break.
"""

import errno
import json
import logging
import os
import shutil

import pytest

from kdcache.cache import stage as staging
from kdcache.cache.layout import shard_key
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.shards import ShardSource
from kdcache.cache.stage import Stage
from kdcache.errors import CacheCorruptError, SettingsError
from tests.support import quick
from tests.support.helpers import check_one_line
from tests.support.staged import list_copies, open_staged, read_all
from train_student.cli import main as train_student


@pytest.fixture
def root(quick_data, tmp_path, quick_teacher):
    return quick.build_quick(quick_data, tmp_path / "cache").cache.path


@pytest.fixture
def fetched(monkeypatch) -> list:
    """Files that were opened to be copied."""
    opened = []

    read_parts = ShardSource.read_parts

    def note(source, max_bytes):
        opened.append(source)
        return read_parts(source, max_bytes)

    monkeypatch.setattr(ShardSource, "read_parts", note)
    return opened


def test_each_shard_file_is_fetched_once_for_all_processes(root, tmp_path, fetched):
    plain, folder = read_all(CacheReader(root, read_manifest(root), "train")), tmp_path / "stage"
    reader = open_staged(root, folder)
    assert read_all(reader) == plain == read_all(reader)
    layout = reader.layout
    assert len(fetched) == len(set(fetched)) == layout.num_groups * len(layout.arrays)
    assert read_all(open_staged(root, folder)) == plain  # as another process
    assert len(fetched) == len(set(fetched))
    shutil.rmtree(root / "train" / "image")  # nothing is read from where it was
    for name in ("image", "logits"):
        assert reader.read(name, 0, 0).tobytes() in plain


def test_unlabelled_images_are_staged_too(bare_data, tmp_path, fetched, quick_teacher):
    root = quick.build_quick(bare_data, tmp_path / "bare", unlabelled="rest").cache.path
    manifest, stage = read_manifest(root), Stage(tmp_path / "stage", limit_bytes=10**9)
    plain = read_all(CacheReader(root, manifest, "unlabelled"))
    reader = CacheReader(root, manifest, "unlabelled", stage=stage)
    assert read_all(reader) == plain == read_all(reader)
    assert len(fetched) == reader.layout.num_groups * len(reader.layout.arrays)
    assert len(list_copies(tmp_path / "stage")) == len(fetched)


def test_a_copy_that_breaks_or_goes_is_fetched_again(root, tmp_path, fetched):
    plain, folder = read_all(CacheReader(root, read_manifest(root), "train")), tmp_path / "stage"
    assert read_all(open_staged(root, folder)) == plain
    copies = list_copies(folder)
    for copy in copies[::2]:
        data = bytearray(copy.read_bytes())
        data[0] ^= 1
        copy.write_bytes(data)
    reader, before = open_staged(root, folder), len(fetched)
    assert read_all(reader) == plain and len(fetched) == before + len(copies[::2])
    for copy in copies[1::2]:
        copy.unlink()
    assert read_all(reader) == plain and len(fetched) == before + len(copies)
    assert list_copies(folder) == copies
    reader.read("logits", 0, 0)
    truncated = folder / copies[0].relative_to(folder)
    os.truncate(truncated, 10)
    assert read_all(open_staged(root, folder)) == plain


def test_damage_at_the_source_reaches_neither_stage_nor_training(root, tmp_path):
    path = root / shard_key(read_manifest(root).layouts["train"].array("logits"), quick_group(root))
    data = bytearray(path.read_bytes())
    data[5] ^= 4
    path.write_bytes(data)
    folder = tmp_path / "stage"
    with pytest.raises(CacheCorruptError) as error:
        open_staged(root, folder).read("logits", 0, 0)
    check_one_line(error, str(path), "its sha256 differs from the commit record", "repair")
    assert list_copies(folder) == []
    path.unlink()
    with pytest.raises(CacheCorruptError) as error:
        open_staged(root, folder).read("logits", 0, 0)
    check_one_line(error, str(path), "it cannot be fetched (No such file or directory)")


def quick_group(root):
    return read_manifest(root).layouts["train"].group(0, 0)


def test_what_was_used_longest_ago_goes_first(root, tmp_path, fetched):
    folder = tmp_path / "stage"
    first = open_staged(root, folder)
    for view in (0, 1):
        first.read("image", view, 0)
    copies = list_copies(folder)
    size = copies[0].stat().st_size
    os.utime(copies[0], (1, 1))
    second = open_staged(root, folder, limit_bytes=2 * size)
    fresh = second.read("image", 0, 2)  # of the other group, smaller
    assert not copies[0].exists() and copies[1].exists() and len(list_copies(folder)) == 2
    assert (fresh == CacheReader(root, read_manifest(root), "train").read("image", 0, 2)).all()


def test_a_stage_too_small_keeps_what_this_run_uses_and_says_so_once(
    root, tmp_path, fetched, caplog
):
    plain, folder = read_all(CacheReader(root, read_manifest(root), "train")), tmp_path / "stage"
    limit = 20_000
    reader = open_staged(root, folder, limit_bytes=limit)
    with caplog.at_level(logging.WARNING, logger="kdcache"):
        assert read_all(reader) == plain == read_all(reader)
    assert (
        len(caplog.records) == 1
        and "stage is full" in caplog.text
        and "is read where it is" in caplog.text
    )
    copies = list_copies(folder)
    assert 0 < sum(copy.stat().st_size for copy in copies) <= limit and len(fetched) == len(copies)


def test_a_full_disk_under_the_stage_costs_only_the_copies(root, tmp_path, monkeypatch, caplog):
    plain, folder = read_all(CacheReader(root, read_manifest(root), "train")), tmp_path / "stage"
    write, written = staging._write, []

    def run_full(out, part):
        written.append(part.size)
        if len(written) > 3:
            raise staging._RefusedError(os.strerror(errno.ENOSPC))
        write(out, part)

    monkeypatch.setattr(staging, "_write", run_full)
    assert read_all(open_staged(root, folder)) == plain
    assert (
        len(list_copies(folder)) == 3 and "stage is full (No space left on device)" in caplog.text
    )


def test_a_stage_that_cannot_be_written_is_refused(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError) as error:
        Stage(tmp_path / "file", limit_bytes=1)
    check_one_line(error, "cache.stage_dir is", "expected a folder to write into", "change it")


def test_training_from_a_stage_has_the_losses_of_the_cache(root, tmp_path):
    losses = {}
    for name, more in (("plain", []), ("staged", ["--cache.stage_dir", str(tmp_path / "stage")])):
        given = [
            "--cache.path",
            str(root),
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
        losses[name] = [json.loads(line)["total"] for line in lines]
    assert losses["plain"] == losses["staged"] and list_copies(tmp_path / "stage")


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_a_limit_that_is_none_is_refused(value, capsys):
    assert train_student(["--cache.stage_gb", value]) == 2
    assert "cache.stage_gb" in capsys.readouterr().err
