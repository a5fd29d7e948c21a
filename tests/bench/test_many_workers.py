"""The protocol at many workers that are killed and begun again: each group is committed once, and
whole.
"""

from __future__ import annotations

import pytest

from kdcache.cache.layout import commit_key, shard_key
from tests.bench.data import plan_store
from tests.bench.many_workers import is_sound, judge, simulate
from tests.bench.worker_child import run_workers


@pytest.mark.parametrize(
    ("num_workers", "num_groups", "num_processes"),
    [
        (16, 300, 2),
        pytest.param(64, 3_000, 4, marks=pytest.mark.nightly),
        pytest.param(512, 100_000, 8, marks=[pytest.mark.exhaustive, pytest.mark.timeout(7200)]),
    ],
)
def test_workers_that_die_and_come_back_commit_each_group_once(
    tmp_path, num_workers, num_groups, num_processes
):
    sizes = {"num_workers": num_workers, "num_groups": num_groups, "num_processes": num_processes}
    facts = simulate(tmp_path / "cache", share=0.05, **sizes)
    print(facts)
    assert is_sound(facts), facts
    assert facts["killed"] > 0 and facts["begun"] == num_workers + facts["killed"]
    assert facts["coordination_ms"] > 0 and facts["write_ms"] > 0


@pytest.fixture
def store(tmp_path):
    """Settings and manifest of ten groups, and what a worker did who wrote them."""
    config, manifest = plan_store(
        tmp_path / "cache", px=16, num_samples=9, shard_samples=1, num_views=1, levels={}
    )
    return config, manifest, run_workers(config, manifest, [0], 1, 0.0)


def test_a_group_that_is_committed_twice_is_noticed(store):
    config, manifest, first = store
    assert is_sound({"groups": 10, **judge(config.cache.path, manifest, [first])})
    (config.cache.path / commit_key(manifest.layouts["train"].group(0, 3))).unlink()
    facts = judge(config.cache.path, manifest, [first, run_workers(config, manifest, [0], 1, 0.0)])
    assert (
        facts["committed_twice"] == 1
        and not facts["damage"]
        and not is_sound({"groups": 10, **facts})
    )


def test_files_that_are_not_those_of_the_record_are_noticed(store):
    config, manifest, record = store
    layout = manifest.layouts["train"]
    paths = [
        (config.cache.path / shard_key(layout.array("image"), layout.group(0, index)))
        for index in (1, 2)
    ]
    paths[0].write_bytes(paths[1].read_bytes())  # whole, but another writer's
    facts = judge(config.cache.path, manifest, [record])
    assert facts["damage"] and not is_sound({"groups": 10, **facts})
