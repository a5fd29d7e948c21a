"""The page over predictions: each image with its classes; needs no script and no network."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from kdcache import disk
from kdcache.deploy.predict import MASKS, OVERLAYS, Prediction
from kdcache.deploy.student import TrainedStudent
from kdcache.report.panels import COARSE_PX
from kdcache.report.template import BESIDE, render_page

PAGE = "index.html"


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
