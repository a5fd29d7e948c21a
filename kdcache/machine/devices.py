"""Which device, which arithmetic, and whether to compile: by settings, refused if the machine lacks
it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from kdcache.errors import Phrase, SettingsError, describe, one_line
from kdcache.machine.process import Worker, find_worker

log = logging.getLogger("kdcache")


def choose_device(name: str, *, field: str) -> torch.device:
    """auto, cpu, cuda or cuda:N -> device; auto gives each worker of a machine its own GPU.

    If there are more workers than GPUs, they share them.

    From then on float32 is float32 on GPUs (`use_exact_float32`), and a numbered GPU is that of the
    calling thread (`use_device`).

    Raises: SettingsError if the device is not on this machine.
    """
    use_exact_float32()
    count, reason = _count_gpus()
    if name == "auto":
        if reason:
            _warn_once(reason)
        return use_device(_choose_gpu(find_worker(), count) if count else torch.device("cpu"))
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{n}" for n in range(count))]
    if name not in known:
        why = reason or ("" if torch.version.cuda else "it was built without CUDA")
        why = f", whose GPU torch cannot use ({why})" if why and not count else ""
        expected = Phrase(f"auto or one of {', '.join(known)} on this machine{why}")
        raise SettingsError(
            describe("settings", field=field, found=name, expected=expected, cure=f"change {field}")
        )
    return use_device(torch.device(name))


_said: list[str] = []  # what torch said of a GPU that it cannot use; it says so once


def _count_gpus() -> tuple[int, str]:
    """How many GPUs torch can use; if none, why not ("" if it does not say)."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if told and not count:
        _said[:] = [one_line(told[-1].message)]
    return count, "" if count else "".join(_said)


@cache
def _warn_once(reason: str) -> None:
    log.warning(
        "device: torch cannot use the GPU (%s); the CPU is taken; install a driver or a torch that "
        "fit each other",
        reason,
    )


def use_device(device: torch.device) -> torch.device:
    """Make a numbered GPU the calling thread's own, and return it.

    Else events, pinned memory and libraries of the thread open a context on GPU 0, which takes 0.3
    to 0.5 GB there.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _choose_gpu(worker: Worker, count: int) -> torch.device:
    """`cuda` for a single process, so that `CUDA_VISIBLE_DEVICES` and torch's default count."""
    alone = worker.local_count == 1
    return torch.device("cuda" if alone else f"cuda:{worker.local_rank % count}")


def mark_end(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event behind all that the stream was asked for so far. Who waits for it sleeps: torch's
    own waiting keeps a core busy, which others need for reading and drawing.
    """
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


def find_gpu(device: torch.device) -> str | None:
    """The UUID of a GPU, which no other GPU of any machine has; None for the CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def check_precision(
    precision: str,
    device: torch.device,
    *,
    field: str,
    known: Sequence[str] = ("float32", "bfloat16"),
) -> None:
    """Check that the device has this arithmetic.

    Args:
        known: those that the setting can name.

    Raises: SettingsError, with those of them that the device has.
    """
    if precision in known and _has_precision(precision, device):
        return
    there = [name for name in known if _has_precision(name, device)]
    expected = Phrase(f"one of {', '.join(there)} on {device}")
    raise SettingsError(
        describe(
            "settings", field=field, found=precision, expected=expected, cure=f"change {field}"
        )
    )


def _has_precision(name: str, device: torch.device) -> bool:
    if device.type != "cuda":
        return name in ("float32", "bfloat16")
    if name == "tf32":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return name != "bfloat16" or supports_bfloat16(device)


def supports_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 itself; emulation would be slower than float32."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def use_exact_float32() -> None:
    """float32 means float32 on GPUs, whatever the environment says: TF32 keeps 10 bits of 23.

    With bfloat16 or float16, too: losses, upsampling and bases are float32 beside them.
    """
    _allow_tf32(False)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed
    convolutions = (getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn"))
    for part in (torch.backends.cuda.matmul, *convolutions):
        if hasattr(part, "fp32_precision"):  # from torch 2.9 on; else convolutions would inherit it
            part.fp32_precision = "tf32" if allowed else "ieee"


@contextmanager
def use_teacher_kernels(*, tf32: bool, benchmark: bool) -> Iterator[None]:
    """What a teacher is asked with on a GPU; afterwards float32 is exact again, as losses need it.

    Args:
        tf32: whether float32 products may round to 10 bits. benchmark: as `use_kernels`.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = benchmark
    try:
        if tf32:
            _allow_tf32(True)
        yield
    finally:
        torch.backends.cudnn.benchmark = before
        if tf32:
            _allow_tf32(False)


WORKSPACE, REPEATABLE = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
_switched = {"deterministic": False, "benchmark": False}  # by us


def reserve_workspace(*, field: str) -> None:
    """Ask cuBLAS for products that repeat, which it looks for when a GPU is first used.

    Raises: SettingsError if it is too late for that, or the environment asks for something else.
    """
    found, cure = os.environ.get(WORKSPACE), f"start again with {WORKSPACE}={REPEATABLE[0]}"
    if found in REPEATABLE:
        return
    if found is not None or torch.cuda.is_initialized():
        late = Phrase("unset in a process that has used a GPU") if found is None else found
        expected = Phrase(f"{' or '.join(REPEATABLE)} before one is used, for {field}")
        raise SettingsError(
            describe("environment", field=WORKSPACE, found=late, expected=expected, cure=cure)
        )
    os.environ[WORKSPACE] = REPEATABLE[0]


def use_kernels(device: torch.device, *, deterministic: bool, benchmark: bool) -> None:
    """Which kernels a GPU takes from now on, in the whole process; those of a CPU repeat anyway.

    What a program around ours has switched on stays on.

    Args:
        deterministic: only those whose sums repeat; else torch raises a RuntimeError.
        benchmark: whether cuDNN tries its convolutions at each new size and takes the fastest.
    """
    on_gpu = device.type == "cuda"
    wanted = {"deterministic": on_gpu and deterministic, "benchmark": on_gpu and benchmark}
    if wanted["deterministic"] != _switched["deterministic"]:
        torch.use_deterministic_algorithms(wanted["deterministic"])
    if wanted["benchmark"] != _switched["benchmark"]:
        torch.backends.cudnn.benchmark = wanted["benchmark"]
    _switched.update(wanted)


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
