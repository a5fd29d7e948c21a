"""Writes a student in another format, and gives the file its name once it agrees with PyTorch.

Each format is a module of its own (`onnx.py`, `safetensors.py`, `executorch.py`) with
`write(student, path)` and `check(student, path, images)`; it imports packages that need not be
installed.

Letters: N images, H height, W width, K classes.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from kdcache import disk, seals
from kdcache.deploy.student import TrainedStudent
from kdcache.disk import UnfitFileError, open_stream, read_plain
from kdcache.errors import (
    KdcacheError,
    Phrase,
    SettingsError,
    TrainingError,
    describe,
    one_line,
)
from kdcache.machine.process import lock_file, unlock_file
from kdcache.progress import Say

FILES = {"onnx": "student.onnx", "safetensors": "student.safetensors", "executorch": "student.pte"}
Ask = Callable[[np.ndarray], Tensor]  # uint8 RGB [N, H, W, 3] -> logits float32 [N, K, H, W]
MOST_DIFFERENCE = 1e-3  # between two logits
LEAST_AGREEMENT = 0.9999  # share of pixels whose best class is the same
WARM_UPS, ROUNDS = 3, 15
MOST_SEAL_BYTES = 1000


def import_format(name: str) -> ModuleType:
    """The module that writes a format. Raises SettingsError if its extra is not installed."""
    try:
        return importlib.import_module(f"kdcache.deploy.{name}")
    except ImportError as error:  # missing, or a version that does not fit
        found, expected = Phrase(f"{name} ({one_line(error)})"), Phrase("an installed format")
        cure = f"`pip install 'kdcache[{name}]'`"
        raise SettingsError(
            describe("export", field="--to", found=found, expected=expected, cure=cure)
        ) from None


def export_student(
    student: TrainedStudent,
    *,
    to: str,
    find_images: Callable[[], list[np.ndarray]],
    say: Say = lambda text: None,
) -> Path:
    """Write the student into its run's folder, compare it with PyTorch, and give the file its name.

    Args:
        to: a format of FILES.
        find_images: gives one or more real images to compare on, uint8 RGB [H, W, 3] of
            validation's size.
        say: called with each text for a person.

    Returns: the file's path.

    Raises: SettingsError, or TrainingError if the student cannot be exported or the file gives
    other answers; then no file is left.
    """
    module, path = import_format(to), student.folder / FILES[to]
    which = f"the student of epoch {student.epoch}, mIoU {student.miou:.4f} on val"
    say(f"{student.folder}: {which}; export to {to} takes a while")
    images = [] if to == "safetensors" else find_images()  # what fails quickly comes first
    with disk.name_own(path) as unfinished:
        module.write(student, unfinished)
        result = module.check(student, unfinished, images)
        with _hold(path):
            seal = seals.format_beside(_hash_file(unfinished), path.name)
            disk.remove(_find_seal(path))  # after a crash a file without one, never a wrong one
            disk.rename(unfinished, path)
            disk.replace_file(_find_seal(path), seal)
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {result}")
    return path


def check_export(path: Path) -> None:
    """Compare an exported file with the sha256 beside it; one without is a warning.

    Raises: TrainingError if it is damaged; OSError.
    """
    seal = _find_seal(path)
    if not seal.exists():
        if path.suffix != disk.PARTIAL:
            seals.tell_unsealed(path)
        return
    try:
        text = read_plain(seal, most_bytes=MOST_SEAL_BYTES).decode("ascii", "replace")
        seals.check_beside(text, _hash_file(path))
    except (seals.SealError, UnfitFileError) as error:
        raise TrainingError(f"{path}: file is damaged ({error}); export it again") from None


@contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Let no other process replace the file and its seal. Raises OSError."""
    lock = path.with_name(f"{path.name}.lock")
    descriptor = lock_file(lock, wait=True)
    try:
        yield
    finally:
        unlock_file(lock, descriptor)


