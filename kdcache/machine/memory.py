"""What this process may use: free memory of the machine and of a GPU, cores, mapped files."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

from kdcache.machine.workers import find_worker

# half of the memory maps that Linux allows a process by default (vm.max_map_count)
MOST_MAPS = 32_000
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def find_free_ram() -> int:
    """Bytes that can be used without swapping; the page cache counts as free.

    The limit of a container counts if it is visible as control groups of version 2.
    """
    return min(_find_machine_free(), _find_container_free())


def find_free_gpu(device: torch.device) -> int:
    """Bytes free on a GPU, including what torch has reserved but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_own_cores() -> int:
    """The cores of this worker.

    All it may use if it is bound to some of the machine's cores, else its share of all of them.
    """
    cores = count_cores()
    return max(cores // find_worker().local_count, 1) if cores == os.cpu_count() else cores


def allow_mapped_files(count: int) -> bool:
    """Raise this process's limit of open files so that `count` more can be mapped.

    Returns: False if the system does not allow it.
    """
    if count > MOST_MAPS:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 1024  # what torch, logs and the rest may need
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return True
    if hard != resource.RLIM_INFINITY and needed > hard:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError):
        return False
    return True


def _find_machine_free() -> int:
    try:
        lines = _MEMINFO.read_text().splitlines()
        return next(
            int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")
        )
    except (OSError, StopIteration):  # no Linux: half of what is built in
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _find_container_free() -> float:
    """Bytes left below the limit of a control group (version 2); its file pages count as free."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(limit - used + int(facts["inactive_file"]) + int(facts["active_file"]), 0)
    except (OSError, ValueError, KeyError):
        return float("inf")
