"""Where a run took place: what figures can be compared with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from kdcache.machine.process import describe_machine

PACKAGES = ("torch", "zarr", "numcodecs", "tensorstore", "h5py", "numpy", "crc32c", "kdcache")


def read_machine() -> dict:
    """CPU, cores this process may use, memory, GPU."""
    return {
        "cpu": _read_field("/proc/cpuinfo", "model name")
        or platform.processor()
        or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg()[0],
    }


def read_versions() -> dict:
    """Of Python and of every package whose speed is measured."""
    versions = describe_machine(torch.device("cpu"), packages=PACKAGES)["versions"]
    return {name: versions[name] for name in ("python", *PACKAGES)}


def read_status_mb(field: str) -> float:
    """A memory field of this process, megabytes: VmHWM (peak), RssAnon, RssFile."""
    return int(_read_field("/proc/self/status", field).split()[0]) * 1024 / 1e6


def _read_field(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == name), ""
    )
