"""train.deterministic: what a GPU is asked for, when it is too late, and that a step can do it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdcache.config import TrainConfig
from kdcache.config.parser import make_config
from kdcache.errors import SettingsError, TrainingError
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.machine import devices
from kdcache.models.student import STUDENT_CHANNELS, LightweightSegmentationModel
from kdcache.training import learner
from kdcache.training.run_identity import hyperparameters
from tests.support.helpers import check_one_line

CPU, GPU = torch.device("cpu"), torch.device("cuda")
REFUSED = (
    "adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
    "avg_pool3d_backward", "fractional_max_pool", "max_unpool", "upsample_linear1d_backward",
    "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward",
    "reflection_pad",
    "nll_loss", "ctc_loss", "_embedding_bag", "put_.", "histc", "bincount", "median",
    "grid_sampler_2d_backward", "scatter_reduce", "kthvalue", "resize_.",
)  # fmt: skip
"""Of torch.use_deterministic_algorithms: what it refuses on a GPU, some of it in one mode alone."""


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU that nobody has used; what torch is asked for is noted."""
    asked = []
    monkeypatch.setenv(devices.WORKSPACE, "")  # so that it is as before afterwards
    monkeypatch.delenv(devices.WORKSPACE)
    monkeypatch.setattr(devices, "_switched", {"deterministic": False, "benchmark": False})
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return asked


def choose(monkeypatch, device: torch.device, **train) -> None:
    seen = []

    def choose_device(name, field):
        seen.append(os.environ.get(devices.WORKSPACE))
        return device

    monkeypatch.setattr(learner, "choose_device", choose_device)
    learner.choose_arithmetic(make_config({"train": {"precision": "float32", **train}}))
    if train.get("deterministic"):
        assert seen == [":4096:8"]  # cuBLAS looks for it when the GPU is first used


def test_sums_that_repeat_are_asked_for_and_given_up_by_the_next_run(machine, monkeypatch):
    choose(monkeypatch, GPU)
    assert machine == [] and devices.WORKSPACE not in os.environ
    choose(monkeypatch, GPU, deterministic=True)
    choose(monkeypatch, GPU, deterministic=True)
    assert machine == [True]
    choose(monkeypatch, GPU)
    assert machine == [True, False]


def test_on_a_cpu_nothing_is_switched(machine, monkeypatch):
    """Its sums repeat anyway, and torch would only fill memory for nothing."""
    choose(monkeypatch, CPU, deterministic=True)
    choose(monkeypatch, CPU, cudnn_benchmark=True)
    assert machine == [] and not torch.backends.cudnn.benchmark


def test_what_a_program_around_ours_has_switched_on_stays(machine, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    choose(monkeypatch, GPU)
    assert machine == [] and torch.backends.cudnn.benchmark


def test_convolutions_are_tried_for_the_runs_that_ask_for_it(machine, monkeypatch):
    choose(monkeypatch, GPU, cudnn_benchmark=True)
    assert torch.backends.cudnn.benchmark
    choose(monkeypatch, GPU)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("there", "used", "found"),
    [
        (None, False, None),
        (":16:8", True, None),
        (None, True, "unset in a process that has used a GPU"),
        (":0:0", False, "':0:0'"),
    ],
)
def test_too_late_is_one_line(machine, monkeypatch, there, used, found):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    if there:
        monkeypatch.setenv(devices.WORKSPACE, there)
    if not found:
        devices.reserve_workspace(field="train.deterministic")
        assert os.environ[devices.WORKSPACE] == (there or ":4096:8")
        return
    with pytest.raises(SettingsError) as error:
        devices.reserve_workspace(field="train.deterministic")
    check_one_line(error, f"environment: CUBLAS_WORKSPACE_CONFIG is {found}, expected :4096:8 or")
    check_one_line(error, "for train.deterministic", "; start again with CUBLAS_WORKSPACE_CONFIG=")


@pytest.mark.parametrize("other", [{"compile": "on"}, {"cudnn_benchmark": True}])
def test_what_chooses_kernels_by_their_speed_does_not_go_with_it(other):
    with pytest.raises(SettingsError) as error:
        TrainConfig(deterministic=True, **other)
    check_one_line(error, f"train.{next(iter(other))} is", "with train.deterministic")


def test_it_compiles_nothing_by_itself_and_is_no_other_run():
    plain = make_config({"train": {"device": "cpu"}})
    for name in ("deterministic", "cudnn_benchmark"):
        other = replace(plain, train=replace(plain.train, **{name: True}))
        assert hyperparameters(other) == hyperparameters(plain)
    assert plain.train.compiling == "auto"
    assert TrainConfig(deterministic=True).compiling == "off"
    assert TrainConfig(compile="on").compiling == "on"


class Names(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_step_has_no_operation_that_a_gpu_would_refuse(monkeypatch, deterministic):
    """Traced without numbers: what is not on a CPU is upsampled as on a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # not on meta
    channels = {level: (8, count) for level, count in STUDENT_CHANNELS.items()}
    with torch.device("meta"):
        student = LightweightSegmentationModel(5, pretrained=False)
        loss = KnowledgeDistillationLoss(channels=channels, pseudo=1.0, pseudo_threshold=0.5)
        image, label = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.uint8)
        taught = {"teacher_NKHW": torch.randn(2, 5, 8, 8)}
        taught["teacher_features"] = {level: torch.randn(2, 8, 8, 8) for level in channels}
        labelled = torch.ones(2, dtype=torch.bool)
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()])
    with Names() as names:
        logits, features = student(image, return_features=True, full_size=False)
        loss(logits, features, label, **taught, labelled_N=labelled).total.backward()
        optimizer.step()
        student.eval()(image).argmax(1)
    assert any("convolution_backward" in name for name in names.seen)
    assert not [name for name in names.seen if any(word in name for word in REFUSED)]


@pytest.mark.parametrize("arch", ["mobilenetv3_small", "my.student:build"])
def test_a_student_that_cannot_do_it_is_one_line(arch):
    words = "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you"
    with pytest.raises(TrainingError) as error, learner.explain_failures(arch):
        raise RuntimeError(f"{words} set 'torch.use_deterministic_algorithms(True)'. You can ...")
    check_one_line(error, f"train.deterministic is True and student.arch {arch} cannot be", words)
    check_one_line(error, "set it to false")
