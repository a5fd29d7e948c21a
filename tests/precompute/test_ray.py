"""Phase one on Ray: real tasks of a local Ray, some workers killed; the same bytes as by one
process.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
import yaml

from cache_teacher import cli
from kdcache.cache.layout import Group, commit_key
from kdcache.cache.manifest import read_manifest
from kdcache.cache.records import has_record
from kdcache.config import Config
from kdcache.config.parser import make_config, merge
from kdcache.errors import (
    CacheCorruptError,
    CacheError,
    CacheMismatchError,
    OtherCacheError,
    SettingsError,
)
from kdcache.precompute import ray_engine
from kdcache.precompute.build import build_cache
from kdcache.precompute.ray_cluster import Pool, choose_pool, make_absolute
from kdcache.precompute.ray_engine import build_with_ray
from kdcache.storage import open_storage
from tests.support import quick, traps
from tests.support.helpers import check_one_line

pytestmark = pytest.mark.xdist_group("ray")  # one Ray is started
HERE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def traps_folder(tmp_path_factory):
    """A Ray for these tests, and the folder in which its actors look for traps."""
    folder = tmp_path_factory.mktemp("traps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(traps.FOLDER, str(folder))
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        hook = {"worker_process_setup_hook": "tests.support.traps.prepare_actor"}
        ray.init(
            address="local",
            num_cpus=2,
            log_to_driver=False,
            include_dashboard=False,
            runtime_env=hook,
        )
        yield folder
        ray.shutdown()


@pytest.fixture
def trap(traps_folder):
    """Sets a trap of that name, until the test ends."""
    yield lambda name: (traps_folder / name).touch()
    for left in traps_folder.iterdir():
        left.unlink()


@pytest.fixture
def given(quick_data, tmp_path) -> dict:
    """Of a cache of eight groups."""
    return merge(quick.quick_given(quick_data, tmp_path / "cache"), {"cache": {"shard_samples": 1}})


@pytest.fixture
def config(given) -> Config:
    return make_config(given)


@pytest.fixture
def whole(given, tmp_path, quick_teacher) -> Config:
    """The same cache, built by this process."""
    whole = make_config(given, {"cache": {"path": str(tmp_path / "whole")}})
    build_cache(whole)
    return whole


@pytest.fixture
def warnings():
    """What kdcache warns of, as it is said."""
    with hear() as heard:
        yield heard


@contextmanager
def hear(act: Callable[[str], None] = lambda message: None) -> Iterator[list[str]]:
    """Warnings of kdcache, whatever has been done to its logger; `act` on each."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: (heard.append(record.getMessage()), act(record.getMessage()))
    logger = logging.getLogger("kdcache")
    level = logger.level
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def check_same(root: Path, whole: Path) -> None:
    assert quick.snapshot(root) == quick.snapshot(whole)
    assert read_manifest(root).identity == read_manifest(whole).identity
    assert read_manifest(root).complete_views == read_manifest(whole).complete_views


# --- real actors


def test_an_actor_killed_midway_changes_no_byte(trap, config, whole, warnings):
    trap(traps.ONCE)
    summary = build_with_ray(config, num_workers=2)
    assert [message for message in warnings if "a worker was lost" in message]
    assert summary.num_samples == 8 and summary.score is not None
    check_same(config.cache.path, whole.cache.path)


def test_actors_go_on_with_what_is_there_and_wait_for_what_others_hold(trap, config, whole):
    shutil.copytree(whole.cache.path, config.cache.path)
    lost = [Group("val", 0, 1, 1, 2), Group("train", 1, 2, 2, 3)]
    for group in lost:
        (config.cache.path / commit_key(group)).unlink()
    held = ExitStack()
    held.enter_context(open_storage(config.cache.path).take_lease(lost[0].name))

    def let_go(message: str) -> None:
        if message.startswith("waiting"):
            assert f"shard group {lost[0].name}, which process {os.getpid()} on " in message
            assert has_record(open_storage(config.cache.path), lost[1])
            held.close()

    with hear(let_go) as heard:
        assert build_with_ray(config, num_workers=1).num_samples == 2
    assert len([message for message in heard if message.startswith("waiting")]) == 1
    check_same(config.cache.path, whole.cache.path)


def test_an_actor_with_other_weights_is_refused_in_one_line(trap, config, whole):
    trap(traps.STRANGER)
    with pytest.raises(CacheMismatchError) as error:
        build_with_ray(replace(config, cache=whole.cache), num_workers=1)
    check_one_line(error, "teacher.weights_sha256 is ", ", expected ", str(whole.cache.path))
    assert type(error.value) is CacheMismatchError


