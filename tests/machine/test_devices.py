"""Devices are chosen with exact float32 arithmetic, whatever was asked for before."""

import ast
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdcache.cache.settings import teacher_facts
from kdcache.command import cannot_run_as_2, run_command
from kdcache.config import TeacherConfig
from kdcache.config.parser import make_config
from kdcache.errors import KdcacheError, SettingsError, TeacherError, is_out_of_memory
from kdcache.machine import devices, process
from kdcache.machine.devices import choose_device, use_exact_float32
from kdcache.models import teacher
from kdcache.models.networks import Network
from kdcache.models.teacher import Teacher, ask_network
from kdcache.training import learner
from kdcache.training.learner import explain_failures
from tests.support.helpers import check_one_line

ROOT = Path(__file__).parents[2]
WITHOUT_GPU = ("repair.py", "contents.py", "ray_engine.py")  # their threads draw views, or wait

IMAGE = torch.zeros(1, 3, 16, 16)
PARTS = {"matmul": torch.backends.cuda.matmul}
if hasattr(torch.backends.cudnn, "conv"):  # from torch 2.9 on
    PARTS["convolutions"] = torch.backends.cudnn.conv
    PARTS["recurrent layers"] = torch.backends.cudnn.rnn
ASK = """
from kdcache.machine.devices import choose_device
import torch
choose_device("cpu", field="train.device")
print(torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
"""


@pytest.fixture
def tf32():
    """TF32 is on for everything; what was set returns afterwards."""
    parts = (torch.backends, *PARTS.values())
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "tf32"
    yield
    for part, precision in zip(parts, before, strict=True):
        part.fp32_precision = precision


