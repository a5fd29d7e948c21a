"""Several processes train one student: the batches, losses and files are those of one, and an error in one ends all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quick
import together
import torch
import yaml
from helpers import check_one_line
from torch import nn

from kdcache.cache.build import build_cache
from kdcache.cache.manifest import read_manifest
from kdcache.command import run_command
from kdcache.data.sample_set import write_sample_set
from kdcache.errors import SettingsError, ToldElsewhere
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.models.student import BATCHNORM_MOMENTUM, LightweightSegmentationModel
from kdcache.settings import make_config, merge
from kdcache.training.batches import plan_epoch
from kdcache.training.distill import _warn_of_few_rows, baseline_config, distill, hash_settings
from kdcache.training.processes import Alone, Processes, join_processes
from kdcache.training.run import open_data
from kdcache.training.settings import check_batches

NUM_TRAIN, NUM_VAL = 13, 5  # in batches of 8: eight and five
TOLERANCE = 1e-5  # of a step's loss, absolute
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def quick_root(tmp_path_factory) -> Path:
    """A cache of 13 training and 5 validation samples; its settings lie beside it."""
    folder = tmp_path_factory.mktemp("together")
    write_sample_set(folder / "data", num_train=NUM_TRAIN, num_val=NUM_VAL, size_px=48)
    given = merge(quick.quick_given(folder / "data", folder / "cache"), {"train": {"batch_size": 8}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.cache.build.build_teacher", quick.make_quick_teacher)
        build_cache(make_config(given))
    (folder / "settings.yaml").write_text(yaml.safe_dump(given))
    return folder / "cache"


@pytest.fixture
def given(quick_root, tmp_path) -> dict:
    settings = yaml.safe_load((quick_root.parent / "settings.yaml").read_text())
    return merge(settings, {"run": {"dir": str(tmp_path / "runs" / "kd"), "baseline": False}})


def read_losses(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


def make_many(rank: int, count: int) -> Alone:
    """A process that knows its place and nobody else."""
    alone = Alone()
    alone.rank, alone.count = rank, count
    return alone


# --- who does what


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
    check_one_line(error, "2 processes cannot meet at MASTER_ADDR and MASTER_PORT", "start them with torchrun")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(SettingsError) as error, join_processes():
        pass
    check_one_line(error, "cannot meet", "; set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface")


@pytest.mark.parametrize(
    ("size", "num_samples", "count", "device", "words"),
    [
        (8, 13, 4, CPU, "is 5, expected 8 samples or more for 4 processes; set train.batch_size 12 or start fewer"),
        (2, 13, 2, CPU, "is 2, expected 4 samples or more for 2 processes; set train.batch_size 4 or start fewer"),
        (8, 7, 4, CPU, "is 7, expected 8 samples or more for 4 processes; start fewer processes"),
        (8, 13, 6, torch.device("cuda"), "is 5, expected 6 samples or more for 6 processes"),
    ],
)
def test_a_batch_with_too_few_samples_for_a_process_is_refused(size, num_samples, count, device, words):
    config = make_config({"train": {"batch_size": size}})
    with pytest.raises(SettingsError) as error:
        check_batches(config, num_samples=num_samples, count=count, device=device)
    check_one_line(error, f"settings: smallest batch (train.batch_size {size}) {words}")
    check_batches(config, num_samples=num_samples, count=1, device=device)
    check_batches(config, num_samples=16, count=1 if size == 2 else 4, device=CPU)


# --- the numbers


def test_parts_of_a_batch_with_the_counts_of_all_add_up_to_it():
    """Void pixels are not spread evenly: the mean of both means would be another number."""
    torch.manual_seed(0)
    scores, label = torch.randn(4, 5, 8, 8, requires_grad=True), torch.randint(0, 5, (4, 32, 32))
    label[1:] = 255
    label[1, 0, :3] = 2
    features = {"low": torch.randn(4, 6, 8, 8, requires_grad=True)}
    answers = {"teacher_NKHW": torch.randn(4, 5, 4, 4), "teacher_features": {"low": torch.randn(4, 7, 8, 8)}}
    loss = KnowledgeDistillationLoss(channels={"low": (7, 6)})

    def compute(rows: slice):
        targets = {"teacher_NKHW": answers["teacher_NKHW"][rows]}
        targets["teacher_features"] = {"low": answers["teacher_features"]["low"][rows]}
        return loss(scores[rows], {"low": features["low"][rows]}, label[rows], **targets)

    trained, counts = (scores, features["low"], loss.align["low"].weight), []
    loss.add_up = lambda own: counts.append(own) or own
    whole = compute(slice(0, 4))
    expected = torch.autograd.grad(whole.total, trained)
    loss.add_up = lambda own: counts[0]
    parts = [compute(rows) for rows in (slice(0, 1), slice(1, 4))]
    assert [part.ce.count.item() for part in parts] == [1024, 3] and whole.ce.count == 1027
    total = sum(part.total for part in parts)
    assert total.item() == pytest.approx(whole.total.item(), rel=1e-6)
    for found, gradient in zip(torch.autograd.grad(total, trained), expected, strict=True):
        assert torch.allclose(found, gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("count", "num_epochs", "loss"),
    [(2, 10, {}), (4, 10, {}), (2, 2, {"alpha": 0.0, "beta": 0.0}), (2, 2, {"beta": 0.0, "gamma": 0.0})],
)
def test_processes_have_the_losses_and_batches_of_one(given, count, num_epochs, loss):
    """Two steps an epoch; BatchNorm frozen, dropout off, float32. Of features alone the head has no gradient."""
    given = merge(given, {"loss": loss})
    alone = together.train_exactly(Alone(), given, num_epochs)
    many = together.run_together(count, together.train_exactly, given, num_epochs)
    assert len(alone["losses"]) == 2 * num_epochs
    assert [[i for process in many for i in process["ids"][step]] for step in range(2 * num_epochs)] == alone["ids"]
    for process in many:
        assert np.abs(np.subtract(process["losses"], alone["losses"])).max() < TOLERANCE
        assert np.array_equal(process["weights"], many[0]["weights"])
        assert process["confusion"] == many[0]["confusion"]
        for found, expected in zip(process["terms"], alone["terms"], strict=True):
            assert found == pytest.approx(expected, abs=TOLERANCE)
    assert np.sum(many[0]["confusion"]) == np.sum(alone["confusion"])
    assert np.abs(np.subtract(many[0]["confusion"], alone["confusion"])).sum() <= 0.001 * np.sum(alone["confusion"])


def test_the_batches_are_those_of_the_plan(given):
    """Of seed, epoch and step alone."""
    seen = together.train_exactly(Alone(), given, 2)
    plans = [plan_epoch(num_samples=NUM_TRAIN, num_views=2, batch_size=8, seed=0, epoch=epoch) for epoch in (0, 1)]
    numbers = [[sample for _, sample in places] for plan in plans for places in plan]
    assert [[int(i[-4:]) for i in ids] for ids in seen["ids"]] == numbers


def test_a_process_reads_its_own_samples_only(given):
    one, two = together.run_together(2, together.train_exactly, given, 1)
    for process in (one, two):
        read = {sample for split, sample in process["read"] if split == "train"}
        assert read == {sample for ids in process["ids"] for sample in ids}
    assert not one["read"] & two["read"]
    assert len(one["read"] | two["read"]) == NUM_TRAIN + NUM_VAL


def test_dropout_differs_between_processes_and_epochs_and_can_be_drawn_again():
    one, two = together.run_together(2, together.draw)
    assert len({*one, *two}) == 4 and one[0] == one[2] and two[0] == two[2]


def test_on_gpus_batchnorm_is_synchronised_and_keeps_its_names_and_parameters():
    student = LightweightSegmentationModel(5, pretrained=False, aspp_channels=16)
    keys, parameters = student.state_dict().keys(), list(student.parameters())
    num_norms = sum(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    Processes.adopt(make_many(0, 2), student, CPU)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in student.modules())
    Processes.adopt(make_many(0, 2), student, torch.device("cuda"))
    norms = [module for module in student.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == num_norms and {module.momentum for module in norms} == {BATCHNORM_MOMENTUM}
    assert student.state_dict().keys() == keys
    assert all(a is b for a, b in zip(student.parameters(), parameters, strict=True))


# --- whole runs


def test_all_processes_end_with_the_same_student(given):
    """Running statistics as well, which on a CPU each has of its own rows: they become the first one's."""
    one, two = together.run_together(2, together.train_whole, given)
    assert np.array_equal(one["tensors"], two["tensors"]) and one["miou"] == two["miou"]


