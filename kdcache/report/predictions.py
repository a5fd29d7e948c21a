"""The page over predictions: each image with its classes; needs no script and no network."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from kdcache.deploy.load import TrainedStudent
from kdcache.deploy.predict import MASKS, OVERLAYS, Prediction
from kdcache.report.document import BESIDE, make_document
from kdcache.report.samples import COARSE_PX
from kdcache.report.tables import draw_swatch

PAGE = "index.html"


def write_predictions(
    predictions: list[Prediction], student: TrainedStudent, *, folder: Path
) -> Path:
    """Write the page beside the folders of masks and overlays; returns its path."""
    names = student.config.dataset.names
    title = f"{student.folder.resolve().name}: {len(predictions)} images"
    path = folder / PAGE
    head = (
        f"<h1>{escape(title)}</h1><p class='soft'>The student of epoch {student.epoch}, mIoU {student.miou:.4f} on val. "
        "Colours lie half over the image; masks hold the class numbers.</p>"
    )
    page = make_document(
        title, [head, *(_draw(prediction, names) for prediction in predictions)], images=BESIDE
    )
    path.write_text(
        page, encoding="utf-8", errors="backslashreplace"
    )  # a file's name may be no text
    return path


def _draw(prediction: Prediction, names: list[str]) -> str:
    legend = "".join(
        f"<li>{draw_swatch(number)}{escape(names[number])} <small>{100 * share:.1f} %</small></li>"
        for number, share in prediction.shares.items()
    )
    figures = "".join(
        _figure(prediction, folder, title)
        for folder, title in ((OVERLAYS, "overlay"), (MASKS, "mask"))
    )
    height, width = prediction.hw
    return (
        f"<section><div class='panel' style='margin:0'><h3>{escape(str(prediction.picture))} <small>{width} x {height}</small>"
        f"</h3><div class='pictures' style='--columns:2'>{figures}</div><ul class='legend'>{legend}</ul></div></section>"
    )


def _figure(prediction: Prediction, folder: str, title: str) -> str:
    address = f"{folder}/{quote(os.fsencode(prediction.name))}"
    height, width = prediction.hw
    coarse = ' class="coarse"' if max(prediction.hw) < COARSE_PX else ""
    alt = escape(f"{title} of {prediction.picture.name}")
    return (
        f'<figure><a href="{address}"><img{coarse} src="{address}" alt="{alt}" loading="lazy" width="{width}" '
        f'height="{height}" style="height:auto"></a><figcaption>{title}</figcaption></figure>'
    )
