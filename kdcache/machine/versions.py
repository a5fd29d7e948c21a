"""On what something was computed: device, threads, versions. Kept beside results, never compared."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "kdcache",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
)  # these decide the numbers of both phases


def describe_machine(device: torch.device, *, packages: tuple[str, ...] = ()) -> dict:
    """JSON values: `device` (the GPU's name, or "cpu"), `num_threads` of torch, `versions` of
    Python and packages.

    Args:
        packages: whose version is kept besides PACKAGES.
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
