"""What the teacher says about one shard group: views drawn, teacher asked, answers encoded, checked and brought to the host.

Letters: N samples of a batch, C channels, H, W height and width (of the grid at hand).
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.layout import Group
from kdcache.cache.writer import GroupContents
from kdcache.config import Config
from kdcache.data.views import apply, draw, fit_inside
from kdcache.data.voc import Sample, Split, read_sample
from kdcache.errors import TeacherError
from kdcache.models.teacher import Teacher
from kdcache.precompute.encoder import LARGEST, Encoder

UNDER_WAY = 2  # batches on a GPU whose answers are computed or copied: one each

View = tuple[np.ndarray, np.ndarray, dict]


@dataclass(frozen=True)
class DrawnGroup:
    """A shard group before the teacher is asked: image [n, H, W, 3] and label [n, H, W], both uint8, ids and parameters."""

    group: Group
    image: np.ndarray
    label: np.ndarray
    ids: list[str]
    views: list[dict]


def compute_group(
    config: Config,
    group: Group,
    *,
    splits: dict[str, Split],
    teacher: Teacher,
    encoder: Encoder,
    pool: Executor,
) -> GroupContents:
    """Everything a group stores; a pure function of its samples, the settings and the weights.

    Raises: DataError, TeacherError naming the sample.
    """
    views = start_views(config, group, splits=splits, pool=pool)
    answers = GroupAnswers(collect_views(group, views, splits=splits), encoder)
    for rows in answers.batches(config.teacher.batch_size):
        answers.ask(teacher, rows)
    return answers.wait()


def start_views(
    config: Config, group: Group, *, splits: dict[str, Split], pool: Executor
) -> list[Future[View]]:
    """Begin to draw the views of a group in the threads of `pool`, one future a sample."""
    samples = splits[group.split].samples[group.start : group.stop]
    return [
        pool.submit(draw_view, config, sample, split=group.split, view=group.view)
        for sample in samples
    ]


def collect_views(
    group: Group, views: list[Future[View]], *, splits: dict[str, Split]
) -> DrawnGroup:
    """Wait for the views of a group; empties the list, so that none is kept twice. Raises DataError of the first bad sample."""
    images, labels, parameters = zip(*(view.result() for view in views), strict=True)
    views.clear()
    ids = [sample.id for sample in splits[group.split].samples[group.start : group.stop]]
    return DrawnGroup(group, np.stack(images), np.stack(labels), ids, list(parameters))


class GroupAnswers:
    """The teacher's answers about one drawn group, asked batch by batch, encoded in arrays of the whole group.

    On a GPU `ask` does not wait for the answers: they are encoded there and go to pinned memory of the host on a stream of
    their own, beside the next batch. `wait` does, and may be called from another thread.
    """

    def __init__(self, drawn: DrawnGroup, encoder: Encoder) -> None:
        self.drawn, self.encoder = drawn, encoder
        self.answers: dict[str, Tensor] = {}  # array -> what is stored [n, ...], on the host
        self.under_way: deque[_Copy] = deque()

    def batches(self, batch_size: int) -> list[slice]:
        """The rows of each batch, in order."""
        count = len(self.drawn.ids)
        return [
            slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)
        ]

    def ask(self, teacher: Teacher, rows: slice) -> None:
        """Ask about the samples in `rows`. Raises TeacherError naming a sample, of this batch or one before."""
        while len(self.under_way) >= UNDER_WAY:
            self._finish(self.under_way.popleft())
        answer, split = teacher(torch.from_numpy(self.drawn.image[rows])), self.drawn.group.split
        names = list(answer) if split == "train" else ["logits"]
        peaks = torch.stack([_find_peaks(answer[name]) for name in names])
        limits = torch.tensor([self.encoder.find_limit(name, split=split) for name in names])
        arrays = self.encoder.encode(answer, split=split)
        slots = [self._find_slot(name, values)[rows] for name, values in arrays.items()]
        asked = _Asked(names, limits, rows)
        if peaks.is_cuda:
            self.under_way.append(_Copy([*arrays.values()], slots, peaks, asked))
            return
        self._check_peaks(peaks, asked)
        for slot, values in zip(slots, arrays.values(), strict=True):
            slot.copy_(values)

    def wait(self) -> GroupContents:
        """What the group stores, once all of it is on the host. Raises TeacherError naming the sample."""
        while self.under_way:
            self._finish(self.under_way.popleft())
        arrays = {name: values.numpy() for name, values in self.answers.items()}
        drawn = self.drawn
        return GroupContents(
            {"image": drawn.image, "label": drawn.label, **arrays}, drawn.ids, drawn.views
        )

    def _find_slot(self, name: str, values: Tensor) -> Tensor:
        """Memory for the whole group, pinned where a GPU copies into it."""
        if name not in self.answers:
            shape = (len(self.drawn.ids), *values.shape[1:])
            self.answers[name] = torch.empty(shape, dtype=values.dtype, pin_memory=values.is_cuda)
        return self.answers[name]

    def _finish(self, copy: _Copy) -> None:
        copy.done.synchronize()
        self._check_peaks(copy.peaks, copy.asked)

    def _check_peaks(self, peaks: Tensor, asked: _Asked) -> None:
        """Raises TeacherError naming the first answer, then sample, that cannot be stored; peaks [names, N]."""
        bad = ~(peaks <= asked.limits[:, None])  # NaN, too
        if bad.any():
            level, row = bad.nonzero()[0].tolist()
            limit = asked.limits[level].item()
            sample_id, name = self.drawn.ids[asked.rows][row], asked.names[level]
            raise refuse_answer(sample_id, name, peak=peaks[level, row].item(), limit=limit)


def refuse_answer(sample_id: str, name: str, *, peak: float, limit: float) -> TeacherError:
    """What to raise of an answer whose largest magnitude is beyond what can be stored, or not finite."""
    cure = (
        "float16 cannot hold it: " if limit == LARGEST["float16"] and not math.isnan(peak) else ""
    )
    return TeacherError(
        f"sample {sample_id!r}: teacher's {name} reaches {peak:g}, expected finite values up to {limit:g}; "
        f"{cure}check the weights, teacher.precision and teacher.layers"
    )


@dataclass(frozen=True)
class _Asked:
    """Which answers about which rows of a group, and how large each may be, float32 [names]."""

    names: list[str]
    limits: Tensor
    rows: slice


class _Copy:
    """One batch's way from the GPU to the host; `values` are kept until it is over, or their memory would be used again."""

    def __init__(
        self, values: list[Tensor], slots: list[Tensor], peaks: Tensor, asked: _Asked
    ) -> None:
        self.values, self.asked = [*values, peaks], asked
        self.peaks = torch.empty(peaks.shape, pin_memory=True)
        self.done = torch.cuda.Event(
            blocking=True
        )  # who waits sleeps: the cores have views to draw
        stream = _copy_stream(peaks.device)
        stream.wait_stream(torch.cuda.current_stream(peaks.device))
        with torch.cuda.stream(stream):
            for slot, value in zip([*slots, self.peaks], self.values, strict=True):
                slot.copy_(value, non_blocking=True)
            self.done.record(stream)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device on which answers go to the host."""
    return torch.cuda.Stream(device)


def _find_peaks(values_NCHW: Tensor) -> Tensor:
    """Largest magnitude of each sample, float32 [N], NaN where one is; abs() would write all of it once more."""
    dims = (1, 2, 3)
    return torch.maximum(values_NCHW.amax(dims), -values_NCHW.amin(dims))


def draw_view(config: Config, sample: Sample, *, split: str, view: int) -> View:
    """Image, label and parameters of one stored sample. Raises DataError."""
    image, label = read_sample(config.dataset, sample)
    if split == "train":
        size_hw = config.dataset.size_hw
        drawn = draw(
            config.augment, sample_id=sample.id, view=view, image_hw=label.shape, size_hw=size_hw
        )
        return *apply(drawn, image, label), {**drawn.to_dict(), "image_box": drawn.image_box}
    padded_image, padded_label, shrunk_hw = fit_inside(image, label, size_hw=config.dataset.val_hw)
    return padded_image, padded_label, {"image_box": (0, 0, *shrunk_hw), "image_hw": label.shape}
