"""Whole runs of several processes: their files, resumed with any number, and the command under
torchrun.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from kdcache.config.parser import make_config, merge
from kdcache.training.distill import distill
from tests.support import together


def read_losses(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


def test_all_processes_end_with_the_same_student(given):
    """Running statistics as well, which on a CPU each has of its own rows: they become the first
    one's.
    """
    one, two = together.run_together(2, together.train_whole, given)
    assert np.array_equal(one["tensors"], two["tensors"]) and one["miou"] == two["miou"]


def test_a_resumed_run_of_two_is_the_uninterrupted_run_bit_for_bit(given, tmp_path):
    whole, halves = (
        merge(given, {"run": {"dir": str(tmp_path / name)}}) for name in ("whole", "halves")
    )
    together.run_together(2, together.train_whole, whole)
    stopped = together.run_together(2, together.train_whole, halves, 1)
    assert [answer[0] for answer in stopped] == ["SettingsError"] * 2 and len(
        read_losses(tmp_path / "halves")
    ) == 1
    together.run_together(2, together.train_whole, merge(halves, {"run": {"resume": True}}))
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "halves")
    a, b = (
        torch.load(tmp_path / name / "student_kd_last.pth", weights_only=True)
        for name in ("whole", "halves")
    )
    for part in ("model_state_dict", "alignment_state_dict"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (2, 1),
        pytest.param(1, 2, marks=pytest.mark.nightly),
        pytest.param(2, 3, marks=pytest.mark.nightly),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(given, tmp_path, first, then):
    given, resumed = merge(given, {"train": {"batch_size": 13}}), {"run": {"resume": True}}
    together.run_together(first, together.train_whole, given, 1)
    before = read_losses(tmp_path / "runs" / "kd")
    together.run_together(then, together.train_whole, merge(given, resumed))
    after = read_losses(tmp_path / "runs" / "kd")
    assert len(before) == 1 and len(after) == 2 and after[:1] == before
    assert [entry["processes"] for entry in after] == [first, then]
    assert after[1]["total"] < before[0]["total"]


def start(given: dict, *options: str, count: int = 2) -> subprocess.CompletedProcess:
    """`torchrun -m train_student`."""
    path = Path(given["run"]["dir"]).parent.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(given))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
    ]
    command += ["-m", "train_student", "--config", str(path), *options]
    threads = {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **threads}, check=False
    )


def test_the_command_under_torchrun_leaves_what_one_process_leaves(given, tmp_path):
    given = merge(given, {"run": {"baseline": True}})
    done = start(given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("processes: 2, each has up to 4 samples of a batch of 8") == 1
    assert done.stdout.count("epoch 2/2") == 2 and done.stdout.count("student - baseline") == 1
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    folder, alone = tmp_path / "runs" / "kd", tmp_path / "alone" / "kd"
    distill(merge(given, {"run": {"dir": str(alone)}}), root=make_config(given).cache.path)
    names, names_alone = ({path.name for path in each.iterdir()} for each in (folder, alone))
    assert names == names_alone | {"report.html"}  # which the command adds
    ours, theirs = (
        torch.load(f / "student_kd_last.pth", weights_only=True) for f in (folder, alone)
    )
    assert ours.keys() == theirs.keys() and ours["hyperparameters"] == theirs["hyperparameters"]
    for part in ("model_state_dict", "alignment_state_dict"):
        assert ours[part].keys() == theirs[part].keys()
    (folder / "result.json").unlink()
    shutil.rmtree(next((tmp_path / "runs").glob("baseline-*")))
    refused = start(given)
    lines = [line for line in refused.stderr.splitlines() if line.startswith("train_student:")]
    assert len(lines) == 1 and "run.dir is in use" in lines[0], refused.stderr
    assert refused.stderr.count("exitcode  : 2") >= 1, (
        refused.stderr
    )  # torchrun may kill the second one before it ends
    assert not list((tmp_path / "runs").glob("baseline-*"))  # nobody has begun one


def test_workers_end_by_the_signal_that_torchrun_hands_on(given, tmp_path):
    """While they wait for each other; the run then goes on."""
    path, folder = tmp_path / "given.yaml", tmp_path / "runs" / "kd"
    path.write_text(yaml.safe_dump(merge(given, {"train": {"epochs": 100_000}})))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    meeting |= {"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train_student", "--config", str(path)]
    workers = [
        subprocess.Popen(
            command, env=os.environ | meeting | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        assert any("epoch 1/" in line for line in workers[0].stdout)
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        ends = [(worker.communicate(timeout=60)[1], worker.returncode) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for err, code in ends:
        lines = [line for line in err.splitlines() if line.startswith("train_student: ")]
        assert len(lines) == 1 and "Traceback" not in err, err
        by_signal = "interrupted by SIGTERM; what is finished is kept" in lines[0]
        assert code == (143 if by_signal else 1), (code, err)
        assert by_signal or "another process of this run has ended" in lines[0], err
    assert 143 in [code for _, code in ends]
    done = len(read_losses(folder))
    more = {"run": {"resume": True}, "train": {"epochs": 100_000}}
    together.run_together(2, together.train_whole, merge(given, more), done + 1)
    assert len(read_losses(folder)) == done + 1
