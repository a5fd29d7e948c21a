"""Devices are chosen with exact float32 arithmetic, whatever was asked for before."""

import ast
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from kdcache.command import run_command
from kdcache.errors import is_out_of_memory
from kdcache.machine import devices
from kdcache.machine.devices import choose_device
from kdcache.training.learner import explain_failures

ROOT = Path(__file__).parents[2]
WITHOUT_GPU = ("repair.py", "ray_engine.py")  # their threads draw views, or wait

PARTS = {
    "matmul": torch.backends.cuda.matmul,
    "convolutions": torch.backends.cudnn.conv,
    "recurrent layers": torch.backends.cudnn.rnn,
}
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
    devices._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="kdcache"):
        assert [choose_device("auto", field="train.device").type for _ in range(2)] == ["cpu"] * 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert "driver on your system is too old" in line and "the CPU is taken" in line


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


def test_another_runtime_error_is_not_one_of_memory():
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))
