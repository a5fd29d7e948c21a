"""Validation samples as rows of pictures: image, label, what was answered, and where the student errs, as HTML."""

from __future__ import annotations

from html import escape

import numpy as np

from kdcache.metrics import VOID
from kdcache.report.panels import Panel, count_scanned
from kdcache.report.pictures import LONGEST_PX, class_map_uri, error_map_uri, photo_uri
from kdcache.report.tables import draw_swatch, shorten

COARSE_PX = 256  # smaller pictures are enlarged pixel by pixel, larger ones smoothly reduced
MOST_CHARACTERS = 4_200_000  # of all pictures as text, so that a page stays below 5 MB
LEAST_PX = 40


def draw_samples(names: list[str], panels: list[Panel], *, total: int) -> str:
    """The section.

    Args:
        names: one a class. panels: in falling disagreement. total: how many validation samples there are.
    """
    scanned = count_scanned(len(panels))
    among = f" among {scanned} evenly spaced ones" if total > scanned else ""
    most = len(panels) - len(panels) // 2
    rows, px = _draw_within(panels, MOST_CHARACTERS)
    smaller = f" Pictures have {px} px at most, to keep the page small." if px < LONGEST_PX else ""
    return (
        f'<section><h2>Validation samples</h2><p class="soft">{len(panels)} of {total}: those{among} '
        f"on which student and teacher differ most, then those on which they differ least.{smaller}</p>"
        f"{_draw_legend(names, panels)}<h3>They differ most</h3>{''.join(rows[:most])}"
        + (f"<h3>They differ least</h3>{''.join(rows[most:])}" if rows[most:] else "")
        + "</section>"
    )


def _draw_within(panels: list[Panel], most: int) -> tuple[list[str], int]:
    """The panels with pictures as large as `most` characters allow, and their longest side."""
    px = LONGEST_PX
    while True:
        rows = [_draw_panel(panel, px) for panel in panels]
        size = sum(map(len, rows))
        if size <= most or px <= LEAST_PX:
            return rows, px
        px = max(LEAST_PX, min(px - 20, int(px * (most / size) ** 0.5)))


def _draw_legend(names: list[str], panels: list[Panel]) -> str:
    """The classes that the pictures show."""
    shown = np.unique(
        np.concatenate([np.unique(classes) for panel in panels for classes in panel.maps.values()])
    )
    items = "".join(
        f"<li>{draw_swatch(k)}{escape(shorten(names[k]))}</li>"
        for k in map(int, shown)
        if k != VOID
    )
    return (
        f'<ul class="legend">{items}<li><span class="swatch void"></span>void, not counted</li>'
        '<li><span class="swatch err"></span>errors: the student is not the label</li></ul>'
    )


def _draw_panel(panel: Panel, px: int) -> str:
    name = escape(panel.sample_id)
    uris = {"image": photo_uri(panel.image, longest_px=px)}
    uris |= {title: class_map_uri(classes, longest_px=px) for title, classes in panel.maps.items()}
    uris["errors"] = error_map_uri(panel.maps["student"], panel.maps["label"], longest_px=px)
    coarse = ' class="coarse"' if max(panel.image.shape) < COARSE_PX else ""
    figures = "".join(
        f'<figure><img{coarse} src="{uri}" alt="{title} of {name}"><figcaption>{title}</figcaption></figure>'
        for title, uri in uris.items()
    )
    share = f"student and teacher differ on {100 * panel.disagreement:.1f} % of the pixels"
    return (
        f'<div class="panel"><h4>{name} <small>{share}</small></h4>'
        f'<div class="pictures" style="--columns:{len(uris)}">{figures}</div></div>'
    )
