"""The arithmetic of a run on this machine: device, precision, and whether to compile."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from kdcache.config import Config
from kdcache.machine.devices import (
    check_precision,
    choose_device,
    supports_bfloat16,
    use_exact_float32,
)


def choose_arithmetic(config: Config) -> tuple[torch.device, torch.dtype | None]:
    """Device and autocast dtype (None: float32, TF32 off).

    Raises: SettingsError if the machine lacks them.
    """
    device = choose_device(config.train.device, field="train.device")
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and supports_bfloat16(device) else "float32"
    check_precision(precision, device, field="train.precision")
    if precision == "float32":
        use_exact_float32()
        return device, None
    return device, getattr(torch, precision)


def choose_compiling(setting: str, *, device: torch.device) -> tuple[bool, str]:
    """Whether `train.compile` means compiling on this machine, and a line that says so."""
    if setting == "off":
        return False, "compile: off, as set"
    missing = _find_missing_tool(device)
    if missing:
        return False, f"compile: off, {missing}"
    if setting == "auto" and device.type == "cpu":
        # measured: 22 to 100 s of compiling for 2 to 4 % of a step
        return (
            False,
            "compile: off, on a CPU it gains less than it takes (train.compile on tries it)",
        )
    return True, "compile: on, compiling now, which takes one to three minutes"


def _find_missing_tool(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is missing"
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if any(shutil.which(name) for name in compilers):
        return None
    return f"no C++ compiler ({' or '.join(compilers)}) found"
