"""Several processes at one cache: who is who, who begins where, and the same bytes however many
they are.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml

from kdcache.cache.layout import Group, commit_key
from kdcache.cache.lifecycle import find_missing_groups
from kdcache.cache.manifest import read_manifest
from kdcache.config import Config
from kdcache.config.parser import make_config, merge
from kdcache.errors import SettingsError
from kdcache.machine.devices import choose_device
from kdcache.machine.process import Worker, find_worker
from kdcache.precompute.build import build_cache, prepare_job
from kdcache.precompute.pipeline import Pipeline, choose_crew
from kdcache.progress import Silent
from kdcache.storage import LocalFolder, open_storage
from tests.support import quick
from tests.support.helpers import check_one_line

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
ARRAY = {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "5", "SLURM_ARRAY_TASK_COUNT": "3"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Whatever starts the tests."""
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in TORCHRUN]:
        monkeypatch.delenv(name)


# --- who is who


@pytest.mark.parametrize(
    ("environment", "worker"),
    [
        ({}, Worker(0, 1)),
        ({"RANK": "5"}, Worker(0, 1)),  # some other program's
        (TORCHRUN, Worker(5, 8, 1, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Worker(1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Worker(1, 2, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_LOCALID": "1"}, Worker(1, 2, 1, 2)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, Worker(3, 4)),
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_NTASKS": "8",
                "SLURM_LOCALID": "1",
                "SLURM_NTASKS_PER_NODE": "2",
            },
            Worker(3, 8, 1, 2),
        ),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, Worker(3, 8, 1, 2)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "15"}, Worker(1, 3)),
        (
            {**ARRAY, "SLURM_ARRAY_TASK_ID": "20", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
            Worker(5, 6),
        ),
        ({"SLURM_ARRAY_TASK_ID": "7"}, Worker(0, 1)),
        # torchrun within a job
        ({**TORCHRUN, **ARRAY, "SLURM_ARRAY_TASK_ID": "15"}, Worker(5, 8, 1, 4)),
    ],
)
def test_a_worker_knows_its_place(environment, worker):
    assert find_worker(environment) == worker


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, expected 0 to 1, as WORLD_SIZE is 2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x', expected a whole number"),
        ({"SLURM_PROCID": "4", "SLURM_NTASKS": "4"}, "SLURM_PROCID is 4, expected 0 to 3"),
    ],
)
def test_places_that_contradict_each_other_are_refused(environment, words):
    with pytest.raises(SettingsError) as error:
        find_worker(environment)
    check_one_line(error, f"environment: {words}")


@pytest.mark.parametrize(("count", "num_items"), [(1, 5), (2, 5), (3, 10), (4, 2), (7, 50)])
def test_every_worker_has_all_items_its_own_first(count, num_items):
    items, workers = list(range(num_items)), [Worker(rank, count) for rank in range(count)]
    assert all(sorted(worker.own(items) + worker.others(items)) == items for worker in workers)
    assert sorted(item for worker in workers for item in worker.own(items)) == items


def test_a_helper_meets_the_owner_of_a_stripe_last():
    worker, items = Worker(0, 3), list(range(9))
    assert worker.own(items) == [0, 3, 6] and worker.others(items) == [7, 4, 1, 8, 5, 2]


def test_workers_of_a_machine_share_its_cores_memory_and_gpus(monkeypatch):
    monkeypatch.setattr("kdcache.machine.process.count_cores", lambda: 16)
    monkeypatch.setattr("kdcache.machine.process.os.cpu_count", lambda: 16)
    assert choose_crew(1).writers == 8
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert choose_crew(1).writers == 2
    monkeypatch.setattr(
        "kdcache.machine.process.os.cpu_count", lambda: 64
    )  # bound to a quarter of them
    assert choose_crew(1).writers == 8
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", field="x") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # as SLURM shows them, one to each
    assert choose_device("auto", field="x") == torch.device("cuda:0")
    for name in TORCHRUN:
        monkeypatch.delenv(name)
    assert choose_device("auto", field="x") == torch.device("cuda")


# --- one cache


