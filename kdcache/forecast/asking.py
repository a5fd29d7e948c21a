"""A few questions to the teacher: its answers about samples spread over a split, and how long it takes alone.

Letters: N samples, C channels, H, W height and width (of the grid at hand).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.data.voc import Sample
from kdcache.forecast.views import pick_samples
from kdcache.precompute.group import draw_view, refuse_answer
from kdcache.precompute.pipeline import Job
from kdcache.progress import Progress

MOST_KEPT = 16  # samples whose answers are kept
MOST_KEPT_BYTES = (
    1 << 29
)  # of them as float32: 16 samples at 512x512 are 475 MB; fewer are kept of larger ones


@dataclass(frozen=True)
class Asked:
    """Samples of a split that the teacher was asked about.

    image_NHWC: uint8, on the host. answers: name -> float32 [N, C, H, W] on the host, of the same samples.
    peaks: name -> largest magnitude of all that it was asked about, these and more. sample_s: seconds of the teacher alone.
    """

    image_NHWC: np.ndarray
    answers: dict[str, Tensor]
    peaks: dict[str, float]
    sample_s: float


def ask_teacher(job: Job, split: str, *, least: int, progress: Progress) -> Asked:
    """Ask about `least` or more samples, in batches as phase one makes them; of several batches the first warms up and is not
    timed.

    Raises: DataError; TeacherError naming a sample whose answer phase one could not store.
    """
    size = min(job.config.teacher.batch_size, job.config.cache.shard_samples)
    samples, num_batches = job.splits[split].samples, max(-(-least // size), min(least, 2))
    chosen = [samples[index] for index in pick_samples(len(samples), num_batches * size)]
    names, encoder = list(job.manifest.encodings) if split == "train" else ["logits"], job.encoder
    limits, kept, times = (
        {name: encoder.find_limit(name, split=split) for name in names},
        _Kept(),
        [],
    )
    with progress.start(f"asking about {split}", total=len(chosen), unit="samples") as bar:
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            image_NHWC = np.stack(
                [draw_view(job.config, sample, split=split, view=0)[0] for sample in batch]
            )
            answer, time_s = _ask(job, image_NHWC)
            times.append(time_s / len(batch))
            kept.add(image_NHWC, answer, _find_peaks(answer, batch, limits=limits))
            bar.advance(len(batch))
    return kept.finish(sample_s=float(np.mean(times[1:] or times)))


class _Kept:
    """Images and answers of the first samples, as many as memory is given to, and the peaks of all."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.answers: dict[str, list[Tensor]] = {}
        self.peaks: dict[str, float] = {}
        self.count = 0

    def add(
        self, image_NHWC: np.ndarray, answer: Mapping[str, Tensor], peaks: Mapping[str, float]
    ) -> None:
        """Of a batch; `peaks` says by its names which answers are wanted."""
        sample_bytes = sum(4 * answer[name][0].numel() for name in peaks)
        most = min(MOST_KEPT, max(MOST_KEPT_BYTES // sample_bytes, 1))
        taken = slice(0, most - self.count)
        self.count += len(image_NHWC[taken])
        self.images.append(image_NHWC[taken])
        for name, peak in peaks.items():  # copied: a slice would keep all of its batch
            self.answers.setdefault(name, []).append(
                answer[name][taken].float().to("cpu", copy=True)
            )
            self.peaks[name] = max(self.peaks.get(name, 0.0), peak)

    def finish(self, *, sample_s: float) -> Asked:
        answers = {name: torch.cat(self.answers.pop(name)) for name in list(self.answers)}
        return Asked(np.concatenate(self.images), answers, self.peaks, sample_s)


def _ask(job: Job, image_NHWC: np.ndarray) -> tuple[dict[str, Tensor], float]:
    """The answer and the seconds to its end, on a GPU without the way to the host."""
    began_s = time.monotonic()
    answer = job.teacher(torch.from_numpy(image_NHWC))
    if job.teacher.device.type == "cuda":
        torch.cuda.synchronize(job.teacher.device)
    return answer, time.monotonic() - began_s


def _find_peaks(
    answer: Mapping[str, Tensor], samples: Sequence[Sample], *, limits: Mapping[str, float]
) -> dict[str, float]:
    """name -> largest magnitude of each answer with a limit. Raises TeacherError naming the sample that is beyond it."""
    peaks = {}
    for name, limit in limits.items():
        peaks_N = answer[name].abs().amax((1, 2, 3)).cpu()
        bad = (~(peaks_N <= limit)).nonzero()  # NaN, too
        if len(bad):
            row = int(bad[0])
            raise refuse_answer(samples[row].id, name, peak=peaks_N[row].item(), limit=limit)
        peaks[name] = peaks_N.max().item()
    return peaks
