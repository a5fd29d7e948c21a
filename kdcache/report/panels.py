"""Which validation samples a report shows, and what teacher, baseline and student say about them.

Letters: H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.cache.reader import CacheReader
from kdcache.config import Config
from kdcache.data.sampling import choose_extremes, space_evenly
from kdcache.models.inputs import normalize_images, resize_to
from kdcache.report.pictures import shrink_photo, thin_classes
from kdcache.training.arithmetic import choose_arithmetic
from kdcache.training.checkpoint import read_student

NUM_PANELS = 6
# 64 samples of 512x512 take some 20 s on two CPU cores; a report should not be waited for. Of more panels four times as many
# are looked at, so that most and least are rare ones.
NUM_SCANNED = 64


@dataclass(frozen=True)
class Panel:
    """One validation sample, cropped to its image and made small: every map is uint8 [H, W], LONGEST_PX at most.

    disagreement: share of pixels on which student and teacher name different classes, 0 to 1.
    maps: title ("label", "teacher", "baseline", "student") -> class numbers.
    """

    sample_id: str
    disagreement: float
    image: np.ndarray
    maps: dict[str, np.ndarray]


class Predictor:
    """A trained student asked for classes, with the arithmetic of its training: the answers that were scored.

    Args:
        config: resolved settings of the run.
        checkpoint: its best epoch. Raises TrainingError where that is damaged.
    """

    def __init__(self, config: Config, checkpoint: Path) -> None:
        self.device, self.autocast = choose_arithmetic(config)
        student, _ = read_student(config, checkpoint)
        self.student: nn.Module = student.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(self, image_HW3: np.ndarray) -> np.ndarray:
        """Classes uint8 [H, W] of a uint8 RGB image, padding included."""
        images = normalize_images(torch.from_numpy(image_HW3)[None].to(self.device))
        with torch.autocast(
            self.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            logits = self.student(images)
        return _to_classes(logits)


def build_panels(
    reader: CacheReader,
    *,
    student: Predictor,
    baseline: Predictor | None,
    num_panels: int = NUM_PANELS,
) -> list[Panel]:
    """Up to `num_panels` validation samples: those on which student and teacher differ most, then least.

    Of a large split `count_scanned` evenly spaced samples are looked at. Raises CacheCorruptError.
    """
    scanned = space_evenly(reader.layout.num_samples, count_scanned(num_panels))
    shares = {sample: _disagreement(reader, sample, student) for sample in scanned}
    return [
        _build_panel(reader, sample, shares[sample], student, baseline)
        for sample in choose_extremes(shares, num_panels)
    ]


def count_scanned(num_panels: int) -> int:
    """Among how many samples that many are chosen."""
    return max(NUM_SCANNED, 4 * num_panels)


def read_teacher_classes(reader: CacheReader, sample: int) -> np.ndarray:
    """The teacher's classes uint8 [H, W], padding included, from the cached scores."""
    logits = torch.from_numpy(reader.decode("logits", 0, sample))[None]
    return _to_classes(resize_to(logits, reader.layout.array("label").item_shape))


def image_box(reader: CacheReader, sample: int) -> tuple[slice, slice]:
    """Where the image lies inside the padded sample."""
    group, row = divmod(sample, reader.layout.shard_samples)
    top, left, bottom, right = reader.record(0, group).views[row]["image_box"]
    return slice(top, bottom), slice(left, right)


def _disagreement(reader: CacheReader, sample: int, student: Predictor) -> float:
    box = image_box(reader, sample)
    answer = student.predict(reader.read("image", 0, sample))
    return float(np.mean(answer[box] != read_teacher_classes(reader, sample)[box]))


def _build_panel(
    reader: CacheReader,
    sample: int,
    disagreement: float,
    student: Predictor,
    baseline: Predictor | None,
) -> Panel:
    image, box = reader.read("image", 0, sample), image_box(reader, sample)
    maps = {
        "label": reader.read("label", 0, sample),
        "teacher": read_teacher_classes(reader, sample),
    }
    if baseline:
        maps["baseline"] = baseline.predict(image)
    maps["student"] = student.predict(image)
    small = {
        title: thin_classes(classes[box]) for title, classes in maps.items()
    }  # fifty large ones fill the memory
    return Panel(reader.sample_ids[sample], disagreement, shrink_photo(image[box]), small)


def _to_classes(logits_1KHW: Tensor) -> np.ndarray:
    return logits_1KHW.argmax(1)[0].to(torch.uint8).cpu().numpy()
