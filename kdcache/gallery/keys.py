"""What the colours of a gallery mean, and by what its samples are chosen and sorted, as HTML."""

from __future__ import annotations

from html import escape

from kdcache.gallery.energy import holds_directions
from kdcache.gallery.exhibit import Exhibit
from kdcache.gallery.summary import MOST_OPEN
from kdcache.report.tables import draw_swatch, shorten

ORDERS = {
    "worst": "worst first",
    "best": "best first",
    "unsure": "most entropy first",
    "split": "as in the split",
}  # the script's


def draw_keys(names: list[str], exhibit: Exhibit) -> str:
    """Scales of the heat maps, colours of the classes."""
    scales = [_draw_scale("entropy", f"{exhibit.most_entropy:.2f} (log K)")]
    for level in exhibit.levels:
        kept = holds_directions(exhibit.reader.encodings[level])
        what = (
            "share of the features' direction kept (lengths are not)"
            if kept
            else "energy of the features"
        )
        scales.append(_draw_scale(f"{level}: {what}", f"{exhibit.mosts[level]:.3g}"))
    classes = "".join(
        f"<li>{draw_swatch(number)}<bdi>{escape(shorten(name))}</bdi></li>"
        for number, name in enumerate(names)
    )
    opened = " open" if len(names) <= MOST_OPEN else ""
    return (
        f'<ul class="legend">{"".join(scales)}<li><span class="swatch void"></span>void or padding</li></ul>'
        f'<details{opened}><summary>Colours of the classes</summary><ul class="legend">{classes}</ul></details>'
    )


def draw_controls(names: list[str], exhibit: Exhibit) -> str:
    """Hidden until the script runs."""
    there = sorted({number for sample in exhibit.samples for number in sample.classes})
    classes = "".join(
        f'<option value="{number}">{escape(shorten(names[number]))}</option>' for number in there
    )
    orders = "".join(f'<option value="{name}">{text}</option>' for name, text in ORDERS.items())
    return (
        '<form id="controls" hidden autocomplete="off">'
        f'<label>with <select name="of"><option value="">any class</option>{classes}</select></label>'
        '<label>teacher error from <input type="range" name="least" min="0" max="100" value="0">'
        '<output id="bound"></output></label>'
        f'<label>order <select name="order">{orders}</select></label><output id="shown"></output></form>'
    )


def _draw_scale(title: str, most: str) -> str:
    return f'<li>{title} 0<i class="heat"></i>{most}</li>'