def _find_seal(path: Path) -> Path:
    return path.with_name(path.name + seals.BESIDE)


def _hash_file(path: Path) -> str:
    with open_stream(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Agreement:
    """How far two students agree on the same images.

    num_images: how many images they were compared on.
    max_difference: largest absolute difference of two logits; NaN if a logit is NaN.
    agreement: share of pixels with the same best class, 0 to 1.
    """

    num_images: int
    max_difference: float
    agreement: float


def check_answers(
    student: TrainedStudent, exported: Ask, images: list[np.ndarray], *, name: str, threads: str
) -> str:
    """Compare an exported student with PyTorch on each image, and time both on the first.

    Args:
        exported: asks the exported student.
        images: uint8 RGB [H, W, 3], the first of validation's size.
        name: the runtime of the exported student. threads: what it runs on, in words.

    Returns: the result in words. Raises: TrainingError if they differ by more than the limits.
    """
    batches = [np.ascontiguousarray(image)[None] for image in images]
    try:
        found = compare(student.ask, exported, batches)
    except KdcacheError:
        raise
    except Exception as error:  # another runtime may raise anything
        reason = one_line(error, named=True)
        raise TrainingError(
            f"{student.folder}: {name} fails ({reason}); nothing was kept"
        ) from None
    _check_limits(found, where=student.folder)
    times_ms = measure_latency({"PyTorch": student.ask, name: exported}, batches[0])
    height, width = images[0].shape[:2]
    return (
        f"{found.num_images} images asked of {name} and of PyTorch: largest difference of a logit "
        f"{found.max_difference:.1e} (limit {MOST_DIFFERENCE:g}), same class on "
        f"{100 * found.agreement:.4f} % of the pixels (limit {100 * LEAST_AGREEMENT:g})\n"
        f"an image of {height}x{width} on this CPU, median of {ROUNDS}: PyTorch "
        f"{times_ms['PyTorch']:.1f} ms on one thread, {name} {times_ms[name]:.1f} ms on {threads}"
    )


def compare(ask: Ask, exported: Ask, images: Iterable[np.ndarray]) -> Agreement:
    """Compare two students on images, uint8 RGB [N, H, W, 3]. Raises RuntimeError if there is
    none.
    """
    differences, same, total = [], 0, 0
    for image in images:
        a, b = ask(image), exported(image)
        differences.append((a - b).abs().max())
        same += (a.argmax(1) == b.argmax(1)).sum().item()
        total += a[:, 0].numel()
    return Agreement(len(differences), torch.stack(differences).max().item(), same / total)


def _check_limits(found: Agreement, *, where: object) -> None:
    """Raises TrainingError above MOST_DIFFERENCE or below LEAST_AGREEMENT."""
    if not found.max_difference <= MOST_DIFFERENCE:  # true of NaN, too
        field, value = "largest difference of a logit", found.max_difference
        limit = Phrase(f"{MOST_DIFFERENCE:g} at most")
    elif found.agreement < LEAST_AGREEMENT:
        field, value = "share of pixels with the same class", found.agreement
        limit = Phrase(f"{LEAST_AGREEMENT:g} at least")
    else:
        return
    cure = "nothing was kept; export with other versions of torch and of the format, or report it"
    raise TrainingError(describe(where, field=field, found=value, expected=limit, cure=cure))


def measure_latency(asks: dict[str, Ask], image_NHW3: np.ndarray) -> dict[str, float]:
    """Median milliseconds of each, warm, on one thread of torch.

    They are timed in turn, so that what slows the machine slows all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times_ms = {name: [] for name in asks}
        for _ in range(WARM_UPS + ROUNDS):
            for name, ask in asks.items():
                began_s = time.perf_counter()
                ask(image_NHW3)
                times_ms[name].append(1000 * (time.perf_counter() - began_s))
        return {name: statistics.median(each[WARM_UPS:]) for name, each in times_ms.items()}
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' notes on their own internals."""
    names = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
