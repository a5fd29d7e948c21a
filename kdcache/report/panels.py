"""Pictures of what a student says: validation samples of a report beside label, teacher and
baseline, and the page over predictions.

Letters: H height, W width, K classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from torch import nn

from kdcache import disk
from kdcache.analysis.scan import find_image, read_teacher_classes
from kdcache.cache.reader import CacheReader
from kdcache.config import Config
from kdcache.data.pictures import choose_extremes, space_evenly
from kdcache.deploy.predict import MASKS, OVERLAYS, Prediction
from kdcache.deploy.student import TrainedStudent
from kdcache.metrics import VOID
from kdcache.models.inputs import normalize_images
from kdcache.models.own_code import Trust
from kdcache.report.classes import (
    LONGEST_PX,
    class_map_uri,
    error_map_uri,
    photo_uri,
    shrink_photo,
    thin_classes,
)
from kdcache.report.template import BESIDE, render_page
from kdcache.training.checkpoint import read_student
from kdcache.training.learner import choose_arithmetic

NUM_PANELS = 6
# 64 samples of 512x512 take about 20 s on two CPU cores, and nobody should wait long for a report.
# For more panels four times as many are looked at, so that most and least are rare ones.
NUM_SCANNED = 64
COARSE_PX = 256  # smaller pictures are enlarged pixel by pixel, larger ones smoothly reduced
MOST_CHARACTERS = 4_200_000  # of all pictures as text, so that a page stays below 5 MB
LEAST_PX = 40
PAGE = "index.html"


@dataclass(frozen=True)
class Panel:
    """One validation sample, cropped to its image and made small.

    image: uint8 [H, W, 3], every map uint8 [H, W], LONGEST_PX at most.
    disagreement: share of pixels on which student and teacher name different classes, 0 to 1.
    maps: title ("label", "teacher", "baseline", "student") -> class numbers.
    """

    sample_id: str
    disagreement: float
    image: np.ndarray
    maps: dict[str, np.ndarray]


class Predictor:
    """A trained student asked for classes in the arithmetic of its training, as it was scored.

    Args:
        config: resolved settings of the run.
        checkpoint: of its best epoch.
        trust: whether a student of the user's may be imported.

    Raises: TrainingError if the checkpoint is damaged, SettingsError if its code is not trusted.
    """

    def __init__(self, config: Config, checkpoint: Path, *, trust: Trust | None = None) -> None:
        self.device, self.autocast = choose_arithmetic(config)
        student, _ = read_student(config, checkpoint, trust=trust)
        self.student: nn.Module = student.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(self, image_HW3: np.ndarray) -> np.ndarray:
        """Classes uint8 [H, W] of a uint8 RGB image, padding included."""
        images = normalize_images(torch.from_numpy(image_HW3)[None].to(self.device))
        with torch.autocast(
            self.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            logits = self.student(images)
        return logits.argmax(1)[0].to(torch.uint8).cpu().numpy()


def build_panels(
    reader: CacheReader,
    *,
    student: Predictor,
    baseline: Predictor | None,
    num_panels: int = NUM_PANELS,
) -> list[Panel]:
    """Up to `num_panels` validation samples: where student and teacher differ most, then least.

    Of a large split, `count_scanned` evenly spaced samples are looked at.

    Args:
        baseline: None if there is none, or none whose answers can be shown.

    Raises: CacheCorruptError.
    """
    scanned = space_evenly(reader.layout.num_samples, count_scanned(num_panels))
    shares = {sample: _disagreement(reader, sample, student) for sample in scanned}
    return [
        _build_panel(reader, sample, shares[sample], student, baseline)
        for sample in choose_extremes(shares, num_panels)
    ]


def count_scanned(num_panels: int) -> int:
    """How many samples are looked at to choose that many."""
    return max(NUM_SCANNED, 4 * num_panels)


def _disagreement(reader: CacheReader, sample: int, student: Predictor) -> float:
    box = find_image(reader, sample, 0)
    answer = student.predict(reader.read("image", 0, sample))
    return float(np.mean(answer[box] != read_teacher_classes(reader, sample, 0)[box]))


def _build_panel(
    reader: CacheReader,
    sample: int,
    disagreement: float,
    student: Predictor,
    baseline: Predictor | None,
) -> Panel:
    image, box = reader.read("image", 0, sample), find_image(reader, sample, 0)
    maps = {
        "label": reader.read("label", 0, sample),
        "teacher": read_teacher_classes(reader, sample, 0),
    }
    if baseline:
        maps["baseline"] = baseline.predict(image)
    maps["student"] = student.predict(image)
    # made small here: fifty large ones would fill the memory
    small = {title: thin_classes(classes[box]) for title, classes in maps.items()}
    return Panel(reader.sample_ids[sample], disagreement, shrink_photo(image[box]), small)


def view_samples(names: list[str], panels: list[Panel], *, total: int) -> dict:
    """The section about validation samples.

    Args:
        names: one per class. panels: in falling disagreement. total: of the validation samples.
    """
    num_scanned, num_most = count_scanned(len(panels)), len(panels) - len(panels) // 2
    rows, px = _view_within(panels, MOST_CHARACTERS)
    maps = [np.unique(classes) for panel in panels for classes in panel.maps.values()]
    shown = np.unique(np.concatenate(maps)).tolist()
    return {
        "num_shown": len(panels),
        "total": total,
        "num_scanned": num_scanned if total > num_scanned else None,
        "smaller_px": px if px < LONGEST_PX else None,
        "classes": [(number, names[number]) for number in shown if number != VOID],
        "most": rows[:num_most],
        "least": rows[num_most:],
    }


def _view_within(panels: list[Panel], most: int) -> tuple[list[dict], int]:
    """The panels with pictures as large as `most` characters allow, and their longest side."""
    px = LONGEST_PX
    while True:
        rows = [_view_panel(panel, px) for panel in panels]
        size = sum(len(uri) for row in rows for uri in row["pictures"].values())
        if size <= most or px <= LEAST_PX:
            return rows, px
        px = max(LEAST_PX, min(px - 20, int(px * (most / size) ** 0.5)))


def _view_panel(panel: Panel, px: int) -> dict:
    """Pictures by title, of `px` pixels at most."""
    uris = {"image": photo_uri(panel.image, longest_px=px)}
    uris |= {title: class_map_uri(classes, longest_px=px) for title, classes in panel.maps.items()}
    uris["errors"] = error_map_uri(panel.maps["student"], panel.maps["label"], longest_px=px)
    return {
        "name": panel.sample_id,
        "percent": f"{100 * panel.disagreement:.1f}",
        "is_coarse": max(panel.image.shape) < COARSE_PX,
        "pictures": uris,
    }


def write_predictions(
    predictions: list[Prediction], student: TrainedStudent, *, folder: Path
) -> Path:
    """Write index.html beside the folders of masks and overlays; returns its path."""
    names = student.config.dataset.names
    html = render_page(
        "predictions.html.j2",
        title=f"{student.folder.resolve().name}: {len(predictions)} images",
        images=BESIDE,
        epoch=student.epoch,
        miou=student.miou,
        pictures=[_view_picture(prediction, names) for prediction in predictions],
    )
    # a file's name may hold bytes that are no text
    disk.replace_file(folder / PAGE, html.encode("utf-8", "backslashreplace"))
    return folder / PAGE


def _view_picture(prediction: Prediction, names: list[str]) -> dict:
    height, width = prediction.hw
    file = quote(os.fsencode(prediction.name))
    return {
        "path": str(prediction.picture),
        "name": prediction.picture.name,
        "height": height,
        "width": width,
        "is_coarse": max(height, width) < COARSE_PX,
        "files": {"overlay": f"{OVERLAYS}/{file}", "mask": f"{MASKS}/{file}"},
        "shares": [
            {"number": number, "name": names[number], "percent": f"{100 * share:.1f}"}
            for number, share in prediction.shares.items()
        ],
    }