def test_actors_that_die_again_and_again_end_the_build(trap, config, monkeypatch, warnings):
    monkeypatch.setattr(ray_engine, "MOST_LOSSES", 1)
    trap(traps.ALWAYS)
    with pytest.raises(CacheError) as error:
        build_with_ray(config, num_workers=1)
    check_one_line(
        error, f"{config.cache.path}: Ray has lost 2 workers while no shard group was committed"
    )
    assert sum("a worker was lost" in line for line in warnings) == 1


def test_a_record_that_is_not_seen_here_is_a_folder_that_is_not_shared(trap, config, monkeypatch):
    monkeypatch.setattr(ray_engine, "has_record", lambda root, group: False)
    monkeypatch.setattr(ray_engine, "SEEN_WITHIN_S", 0.0)
    with pytest.raises(CacheError) as error:
        build_with_ray(config, num_workers=1)
    check_one_line(
        error, "is missing here, expected there", "set cache.path to a folder that all machines"
    )


def test_a_record_that_is_seen_only_later_is_waited_for(trap, config, whole, monkeypatch):
    looks = []

    def see_the_third_time(root: Path, group: Group) -> bool:
        looks.append(group)
        return has_record(open_storage(root), group) and looks.count(group) == 3

    monkeypatch.setattr(ray_engine, "has_record", see_the_third_time)
    monkeypatch.setattr(ray_engine, "LOOK_EVERY_S", 0.01)
    assert build_with_ray(config, num_workers=1).num_samples == 8
    assert len(looks) == 3 * 8
    check_same(config.cache.path, whole.cache.path)


def test_what_an_actor_committed_before_it_was_lost_counts_as_written(trap, config, warnings):
    size_bytes = build_with_ray(config, num_workers=1).size_bytes
    shutil.rmtree(config.cache.path)
    trap(traps.COMMITTED)
    summary = build_with_ray(config, num_workers=1)
    assert [message for message in warnings if "a worker was lost" in message]
    assert (summary.num_samples, summary.size_bytes) == (8, size_bytes)


def test_workers_without_room_do_not_start_once_all_is_done(trap, config, whole, monkeypatch):
    """Each takes both CPUs of this Ray, so that the first does all."""
    monkeypatch.setattr(ray_engine, "choose_pool", lambda *_: Pool(3, {"CPU": 2}, 1))
    started = []
    take = ray_engine._Driver._take

    def note(self, event, rank):
        take(self, event, rank)
        started.append(sorted(self._started))

    monkeypatch.setattr(ray_engine._Driver, "_take", note)
    assert build_with_ray(config).num_samples == 8
    assert started[-1] == [0]
    check_same(config.cache.path, whole.cache.path)


def test_relative_paths_are_those_of_the_caller(trap, given, whole, quick_data, monkeypatch):
    """Actors of a Ray that was begun elsewhere have other working directories."""
    root = Path(given["cache"]["path"])
    monkeypatch.chdir(root.parent)
    paths = {"cache": {"path": root.name}, "dataset": {"root": os.path.relpath(quick_data)}}
    build_with_ray(make_config(given, paths), num_workers=1)
    check_same(root, whole.cache.path)


def test_files_are_found_from_anywhere_and_names_and_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.pt").touch()
    config = make_config(
        {"cache": {"path": "s3://bucket/cache"}, "teacher": {"weights": "teacher.pt"}}
    )
    found = make_absolute(config)
    assert (
        found.teacher.weights == str(tmp_path / "teacher.pt") and found.dataset.root.is_absolute()
    )
    assert found.cache.path == config.cache.path
    assert make_absolute(make_config({})).teacher.weights == "COCO_WITH_VOC_LABELS_V1"


def test_a_cluster_without_room_for_any_actor_is_said(trap, config, monkeypatch):
    monkeypatch.setattr(ray_engine, "PATIENCE_S", 0.5)

    def stop(message: str) -> None:
        raise InterruptedError(message)

    with hear(stop), pytest.raises(InterruptedError) as error:
        build_with_ray(replace(config, teacher=replace(config.teacher, device="cuda")))
    words = (
        "each of 1 takes 1 GPU of one machine; the largest machine of the cluster has 0, "
        "and 0 are free in all"
    )
    check_one_line(error, "no worker has begun in 0.5 s: ", words)


