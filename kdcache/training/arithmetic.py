"""The device and the arithmetic of a training run."""

from __future__ import annotations

import torch

from kdcache.config import Config
from kdcache.machine.devices import (
    check_precision,
    choose_device,
    supports_bfloat16,
    use_exact_float32,
)


def choose_arithmetic(config: Config) -> tuple[torch.device, torch.dtype | None]:
    """Device and autocast type (None: float32, TF32 off). Raises SettingsError where the machine lacks them."""
    device = choose_device(config.train.device, field="train.device")
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and supports_bfloat16(device) else "float32"
    check_precision(precision, device, field="train.precision")
    if precision == "float32":
        use_exact_float32()
        return device, None
    return device, getattr(torch, precision)
