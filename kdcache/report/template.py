"""What all HTML pages are made with: the templates beside this file, and line charts over epochs
that they draw as SVG. A page is one file that fetches nothing.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.data.pictures import voc_palette

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
BESIDE = "'self' file:"  # pictures in files beside the page
LONGEST_NAME = 60  # characters: five lines of a column on a telephone
_POLICY = "default-src 'none'; img-src {images}; style-src 'unsafe-inline'{scripts}"
MOST_DOTS = 40  # above, single epochs cannot be told apart and only the line is drawn
MOST_POINTS = 1000  # of a line: no screen shows more, and the page must have a bound
LEAST_SPAN = 0.05  # of the values: a constant curve is not blown up to its rounding errors


def render_page(
    template: str,
    *,
    title: str,
    styles: Sequence[str] = (),
    script: str | None = None,
    images: str = "data:",
    **view: object,
) -> str:
    """Fill a template, which escapes every text it is given.

    Args:
        template: its file name. title: of the page.
        styles, script: files beside the template; `pages.css` is always in the page.
        images: where the page's policy lets pictures come from.
        view: what the template shows: texts, numbers, lists and dicts of them.

    Returns: the page. Its policy lets no script run but `script`, whatever a name may hold.
    """
    from markupsafe import Markup

    code = read_asset(script) if script else ""
    return build_environment().get_template(template).render(
        title=title,
        policy=Markup(_POLICY.format(images=images, scripts=_allow(code))),
        css=Markup("".join(map(read_asset, ("pages.css", *styles)))),
        script=Markup(code),
        **view,
    )  # fmt: skip


@cache
def build_environment() -> Environment:
    """The template engine: it escapes texts, and a name that a view lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"colour": css_colour, "share": format_share, "shorten": shorten}
    return environment


def read_asset(name: str) -> str:
    """A style sheet or script from beside the templates."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def css_colour(class_number: int) -> str:
    """#rrggbb of a class, in VOC's colours."""
    return "#" + voc_palette()[class_number].tobytes().hex()


def format_share(value: float | None) -> str:
    """A number from 0 to 1 with four digits, as in the terminal; "-" for None."""
    return "-" if value is None else f"{value:.4f}"


def shorten(name: str) -> str:
    """The name, cut if it is longer than LONGEST_NAME."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\u2026"


def _allow(script: str) -> str:
    """The part of the policy that lets a script run: its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'" if script else ""


@dataclass(frozen=True)
class Curve:
    """One line. `kind` is its CSS class (student, baseline, teacher).

    values: one per epoch, from epoch 1 on. best: epoch to mark with a large dot, from 1.
    """

    kind: str
    values: list[float]
    best: int | None = None


@dataclass(frozen=True)
class Dot:
    """An epoch of a line, and its value as text."""

    x: float
    y: float
    epoch: int
    text: str
    is_best: bool


@dataclass(frozen=True)
class Line:
    """A curve as an SVG path without its first letter, and dots on it."""

    kind: str
    path: str
    dots: list[Dot]


@dataclass(frozen=True)
class Level:
    """The height of a dashed line over all epochs, the teacher's, and its value as text."""

    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """All places in percent of the chart, from the top left; labels are place and text."""

    title: str
    note: str
    height_px: int
    level: Level | None
    lines: list[Line]
    y_labels: list[tuple[float, str]]
    x_labels: list[tuple[float, str]]


def build_chart(
    title: str,
    note: str,
    curves: Sequence[Curve],
    *,
    height_px: int,
    level: float | None = None,
) -> Chart:
    """A chart of at least one curve with at least one value.

    Args:
        title, note: text above the chart. level: the teacher's value.
    """
    heights = [value for curve in curves for value in curve.values]
    heights += [] if level is None else [level]
    most = 5 if height_px > 150 else 3
    ticks = find_ticks(min(heights), max(heights), most=most)
    frame = _Frame(max(len(curve.values) for curve in curves), ticks[0], ticks[-1])
    return Chart(
        title,
        note,
        height_px,
        level=None if level is None else Level(frame.y(level), f"{level:.4f}"),
        lines=[_build_line(curve, frame) for curve in curves],
        y_labels=_label_heights(frame, ticks),
        x_labels=_label_epochs(frame, most),
    )


def find_ticks(low: float, high: float, *, most: int, whole: bool = False) -> list[float]:
    """Two or more round numbers in equal steps that enclose low..high.

    Steps are 1, 2 or 5 times a power of ten.

    Args:
        most: how many steps there may be at most between low and high.
        whole: steps are whole numbers.
    """
    span = max(high - low, LEAST_SPAN * max(1.0, abs(high)))
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 5, 10, 20) if span / (power * m) <= most)
    step = max(step, 1.0) if whole else step
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    ticks = [n * step for n in range(first, last + 1)]
    return [int(tick) for tick in ticks] if whole else ticks


@dataclass(frozen=True)
class _Frame:
    """Places in percent of the chart, rounded to what a screen can show."""

    num_epochs: int
    low: float
    high: float

    def x(self, epoch: int) -> float:
        return 50.0 if self.num_epochs == 1 else round(100 * (epoch - 1) / (self.num_epochs - 1), 2)

    def y(self, value: float) -> float:
        return round(100 * (self.high - value) / (self.high - self.low), 2)


def _label_heights(frame: _Frame, ticks: list[float]) -> list[tuple[float, str]]:
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [(frame.y(tick), f"{tick:.{digits}f}") for tick in ticks]


def _label_epochs(frame: _Frame, most: int) -> list[tuple[float, str]]:
    """The first epoch, and round numbers that are far enough from it to have room."""
    last = frame.num_epochs
    least = 1 + last * (0.125 if most > 3 else 0.28)
    shown = [n for n in find_ticks(1, last, most=most, whole=True) if least < n <= last]
    return [(frame.x(1), "epoch 1"), *((frame.x(n), str(n)) for n in shown)]


def _build_line(curve: Curve, frame: _Frame) -> Line:
    points = {n: (frame.x(n), frame.y(curve.values[n - 1])) for n in _thin_epochs(curve)}
    dots = [
        Dot(x, y, epoch, f"{curve.values[epoch - 1]:.4f}", is_best=epoch == curve.best)
        for epoch, (x, y) in points.items()
        if frame.num_epochs <= MOST_DOTS or epoch == curve.best
    ]
    return Line(curve.kind, "L".join(f"{x} {y}" for x, y in points.values()), dots)


def _thin_epochs(curve: Curve) -> list[int]:
    """The epochs that are drawn: all, or evenly spaced ones, the best and the last."""
    last = len(curve.values)
    step = -(-last // MOST_POINTS)
    return sorted({*range(1, last + 1, step), last, *([curve.best] if curve.best else [])})