@pytest.mark.skipif(not hasattr(PARTS["matmul"], "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize("name", PARTS)
def test_choosing_a_device_switches_tf32_off(name, tf32):
    choose_device("cpu", field="train.device")
    assert PARTS[name].fp32_precision == "ieee"


def test_torch_before_2_9_has_one_switch_for_all_convolutions(monkeypatch):
    old = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", old)
    use_exact_float32()
    assert old.allow_tf32 is False


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("benchmark", [False, True])
def test_a_teacher_alone_is_asked_with_the_kernels_of_its_settings(precision, benchmark):
    """What comes before and after it, as losses and bases, is exact in any case."""
    seen, convolution = [], torch.nn.Conv2d(3, 2, 1)
    use_exact_float32()

    def note():
        flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        before_2_9 = "tf32" if flags[0] else "ieee"
        modern = {getattr(part, "fp32_precision", before_2_9) for part in PARTS.values()}
        seen.append((*flags, modern <= {"tf32"}, torch.backends.cudnn.benchmark))

    def ask(x_NCHW):
        note()
        return convolution(x_NCHW)

    network = Network("n", convolution, 2, ask=ask)
    asked = Teacher(
        network, taps={}, device=torch.device("cpu"), precision=precision, cudnn_benchmark=benchmark
    )
    asked(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    note()
    tf32 = precision == "tf32"
    assert seen == [(tf32, tf32, tf32, benchmark), (False, False, False, False)]
    network = Network("n", convolution, 2, ask=lambda x: 1 / 0)
    with pytest.raises(TeacherError):
        Teacher(network, taps={}, device=torch.device("cpu"), precision=precision)(
            torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
        )
    note()
    assert seen[-1] == (False, False, False, False)


@pytest.mark.parametrize(("capability", "there"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tf32_is_for_gpus_that_have_it(monkeypatch, capability, there):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(devices, "supports_bfloat16", lambda device: there)
    monkeypatch.setattr(teacher, "choose_device", lambda name, field: torch.device("cuda"))
    config = TeacherConfig(precision="tf32")
    if there:
        assert teacher.choose_teacher_device(config) == torch.device("cuda")
        return
    with pytest.raises(SettingsError) as error:
        teacher.choose_teacher_device(config)
    check_one_line(error, "teacher.precision is 'tf32', expected one of float32, float16 on cuda")


def test_another_arithmetic_of_the_teacher_is_another_cache_and_tried_kernels_are_not():
    plain, tf32, tried = (
        teacher_facts(make_config({"teacher": given}), train=True)
        for given in ({}, {"precision": "tf32"}, {"cudnn_benchmark": True})
    )
    assert tf32 == {**plain, "precision": "tf32"} and tried == plain


def test_the_environment_does_not_switch_tf32_on(monkeypatch):
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_gpu_that_torch_cannot_use_is_a_line(monkeypatch, caplog):
    def is_available():
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(devices, "_said", [])
    devices._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="kdcache"):
        assert [choose_device("auto", field="train.device").type for _ in range(2)] == ["cpu"] * 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert "driver on your system is too old" in line and "the CPU is taken" in line
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # torch says it only once
    with pytest.raises(SettingsError) as error:
        choose_device("cuda", field="teacher.device")
    check_one_line(error, "teacher.device is 'cuda', expected auto or one of cpu on this machine")
    check_one_line(error, "whose GPU torch cannot use (CUDA initialization: The NVIDIA driver")


def test_a_torch_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_said", [])
    with pytest.raises(SettingsError) as error:
        choose_device("cuda:0", field="train.device")
    check_one_line(error, "train.device is 'cuda:0'", "it was built without CUDA")


KERNEL_MODULE = "NVRM version: NVIDIA UNIX {} 560.35.03  Release Build\nGCC version: 12.3.0"


@pytest.mark.parametrize("words", ["x86_64 Kernel Module ", "Open Kernel Module for x86_64 "])
def test_a_line_names_gpu_driver_cuda_precision_and_compiling(monkeypatch, tmp_path, words):
    monkeypatch.setattr(process, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    here = SimpleNamespace(device=torch.device("cuda:1"), autocast=torch.bfloat16, compiled=True)
    expected = "device: Some GPU (cuda:1), driver {}, CUDA 13.2, bfloat16, compiled"
    assert learner.describe_arithmetic(here) == expected.format("unknown")
    (tmp_path / "version").write_text(KERNEL_MODULE.format(words))
    assert learner.describe_arithmetic(here) == expected.format("560.35.03")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize("name", ["cuda:9", "cuda:2", "mps", "gpu"])
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(two_gpus, name):
    with pytest.raises(SettingsError) as error:
        choose_device(name, field="train.device")
    expected = "expected auto or one of cpu, cuda, cuda:0, cuda:1 on this machine; change"
    check_one_line(error, f"settings: train.device is '{name}', {expected} train.device")


def test_a_gpu_without_bfloat16_names_what_the_setting_can_be_on_it(monkeypatch):
    """Not what some other setting can be: train.precision float16 would be refused next."""
    monkeypatch.setattr(devices, "supports_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    config = make_config({"train": {"device": "cuda", "precision": "bfloat16"}})
    monkeypatch.setattr(learner, "choose_device", lambda name, field: torch.device("cuda"))
    with pytest.raises(SettingsError) as error:
        learner.choose_arithmetic(config)
    check_one_line(error, "train.precision is 'bfloat16', expected one of float32 on cuda; change")
    monkeypatch.setattr(teacher, "choose_device", lambda name, field: torch.device("cuda"))
    with pytest.raises(SettingsError) as error:
        teacher.choose_teacher_device(TeacherConfig(precision="bfloat16"))
    check_one_line(error, "teacher.precision is 'bfloat16', expected one of float32, float16 on")


@pytest.mark.parametrize(("name", "expected"), [("cuda:1", [1]), ("cuda", []), ("cpu", [])])
def test_a_thread_uses_a_numbered_gpu_alone(monkeypatch, name, expected):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: taken.append(device.index))
    assert devices.use_device(torch.device(name)) == torch.device(name)
    assert taken == expected


def test_every_pool_of_threads_that_touches_a_gpu_takes_its_device():
    """Pools of the rooms that move tensors to a device; each names `use_device`."""
    for room in ("training", "precompute"):
        for path in (ROOT / "kdcache" / room).glob("*.py"):
            tree = ast.parse(path.read_text())
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            pools = [call for call in calls if ast.unparse(call.func) == "ThreadPoolExecutor"]
            made = "use_device" in ast.unparse(tree)
            lacking = [p.lineno for p in pools if not (made and "**own" in ast.unparse(p))]
            assert not lacking or path.name in WITHOUT_GPU, (path.name, lacking)


def test_nothing_waits_for_a_gpu_with_a_busy_core():
    """Events that block let the thread sleep; they are made in one place."""
    busy, blocking = [], []
    for path in (ROOT / "kdcache").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Call) else ""
            if text.startswith("torch.cuda.Event("):
                (blocking if "blocking=True" in text else busy).append(path.name)
            if "record_event(" in text or text.endswith("stream.synchronize()"):
                busy.append(f"{path.name}: {text}")
    assert blocking == ["devices.py"] and not busy


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:20],
)
@pytest.mark.parametrize("program", ["cache_teacher", "train_student"])
def test_missing_memory_has_one_line_with_its_cure(program, error, capsys):
    def work():
        with explain_failures("my.student:build"):  # it is not the student's fault
            raise error

    assert run_command(program, work) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{program}: out of memory (") and "train.batch_size" in line


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: no kernel image is available for execution on the device\nSearch for ...",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    ],
)
@pytest.mark.parametrize("program", ["cache_teacher", "train_student"])
def test_a_gpu_that_fails_is_no_bug_of_ours_and_no_fault_of_a_network(program, words, capsys):
    def fail(*args):
        raise RuntimeError(words)

    def work():
        with explain_failures("my.student:build"):
            ask_network(Network("my.teacher:build", torch.nn.Identity(), 2, ask=fail), IMAGE)

    assert run_command(program, work) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{program}: the GPU or its driver has failed ({words[:20]}")
    assert "nvidia-smi" in line and "bug" not in line
    with pytest.raises(KdcacheError) as error, cannot_run_as_2(Path("cache"), doing="compared"):
        fail()
    assert error.value.exit_code == 2  # it is no finding of a comparison


def test_odd_numbers_on_a_gpu_are_the_fault_of_whose_code_gave_them():
    def fail(*args):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(TeacherError, match="my.teacher:build"):
        ask_network(Network("my.teacher:build", torch.nn.Identity(), 2, ask=fail), IMAGE)


def test_another_runtime_error_is_not_one_of_memory():
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))