@pytest.fixture
def config(quick_data, tmp_path, quick_teacher) -> Config:
    return make_config(
        merge(quick.quick_given(quick_data, tmp_path / "cache"), {"cache": {"shard_samples": 1}})
    )


def build_as(rank: int, count: int, config: Config, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", str(rank))
    monkeypatch.setenv("SLURM_NTASKS", str(count))
    return build_cache(config)


def test_a_worker_takes_what_others_have_left_and_one_scores(config, monkeypatch):
    held = Group("train", 0, 1, 1, 2)
    config.cache.path.mkdir()
    with open_storage(config.cache.path).take_lease(held.name):
        early = build_as(1, 3, config, monkeypatch)
    assert early.num_samples == 2 + 2 * 3 - 1 and early.score is None
    assert "teacher_miou" not in read_manifest(config.cache.path).information
    last = build_as(2, 3, config, monkeypatch)
    assert last.num_samples == 1 and last.score is not None
    lost = config.cache.path / commit_key(Group("train", 1, 2, 2, 3))
    lost.unlink()
    first = build_as(0, 3, config, monkeypatch)
    assert (
        first.num_samples == 1 and lost.exists() and first.score is None
    )  # of these views it is known
    assert read_manifest(config.cache.path).complete_views == {"train": 2, "val": 1}


def test_a_lost_element_of_a_job_array_is_begun_again(config, quick_data, tmp_path, monkeypatch):
    """Element 1 dies at its second question, 2 never comes, 1 is repeated, 0 comes last: the bytes
    are those of one process.
    """
    whole = make_config(
        merge(quick.quick_given(quick_data, tmp_path / "whole"), {"cache": {"shard_samples": 1}})
    )
    build_cache(whole)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    ask, asked = quick.QuickTeacher.__call__, []

    def die(self, image_NHWC):
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(self, image_NHWC)

    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(quick.QuickTeacher, "__call__", die)
        build_cache(config)
    assert 0 < len(find_missing(config)) < 8
    assert build_cache(config).score is not None and find_missing(config) == []
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    last = build_cache(config)
    assert last.num_samples == 0 and last.score is None
    assert quick.snapshot(config.cache.path) == quick.snapshot(whole.cache.path)


def find_missing(config: Config) -> list[Group]:
    manifest, path = read_manifest(config.cache.path), config.cache.path
    return [
        group for part in manifest.layouts for group in find_missing_groups(path, manifest, part)
    ]


def test_a_group_that_is_there_costs_a_worker_no_lease(config, monkeypatch):
    build_cache(config)
    (config.cache.path / commit_key(Group("val", 0, 1, 1, 2))).unlink()
    taken = []

    take = LocalFolder.take_lease

    def note(storage, name, **options):
        taken.append(name)
        return take(storage, name, **options)

    monkeypatch.setattr(LocalFolder, "take_lease", note)
    assert build_cache(config).num_samples == 1 and taken == ["val-v0000-g00001", "score"]
    everything = list(read_manifest(config.cache.path).layouts["val"].groups())
    job = prepare_job(config, Silent())
    with Pipeline(job, lambda group, size_bytes: None) as pipeline:
        assert pipeline.write(everything) == [] and len(taken) == 2


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_torchrun_gives_the_same_bytes_as_one_process(built_root, base_given, tmp_path, count):
    root, path = tmp_path / "cache", tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(merge(base_given, {"cache": {"path": str(root)}})))
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    program = ["-m", "tests.support.tiny_teacher", "cache_teacher"]
    command = [sys.executable, *start, *program, "--config", str(path)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **threads}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("the one that ends last does the rest") == count - 1
        and done.stdout.count("fidelity of") == 1
    )
    assert quick.snapshot(root) == quick.snapshot(built_root)
    assert read_manifest(root).identity == read_manifest(built_root).identity


def test_bytes_of_many_groups_are_the_sum_of_each(built_root):
    for layout in read_manifest(built_root).layouts.values():
        groups = list(layout.groups())
        assert layout.sum_bytes(groups) == sum(layout.group_bytes(group) for group in groups) > 0
        assert layout.sum_bytes([]) == 0
