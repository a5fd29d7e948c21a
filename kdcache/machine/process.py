"""This process: which of several it is, what it may use of the machine, its locks on files, and the
versions that it computes with.

Several processes, started by torchrun or SLURM, share work without talking to each other. Nothing
here needs torch until it is asked about a device.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kdcache.disk import open_descriptor
from kdcache.errors import KdcacheError, SettingsError

if TYPE_CHECKING:
    import torch

# half of the memory maps that Linux allows a process by default (vm.max_map_count)
MOST_MAPS = 32_000
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_DRIVER = Path("/proc/driver/nvidia/version")
# these decide the numbers of both phases
PACKAGES = ("kdcache", "torch", "torchvision", "numpy", "pillow")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Worker:
    """One of `count` processes, `rank` from 0; on its machine `local_rank` of `local_count`."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def leads(self) -> bool:
        """Whether it waits for what others hold, and does it if they die."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> list[Item]:
        """The items of its own stripe, in order."""
        return list(items[self.rank :: self.count])

    def others(self, items: Sequence[Item]) -> list[Item]:
        """The items of the other stripes, the next worker's first, each stripe from its end.

        An owner works from the front, so the two meet late.
        """
        stripes = [items[(self.rank + n) % self.count :: self.count] for n in range(1, self.count)]
        return [item for stripe in stripes for item in reversed(stripe)]


def find_worker(environment: Mapping[str, str] | None = None) -> Worker:
    """The worker that the environment describes.

    torchrun sets RANK, WORLD_SIZE, ...; SLURM sets SLURM_PROCID, ...; a job array multiplies the
    processes by its elements. Each element is a job that starts alone, perhaps on another machine;
    together they are the workers. Whatever the numbers are, a single worker does all the work in
    the end, and the last one does what is done once.

    Raises: SettingsError if the variables contradict each other.
    """
    given = os.environ if environment is None else environment
    if "RANK" in given and "WORLD_SIZE" in given:
        rank, count = _read(given, "RANK", "WORLD_SIZE")
    else:
        place = _read(given, "SLURM_PROCID", "SLURM_NTASKS") if "SLURM_PROCID" in given else (0, 1)
        element, elements = _read_array(given) if "SLURM_ARRAY_TASK_ID" in given else (0, 1)
        rank, count = element * place[1] + place[0], elements * place[1]
    local_rank = _number(given, "LOCAL_RANK" if "LOCAL_RANK" in given else "SLURM_LOCALID")
    known = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in given else "SLURM_NTASKS_PER_NODE"
    return Worker(rank, count, local_rank, max(_number(given, known, unset=1), local_rank + 1))


def _read(given: Mapping[str, str], rank_name: str, count_name: str) -> tuple[int, int]:
    rank, count = _number(given, rank_name), _number(given, count_name, unset=1)
    if not 0 <= rank < count:
        expected = f"0 to {count - 1}, as {count_name} is {count}"
        raise SettingsError(
            f"environment: {rank_name} is {rank}, expected {expected}; unset both or mend them"
        )
    return rank, count


def _read_array(given: Mapping[str, str]) -> tuple[int, int]:
    """Place and number of the elements of a job array, whose ids may start anywhere, with steps."""
    names = {"SLURM_ARRAY_TASK_MIN": 0, "SLURM_ARRAY_TASK_STEP": 1, "SLURM_ARRAY_TASK_COUNT": 1}
    least, step, count = (_number(given, name, unset=unset) for name, unset in names.items())
    element = (_number(given, "SLURM_ARRAY_TASK_ID") - least) // max(step, 1)
    # for an array like 1,7,9 SLURM does not say which place 7 has: any place will do, since each
    # worker takes what is left
    return element % max(count, 1), max(count, 1)


def _number(given: Mapping[str, str], name: str, *, unset: int = 0) -> int:
    text = given.get(name, str(unset))
    if not text.isdecimal():
        raise SettingsError(
            f"environment: {name} is {text!r}, expected a whole number; unset it or mend it"
        )
    return int(text)


def find_free_ram() -> int:
    """Bytes that can be used without swapping; the page cache counts as free.

    The limit of a container counts if it is visible as control groups of version 2.
    """
    return min(_find_machine_free(), _find_container_free())


def find_free_gpu(device: torch.device) -> int:
    """Bytes free on a GPU, including what torch has reserved but does not use."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def find_driver() -> str:
    """Version of NVIDIA's driver, as "550.54.15"; "unknown" if the system does not say it."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", _DRIVER.read_text())
    except OSError:
        found = None
    return found[0] if found else "unknown"


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


class LockLostError(KdcacheError):
    """A lock was removed while it was held: another process may write, so this one must not."""


def lock_file(path: Path, *, wait: bool) -> int | None:
    """Lock the file `path` in an existing folder by flock; it is made if it is missing.

    Its holder removes it, so that none is left but those of killed processes, whose lock has ended;
    the next holder takes them over.

    Args:
        wait: wait for the process that holds it.

    Returns: a descriptor for `unlock_file`; None if another process holds it and `wait` is false.
    Raises: OSError, also for a link.
    """
    while True:
        descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if is_same_file(path, descriptor):
            return descriptor
        os.close(descriptor)  # the previous holder has removed it


def unlock_file(path: Path, descriptor: int) -> None:
    """Remove the file, if it is still the one that was locked, and end the lock. Raises OSError."""
    try:
        # removed while it is locked: a process that waits for it then makes a new file
        if is_same_file(path, descriptor):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def check_lock(path: Path, descriptor: int) -> None:
    """Raise LockLostError if the locked file is no longer at `path`; call it before each write."""
    if not is_same_file(path, descriptor):
        raise LockLostError(
            f"{path}: lock was removed while it was held, expected it to stay; what is finished is "
            "kept, run the same command again once no other process writes here"
        )


def is_same_file(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`. Raises OSError."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def describe_machine(device: torch.device, *, packages: tuple[str, ...] = ()) -> dict:
    """Device, threads and versions, as JSON values: stored with results, never compared.

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