def test_the_command_begins_a_ray_of_its_own_and_gives_the_same_bytes(
    base_given, real_teacher, real_teacher_file, tmp_path
):
    root, whole, path = tmp_path / "cache", tmp_path / "whole", tmp_path / "settings.yaml"
    given = merge(base_given, {"teacher": {"weights": str(real_teacher_file)}})
    path.write_text(yaml.safe_dump(merge(given, {"cache": {"path": str(root)}})))
    build_cache(make_config(merge(given, {"cache": {"path": str(whole)}})))
    options = ["--config", str(path), "--engine", "ray", "--workers=2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "RAY_ADDRESS": "local",
    }
    command = [sys.executable, "-m", "cache_teacher", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "fidelity of" in done.stdout and "asking the teacher: 25/25 samples" in done.stderr
    check_same(root, whole)


# --- without actors


@pytest.mark.parametrize(
    ("address", "mode"), [(None, "token"), ("local", "token"), ("10.0.0.1:6379", None)]
)
def test_a_ray_of_our_own_asks_for_a_token_from_before_it_is_imported(address, mode):
    """In a process of its own: Ray reads the mode once, when it is imported."""
    own = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    code = (
        "import os, sys; from cache_teacher import building; assert 'ray' not in sys.modules; "
        "building._import_ray_engine(); print(os.environ.get('RAY_AUTH_MODE'))"
    )
    environment = own | ({"RAY_ADDRESS": address} if address else {})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [str(mode)]


@pytest.mark.parametrize(
    ("device", "machines", "num_workers", "count", "demand"),
    [
        ("auto", [{"CPU": 32.0, "GPU": 4.0}] * 2, None, 8, {"GPU": 1}),
        (
            "auto",
            [{"CPU": 64.0, "GPU": 8.0}],
            16,
            16,
            {"GPU": 1},
        ),  # machines that are still to come
        ("cuda", [{"CPU": 2.0}], None, 1, {"GPU": 1}),
        ("cpu", [{"CPU": 64.0, "GPU": 8.0}], None, 16, {"CPU": 4}),
        ("auto", [{"CPU": 2.0}], None, 1, {"CPU": 2}),  # fewer than this process has threads
        (
            "auto",
            [{"CPU": 2.0}, {"CPU": 3.0}, {"CPU": 3.0}],
            None,
            1,
            {"CPU": 3},
        ),  # on no machine there is room for four
        ("auto", [{"CPU": 7.0}, {"CPU": 6.0}], None, 2, {"CPU": 4}),
        ("auto", [{"CPU": 10.0}], 4, 4, {"CPU": 2}),
        ("auto", [{"CPU": 64.0}], 4, 4, {"CPU": 4}),
        ("auto", [{"CPU": 1.0}], 2, 2, {"CPU": 0.5}),
    ],
)
def test_an_actor_takes_a_gpu_or_its_threads_of_cpus(
    config, monkeypatch, device, machines, num_workers, count, demand
):
    nodes = [{"Alive": True, "Resources": there} for there in machines]
    gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, gone])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    pool = choose_pool(replace(config, teacher=replace(config.teacher, device=device)), num_workers)
    assert (pool.count, pool.demand) == (count, demand)
    assert pool.options["runtime_env"] == {"env_vars": {"OMP_NUM_THREADS": "4"}}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "rey"], "--engine is 'rey', expected processes or ray"),
        (
            ["--workers", "2"],
            "--workers is 2, expected nothing without --engine ray; add --engine ray",
        ),
        (["--engine=ray", "--workers=0"], "--workers is '0', expected a whole number, 1 or more"),
        (["--engine", "ray", "--workers"], "--workers has no value, expected N"),
    ],
)
def test_wrong_options_are_one_line(options, words, capsys):
    assert cli.main(options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_without_ray_the_command_says_how_to_install_it(monkeypatch, capsys):
    for name in ("kdcache.precompute.ray_engine", "kdcache.precompute.ray_cluster"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["--engine", "ray"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "--engine is 'ray', expected Ray to be installed; `pip install 'kdcache[ray]'`"
    )


def test_an_address_at_which_nobody_listens_is_one_line(config, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(SettingsError) as error:
        build_with_ray(config)
    check_one_line(
        error,
        "environment: Ray cannot be reached or begun",
        "set RAY_ADDRESS to a cluster that answers",
    )


@pytest.mark.parametrize("kind", [CacheCorruptError, OtherCacheError])
def test_errors_come_from_another_process_as_they_were(kind):
    error = pickle.loads(pickle.dumps(kind("caches/a", "file is damaged", cure="repair it")))
    assert type(error) is kind and str(error) == "caches/a: file is damaged; repair it"
    assert (error.where, error.what) == ("caches/a", "file is damaged")
