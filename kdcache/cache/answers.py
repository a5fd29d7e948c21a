"""What the teacher says about one shard group: views drawn, teacher asked, float16 checked, answers brought to the host.

Letters: N samples of a batch, C channels, H, W height and width (of the grid at hand).
"""

from __future__ import annotations

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
from kdcache.data.augment import apply, draw, fit_inside
from kdcache.data.voc import Sample, Split, read_sample
from kdcache.errors import TeacherError
from kdcache.models.teacher import Teacher

FLOAT16_MAX = 65_504.0
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
    config: Config, group: Group, *, splits: dict[str, Split], teacher: Teacher, pool: Executor
) -> GroupContents:
    """Everything a group stores; a pure function of its samples, the settings and the weights.

    Raises: DataError, TeacherError naming the sample.
    """
    views = start_views(config, group, splits=splits, pool=pool)
    answers = GroupAnswers(collect_views(group, views, splits=splits))
    for rows in answers.batches(config.teacher.batch_size):
        answers.ask(teacher, rows)
    return answers.wait()


def start_views(config: Config, group: Group, *, splits: dict[str, Split], pool: Executor) -> list[Future[View]]:
    """Begin to draw the views of a group in the threads of `pool`, one future a sample."""
    samples = splits[group.split].samples[group.start : group.stop]
    return [pool.submit(_make_view, config, sample, group) for sample in samples]


def collect_views(group: Group, views: list[Future[View]], *, splits: dict[str, Split]) -> DrawnGroup:
    """Wait for the views of a group; empties the list, so that none is kept twice. Raises DataError of the first bad sample."""
    images, labels, parameters = zip(*(view.result() for view in views), strict=True)
    views.clear()
    ids = [sample.id for sample in splits[group.split].samples[group.start : group.stop]]
    return DrawnGroup(group, np.stack(images), np.stack(labels), ids, list(parameters))


class GroupAnswers:
    """The teacher's answers about one drawn group, asked batch by batch, as float16 in arrays of the whole group.

    On a GPU `ask` does not wait for the answers: they become float16 there and go to pinned memory of the host on a stream of
    their own, beside the next batch. `wait` does, and may be called from another thread.
    """

    def __init__(self, drawn: DrawnGroup) -> None:
        self.drawn = drawn
        self.answers: dict[str, Tensor] = {}  # name -> float16 [n, C, H, W] on the host
        self.under_way: deque[_Copy] = deque()

    def batches(self, batch_size: int) -> list[slice]:
        """The rows of each batch, in order."""
        count = len(self.drawn.ids)
        return [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]

    def ask(self, teacher: Teacher, rows: slice) -> None:
        """Ask about the samples in `rows`. Raises TeacherError naming a sample, of this batch or one before."""
        while len(self.under_way) >= UNDER_WAY:
            self._finish(self.under_way.popleft())
        answer = teacher(torch.from_numpy(self.drawn.image[rows]))
        names = list(answer) if self.drawn.group.split == "train" else ["logits"]
        peaks = torch.stack([_find_peaks(answer[name]) for name in names])
        slots = [self._find_slot(name, answer[name])[rows] for name in names]
        if peaks.is_cuda:
            halves = [_to_half(answer[name]) for name in names]
            self.under_way.append(_Copy(halves, slots, peaks, names, rows))
            return
        self._check_float16(peaks, names, rows)
        for name, slot in zip(names, slots, strict=True):
            slot.copy_(answer[name].half())  # in two steps: cast and reordered in one, PyTorch takes half as long again

    def wait(self) -> GroupContents:
        """What the group stores, once all of it is on the host. Raises TeacherError naming the sample."""
        while self.under_way:
            self._finish(self.under_way.popleft())
        arrays = {name: values.numpy() for name, values in self.answers.items()}
        drawn = self.drawn
        return GroupContents({"image": drawn.image, "label": drawn.label, **arrays}, drawn.ids, drawn.views)

    def _find_slot(self, name: str, values: Tensor) -> Tensor:
        """Memory for the whole group, pinned where a GPU copies into it."""
        if name not in self.answers:
            shape = (len(self.drawn.ids), *values.shape[1:])
            self.answers[name] = torch.empty(shape, dtype=torch.float16, pin_memory=values.is_cuda)
        return self.answers[name]

    def _finish(self, copy: _Copy) -> None:
        copy.done.synchronize()
        self._check_float16(copy.peaks, copy.names, copy.rows)

    def _check_float16(self, peaks: Tensor, names: list[str], rows: slice) -> None:
        """Raises TeacherError naming the first level, then sample, whose answer float16 cannot hold; peaks [names, N]."""
        bad = ~(peaks <= FLOAT16_MAX)  # NaN, too
        if bad.any():
            level, row = bad.nonzero()[0].tolist()
            raise TeacherError(
                f"sample {self.drawn.ids[rows][row]!r}: teacher's {names[level]} reaches {peaks[level, row].item():g}, "
                f"expected finite values up to {FLOAT16_MAX:g}; "
                "float16 cannot hold it: check the weights, teacher.precision and teacher.layers"
            )


class _Copy:
    """One batch's way from the GPU to the host; `halves` are kept until it is over, or their memory would be used again."""

    def __init__(self, halves: list[Tensor], slots: list[Tensor], peaks: Tensor, names: list[str], rows: slice) -> None:
        self.halves, self.names, self.rows = [*halves, peaks], names, rows
        self.peaks = torch.empty(peaks.shape, pin_memory=True)
        self.done = torch.cuda.Event(blocking=True)  # who waits sleeps: the cores have views to draw
        stream = _copy_stream(peaks.device)
        stream.wait_stream(torch.cuda.current_stream(peaks.device))
        with torch.cuda.stream(stream):
            for slot, values in zip([*slots, self.peaks], self.halves, strict=True):
                slot.copy_(values, non_blocking=True)
            self.done.record(stream)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device on which answers go to the host."""
    return torch.cuda.Stream(device)


def _to_half(values_NCHW: Tensor) -> Tensor:
    """Cast and brought into NCHW order by one kernel."""
    return torch.empty(values_NCHW.shape, dtype=torch.float16, device=values_NCHW.device).copy_(values_NCHW)


def _find_peaks(values_NCHW: Tensor) -> Tensor:
    """Largest magnitude of each sample, float32 [N], NaN where one is; abs() would write all of it once more."""
    dims = (1, 2, 3)
    return torch.maximum(values_NCHW.amax(dims), -values_NCHW.amin(dims))


def _make_view(config: Config, sample: Sample, group: Group) -> View:
    """Image, label and parameters of one stored sample."""
    image, label = read_sample(config.dataset, sample)
    if group.split == "train":
        view = draw(
            config.augment, sample_id=sample.id, view=group.view, image_hw=label.shape, size_hw=config.dataset.size_hw
        )
        return *apply(view, image, label), {**view.to_dict(), "image_box": view.image_box}
    padded_image, padded_label, shrunk_hw = fit_inside(image, label, size_hw=config.dataset.val_hw)
    return padded_image, padded_label, {"image_box": (0, 0, *shrunk_hw), "image_hw": label.shape}
