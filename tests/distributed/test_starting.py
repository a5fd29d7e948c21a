"""Who does what, which processes belong together, and what is refused or said before they begin."""

from __future__ import annotations

import os

import pytest
import torch

from kdcache.config.parser import make_config
from kdcache.errors import SettingsError
from kdcache.training.processes import join_processes
from kdcache.training.settings import check_batches
from tests.support.helpers import check_one_line
from tests.support.together import make_many

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [0, 1, 2, 5, 8, 29])
def test_shares_are_contiguous_and_differ_by_one_at_most(count, size):
    shares = [make_many(rank, count).share(range(size)) for rank in range(count)]
    assert [item for share in shares for item in share] == list(range(size))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) == make_many(0, count).largest_share(size)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
        {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"},
        {"RANK": "1", "WORLD_SIZE": "2"},  # no place to meet
        {**TORCHRUN, "WORLD_SIZE": "1"},
    ],
)
def test_runs_that_torchrun_did_not_start_together_stay_alone(monkeypatch, environment):
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in TORCHRUN]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with join_processes() as processes:
        assert (processes.rank, processes.count) == (0, 1)


def test_processes_that_cannot_meet_are_told_in_one_line(monkeypatch):
    for name, value in {**TORCHRUN, "MASTER_PORT": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error, join_processes():
        pass
    check_one_line(
        error, "2 processes cannot meet at MASTER_ADDR and MASTER_PORT", "start them with torchrun"
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(SettingsError) as error, join_processes():
        pass
    check_one_line(
        error,
        "cannot meet",
        "; set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface",
    )


@pytest.mark.parametrize(
    ("size", "num_samples", "count", "device", "words"),
    [
        (
            8,
            13,
            4,
            CPU,
            "is 5, expected 8 samples or more for 4 processes; set train.batch_size 12 or start "
            "fewer",
        ),
        (
            2,
            13,
            2,
            CPU,
            "is 2, expected 4 samples or more for 2 processes; set train.batch_size 4 or start "
            "fewer",
        ),
        (8, 7, 4, CPU, "is 7, expected 8 samples or more for 4 processes; start fewer processes"),
        (8, 13, 6, torch.device("cuda"), "is 5, expected 6 samples or more for 6 processes"),
    ],
)
def test_a_batch_with_too_few_samples_for_a_process_is_refused(
    size, num_samples, count, device, words
):
    config = make_config({"train": {"batch_size": size}})
    with pytest.raises(SettingsError) as error:
        check_batches(config, num_samples=num_samples, count=count, device=device)
    check_one_line(error, f"settings: smallest batch (train.batch_size {size}) {words}")
    check_batches(config, num_samples=num_samples, count=1, device=device)
    check_batches(config, num_samples=16, count=1 if size == 2 else 4, device=CPU)


def test_with_unlabelled_samples_every_batch_is_full():
    config = make_config({"train": {"batch_size": 4, "unlabelled_share": 0.5}})
    with pytest.raises(SettingsError) as error:
        check_batches(config, num_samples=5, count=3, device=CPU)
    check_one_line(error, "is 4, expected 6 samples or more", "; set train.batch_size 6 or start")
    check_batches(config, num_samples=2, count=2, device=CPU)
