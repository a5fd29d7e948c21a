"""Devices are chosen with exact float32 arithmetic, whatever was asked for before."""

import subprocess
import sys

import pytest
import torch

from kdcache.machine.devices import choose_device

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