def test_a_resumed_run_of_two_is_the_uninterrupted_run_bit_for_bit(given, tmp_path):
    whole, halves = (merge(given, {"run": {"dir": str(tmp_path / name)}}) for name in ("whole", "halves"))
    together.run_together(2, together.train_whole, whole)
    stopped = together.run_together(2, together.train_whole, halves, 1)
    assert [answer[0] for answer in stopped] == ["SettingsError"] * 2 and len(read_losses(tmp_path / "halves")) == 1
    together.run_together(2, together.train_whole, merge(halves, {"run": {"resume": True}}))
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "halves")
    a, b = (torch.load(tmp_path / name / "student_kd_last.pth", weights_only=True) for name in ("whole", "halves"))
    for part in ("model_state_dict", "alignment_state_dict"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "train_student", "--config", str(path), *options]
    threads = {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)


def test_the_command_under_torchrun_leaves_what_one_process_leaves(given, tmp_path):
    given = merge(given, {"run": {"baseline": True}})
    done = start(given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("processes: 2, each has up to 4 samples of a batch of 8") == 1
    assert done.stdout.count("epoch 2/2") == 2 and done.stdout.count("student - baseline") == 1
    assert "Warning" not in done.stderr and "rror" not in done.stderr
    folder, alone = tmp_path / "runs" / "kd", tmp_path / "alone" / "kd"
    distill(merge(given, {"run": {"dir": str(alone)}}), root=make_config(given).cache.path)
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    ours, theirs = (torch.load(f / "student_kd_last.pth", weights_only=True) for f in (folder, alone))
    assert ours.keys() == theirs.keys() and ours["hyperparameters"] == theirs["hyperparameters"]
    for part in ("model_state_dict", "alignment_state_dict"):
        assert ours[part].keys() == theirs[part].keys()
    (folder / "result.json").unlink()
    shutil.rmtree(next((tmp_path / "runs").glob("baseline-*")))
    refused = start(given)
    lines = [line for line in refused.stderr.splitlines() if line.startswith("train_student:")]
    assert len(lines) == 1 and "run.dir is in use" in lines[0]
    assert refused.stderr.count("exitcode  : 2") >= 1  # torchrun may kill the second one before it ends
    assert not list((tmp_path / "runs").glob("baseline-*"))  # nobody has begun one


# --- errors


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_and_is_told_once(rank):
    answers = together.run_together(2, together.refuse_in, rank)
    assert answers[rank] == ("SettingsError", f"not in {rank}", 2)
    assert answers[1 - rank][::2] == ("ToldElsewhere", 2)


def test_what_another_process_says_is_not_said_again(capsys):
    def work():
        raise ToldElsewhere(2)

    assert run_command("train_student", work) == 2
    assert capsys.readouterr() == ("", "")


def test_a_non_finite_loss_in_one_process_ends_all(given, tmp_path):
    healthy, failed = together.run_together(2, together.fail, given, "not finite")
    assert failed[0] == "TrainingError" and "epoch 1 step 1: loss is nan" in failed[1]
    assert failed[1].count("sample_train_") == 3  # of five
    assert healthy[0] == "TrainingError" and "process 0 of 2: another process of this run has ended" in healthy[1]
    assert not list((tmp_path / "runs" / "kd").glob("*.pth"))


def test_a_killed_process_ends_the_others_in_one_line(given):
    healthy, killed = together.run_together(2, together.fail, given, "killed")
    assert killed == -9
    assert healthy[0] == "TrainingError" and "another process of this run has ended; look for its line" in healthy[1]


def test_two_processes_on_one_gpu_are_refused():
    one, two = together.run_together(2, together.share_one_gpu)
    assert one[0] == "SettingsError" and two[0] == "ToldElsewhere"
    assert "train.device is 'cuda:0', expected a GPU for each of 2 processes; set train.device auto" in one[1]


def test_the_gpu_that_torch_takes_by_default_needs_no_number():
    assert together.run_together(2, together.take_default_gpus) == [None, None]


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"loss": {"beta": 0.25}}, "loss.beta of process 1 is 0.25, expected 0.5, as process 0 has it"),
        ({"run": {"baseline": True}}, "run.baseline of process 1 is True, expected False, as process 0 has it"),
        ({"train": {"precision": "bfloat16"}}, "train.precision of process 1 is 'bfloat16', expected 'float32'"),
    ],
)
def test_processes_with_other_settings_are_refused_in_one_line(given, own, words):
    one, two = together.run_together(2, together.train_otherwise, given, own)
    assert one[0] == "SettingsError" and two[0] == "ToldElsewhere"
    assert f"settings: {words}" in one[1] and one[1].endswith("the same settings, cache and arithmetic")


