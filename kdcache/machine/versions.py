"""What a result was computed on: device, threads, versions. Stored with results, never compared."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# these decide the numbers of both phases
PACKAGES = ("kdcache", "torch", "torchvision", "numpy", "pillow")


def describe_machine(device: torch.device, *, packages: tuple[str, ...] = ()) -> dict:
    """Device, threads and versions, as JSON values.

    Args:
        packages: their versions are also stored.

    Returns: `device` (the name of the GPU, or "cpu"), `num_threads` of torch, and `versions` of
        Python and packages.
    """
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "num_threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: _find_version(name) for name in (*PACKAGES, *packages)},
        },
    }


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was never installed
        return "not installed"
