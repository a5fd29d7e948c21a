"""One shard group, from pictures to arrays: draw views, ask the teacher, encode, check.

Letters: N samples of a batch, C channels, R coefficients, H, W height and width of a grid.
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

from kdcache.cache.encodings import LARGEST, Encoder
from kdcache.cache.layout import UNLABELLED, Group
from kdcache.cache.manifest import Manifest
from kdcache.cache.writer import GroupContents, write_group
from kdcache.config import Config
from kdcache.data.pictures import Sample, Split, read_sample
from kdcache.data.views import apply, draw, fit_inside
from kdcache.errors import TeacherError
from kdcache.machine.devices import mark_end
from kdcache.models.teacher import Teacher
from kdcache.storage import Storage
from kdcache.storage.lock import Lease

IN_FLIGHT = 2  # batches on a GPU: one computed, one copied

# image [H, W, 3], label [H, W] or None if the image has none, parameters
View = tuple[np.ndarray, np.ndarray | None, dict]


def compute_group(
    config: Config,
    group: Group,
    *,
    splits: dict[str, Split],
    teacher: Teacher,
    encoder: Encoder,
    pool: Executor,
) -> GroupContents:
    """Everything a group stores: a pure function of its samples, the settings and the weights.

    Raises: DataError, TeacherError naming the sample.
    """
    views = start_views(config, group, splits=splits, pool=pool)
    answers = GroupAnswers(group, views, splits=splits, encoder=encoder)
    for rows in answers.batches(config.teacher.batch_size):
        answers.ask(teacher, rows)
    return answers.wait()


def draw_view(config: Config, sample: Sample, *, split: str, view: int) -> View:
    """Image, label and parameters of one stored sample. Raises DataError."""
    image, label = read_sample(config.dataset, sample)
    if split != "val":
        size_hw, image_hw = config.dataset.size_hw, image.shape[:2]
        drawn = draw(
            config.augment, sample_id=sample.id, view=view, image_hw=image_hw, size_hw=size_hw
        )
        return *apply(drawn, image, label), {**drawn.to_dict(), "image_box": drawn.image_box}
    padded_image, padded_label, shrunk_hw = fit_inside(image, label, size_hw=config.dataset.val_hw)
    return padded_image, padded_label, {"image_box": (0, 0, *shrunk_hw), "image_hw": label.shape}


def start_views(
    config: Config, group: Group, *, splits: dict[str, Split], pool: Executor
) -> list[Future[View]]:
    """Start to draw the views of a group in the threads of `pool`, one future a sample."""
    return [
        pool.submit(draw_view, config, sample, split=group.role, view=group.view)
        for sample in splits[group.split].samples[group.start : group.stop]
    ]


@dataclass(frozen=True)
class DrawnGroup:
    """A group before the teacher is asked.

    arrays: image, uint8 [n, H, W, 3], and label, uint8 [n, H, W], unless its images have none.
    ids, views: of its n samples, views as parameters.
    """

    group: Group
    arrays: dict[str, np.ndarray]
    ids: list[str]
    views: list[dict]


def collect_views(
    group: Group, views: list[Future[View]], *, splits: dict[str, Split]
) -> DrawnGroup:
    """Wait for the views of a group. Raises DataError for the first bad sample.

    Empties the list `views`, so that no picture is in memory twice.
    """
    images, labels, parameters = zip(*(view.result() for view in views), strict=True)
    views.clear()
    arrays = {"image": np.stack(images)}
    if group.role != UNLABELLED:
        arrays["label"] = np.stack(labels)
    ids = [sample.id for sample in splits[group.split].samples[group.start : group.stop]]
    return DrawnGroup(group, arrays, ids, list(parameters))


class GroupAnswers:
    """The teacher's answers about a group whose views are being drawn, asked batch by batch.

    On a GPU `ask` does not wait for its answers: they are encoded there and copied to pinned memory
    on a stream of their own, beside the next batch. `wait` and `commit` may be called from another
    thread.
    """

    def __init__(
        self,
        group: Group,
        views: list[Future[View]],
        *,
        splits: dict[str, Split],
        encoder: Encoder,
    ) -> None:
        self.drawn, self.encoder = collect_views(group, views, splits=splits), encoder
        self.answers: dict[str, Tensor] = {}  # array -> what is stored [n, ...], on the host
        self.in_flight: deque[_Copy] = deque()

    def batches(self, batch_size: int) -> list[slice]:
        """The rows of each batch, in order."""
        count = len(self.drawn.ids)
        starts = range(0, count, batch_size)
        return [slice(start, min(start + batch_size, count)) for start in starts]

    def ask(self, teacher: Teacher, rows: slice) -> None:
        """Ask about the samples in `rows`.

        Raises: TeacherError naming a sample of this batch, or of one before, that cannot be stored.
        """
        while len(self.in_flight) >= IN_FLIGHT:
            self._finish(self.in_flight.popleft())
        answer = teacher(torch.from_numpy(self.drawn.arrays["image"][rows]))
        split = self.drawn.group.role
        names = ["logits"] if split == "val" else list(answer)
        peaks = torch.stack([_find_peaks(answer[name]) for name in names])
        limits = torch.tensor([self.encoder.find_limit(name, split=split) for name in names])
        arrays = self.encoder.encode(answer, split=split)
        slots = [self._find_slot(name, values)[rows] for name, values in arrays.items()]
        asked = _Asked(names, limits, rows)
        if peaks.is_cuda:
            self.in_flight.append(_Copy([*arrays.values()], slots, peaks, asked))
            return
        self._check_peaks(peaks, asked)
        for slot, values in zip(slots, arrays.values(), strict=True):
            slot.copy_(values)

    def wait(self) -> GroupContents:
        """What the group stores, once all is on the host. Raises TeacherError naming the sample."""
        while self.in_flight:
            self._finish(self.in_flight.popleft())
        drawn, answers = self.drawn, {name: x.numpy() for name, x in self.answers.items()}
        return GroupContents({**drawn.arrays, **answers}, drawn.ids, drawn.views)

    def commit(
        self, storage: Storage, manifest: Manifest, *, lease: Lease
    ) -> tuple[int, list[dict]]:
        """Write the group once all is on the host.

        Returns: bytes of its shard files, and the view parameters of validation images that were
            scaled down.
        Raises: as `wait` and `write_group`.
        """
        contents, group = self.wait(), self.drawn.group
        size_bytes = write_group(storage, manifest, group, contents=contents, lease=lease)
        return size_bytes, _find_shrunk(group, contents)

    def _find_slot(self, name: str, values: Tensor) -> Tensor:
        """Memory for an array of the whole group, pinned if a GPU copies into it."""
        if name not in self.answers:
            shape = (len(self.drawn.ids), *values.shape[1:])
            self.answers[name] = torch.empty(shape, dtype=values.dtype, pin_memory=values.is_cuda)
        return self.answers[name]

    def _finish(self, copy: _Copy) -> None:
        copy.done.synchronize()
        self._check_peaks(copy.peaks, copy.asked)

    def _check_peaks(self, peaks: Tensor, asked: _Asked) -> None:
        """Raise TeacherError for the first answer, then sample, beyond its limit.

        Args:
            peaks: [names, N].
        """
        bad = ~(peaks <= asked.limits[:, None])  # catches NaN, too
        if bad.any():
            level, row = bad.nonzero()[0].tolist()
            limit = asked.limits[level].item()
            sample_id, name = self.drawn.ids[asked.rows][row], asked.names[level]
            raise refuse_answer(sample_id, name, peak=peaks[level, row].item(), limit=limit)


def refuse_answer(sample_id: str, name: str, *, peak: float, limit: float) -> TeacherError:
    """The error for an answer whose largest magnitude is over `limit` or not finite."""
    too_large = limit == LARGEST["float16"] and not math.isnan(peak)
    cure = "float16 cannot hold it: " if too_large else ""
    return TeacherError(
        f"sample {sample_id!r}: teacher's {name} reaches {peak:g}, expected finite values up to "
        f"{limit:g}; {cure}check the weights, teacher.precision and teacher.layers"
    )


@dataclass(frozen=True)
class _Asked:
    """Which answers about which rows of a group, and their limits, float32 [names]."""

    names: list[str]
    limits: Tensor
    rows: slice


class _Copy:
    """A batch on its way from the GPU to the host.

    Keeps `values` until it is done; without that their memory would be used again.
    """

    def __init__(
        self, values: list[Tensor], slots: list[Tensor], peaks: Tensor, asked: _Asked
    ) -> None:
        self.values, self.asked = [*values, peaks], asked
        self.peaks = torch.empty(peaks.shape, pin_memory=True)
        stream = _copy_stream(peaks.device)
        stream.wait_stream(torch.cuda.current_stream(peaks.device))
        with torch.cuda.stream(stream):
            for slot, value in zip([*slots, self.peaks], self.values, strict=True):
                slot.copy_(value, non_blocking=True)
        self.done = mark_end(stream)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device that copies answers to the host."""
    return torch.cuda.Stream(device)


def _find_peaks(values_NCHW: Tensor) -> Tensor:
    """Largest magnitude of each sample, float32 [N], NaN if it has one.

    Not abs().amax(), which would write all values once more.
    """
    dims = (1, 2, 3)
    return torch.maximum(values_NCHW.amax(dims), -values_NCHW.amin(dims))


def _find_shrunk(group: Group, contents: GroupContents) -> list[dict]:
    if group.role != "val":
        return []
    return [view for view in contents.views if view["image_box"][2:] != view["image_hw"]]