def test_processes_with_another_cache_are_refused_in_one_line(given, tmp_path):
    other = merge(given, {"cache": {"path": str(tmp_path / "other")}, "augment": {"seed": 1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.cache.build.build_teacher", quick.make_quick_teacher)
        build_cache(make_config(other))
    own = {name: other[name] for name in ("cache", "augment")}
    one, _ = together.run_together(2, together.train_otherwise, given, own)
    assert one[0] == "SettingsError" and "identity of the cache of process 1 is " in one[1]


def test_a_compiler_that_fails_in_one_process_is_left_out_in_all(given):
    answers = together.run_together(2, together.compile_where_it_fails_in_one, given)
    assert answers == [(False, ["compile: off, not possible in every process"]), (False, [])]


def test_few_rows_a_process_on_a_cpu_are_warned_of(caplog):
    _warn_of_few_rows(16, 4, CPU)
    _warn_of_few_rows(8, 4, torch.device("cuda"))
    assert not caplog.records
    _warn_of_few_rows(8, 4, CPU)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "have 2 rows of a batch" in line and line.endswith("start fewer processes or set train.batch_size 16")


def test_a_baseline_on_a_cpu_is_one_of_as_many_processes(given):
    config = make_config(given)
    data = open_data(config.cache.path, read_manifest(config.cache.path), num_views=2)
    hashes = [hash_settings(baseline_config(config), data, count=count) for count in (1, 2, 4)]
    assert len(set(hashes)) == 3
