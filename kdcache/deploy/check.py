"""Does an exported student say what the student says, and how fast is it?

Letters: N images, H height, W width, K classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.deploy.load import TrainedStudent
from kdcache.errors import KdcacheError, Phrase, TrainingError, describe, one_line

Ask = Callable[[np.ndarray], Tensor]  # uint8 RGB [N, H, W, 3] -> logits float32 [N, K, H, W]
MOST_DIFFERENCE = 1e-3  # between two logits
LEAST_AGREEMENT = 0.9999  # share of pixels whose best class is the same
WARM_UPS, ROUNDS = 3, 15


@dataclass(frozen=True)
class Agreement:
    """What two students have said about the same images.

    max_difference: largest absolute difference of two logits; NaN where one is none.
    agreement: share of pixels with the same best class, 0 to 1.
    """

    num_images: int
    max_difference: float
    agreement: float


def check_answers(
    student: TrainedStudent, exported: Ask, images: list[np.ndarray], *, name: str, threads: str
) -> str:
    """Ask both about each of the images, uint8 RGB [H, W, 3], of validation's size the first; what was found, in words.

    Args:
        name: of what runs the exported student. threads: that it uses, in words.

    Raises: TrainingError where they differ beyond the limits.
    """
    batches = [np.ascontiguousarray(image)[None] for image in images]
    try:
        found = compare(student.ask, exported, batches)
    except KdcacheError:
        raise
    except Exception as error:  # whatever another runtime meets
        raise TrainingError(
            f"{student.folder}: {name} fails ({one_line(error, named=True)}); nothing was kept"
        ) from None
    _check_limits(found, where=student.folder)
    times = measure_latency({"PyTorch": student.ask, name: exported}, batches[0])
    height, width = images[0].shape[:2]
    return (
        f"{found.num_images} images asked of {name} and of PyTorch: largest difference of a logit {found.max_difference:.1e} "
        f"(limit {MOST_DIFFERENCE:g}), same class on {100 * found.agreement:.4f} % of the pixels (limit "
        f"{100 * LEAST_AGREEMENT:g})\nan image of {height}x{width} on this CPU, median of {ROUNDS}: PyTorch "
        f"{times['PyTorch']:.1f} ms on one thread, {name} {times[name]:.1f} ms on {threads}"
    )


def compare(ask: Ask, exported: Ask, images: Iterable[np.ndarray]) -> Agreement:
    """Ask both about each of the images, uint8 RGB [N, H, W, 3]. Raises ValueError where there is none."""
    differences, same, total = [], 0, 0
    for image in images:
        a, b = ask(image), exported(image)
        differences.append((a - b).abs().max())
        same += (a.argmax(1) == b.argmax(1)).sum().item()
        total += a[:, 0].numel()
    return Agreement(len(differences), torch.stack(differences).max().item(), same / total)


def _check_limits(found: Agreement, *, where: object) -> None:
    """Raises TrainingError beyond MOST_DIFFERENCE or below LEAST_AGREEMENT."""
    cure = "nothing was kept; export again with other versions of torch and of the format, or report it"
    if not found.max_difference <= MOST_DIFFERENCE:  # NaN is refused, too
        field, limit = "largest difference of a logit", Phrase(f"{MOST_DIFFERENCE:g} at most")
        raise TrainingError(
            describe(where, field=field, found=found.max_difference, expected=limit, cure=cure)
        )
    if found.agreement < LEAST_AGREEMENT:
        field, limit = (
            "share of pixels with the same class",
            Phrase(f"{LEAST_AGREEMENT:g} at least"),
        )
        raise TrainingError(
            describe(where, field=field, found=found.agreement, expected=limit, cure=cure)
        )


def measure_latency(asks: dict[str, Ask], image_NHW3: np.ndarray) -> dict[str, float]:
    """Median milliseconds of each, warm, asked in turn on one thread of torch's, so that what slows the machine slows all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = {name: [] for name in asks}
        for _ in range(WARM_UPS + ROUNDS):
            for name, ask in asks.items():
                began_s = time.perf_counter()
                ask(image_NHW3)
                times[name].append(1000 * (time.perf_counter() - began_s))
        return {name: statistics.median(each[WARM_UPS:]) for name, each in times.items()}
    finally:
        torch.set_num_threads(threads)
