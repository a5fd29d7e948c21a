"""mIoU against the number of labels as an SVG file, readable on light and dark pages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from kdcache.report.template import find_ticks
from tests.study.gain.plan import Study
from tests.study.gain.table import Point, Values, find_values

WIDTH_PX, HEIGHT_PX = 720, 400
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 56, 24, 92, 44
STYLE = """
svg { font: 13px system-ui, sans-serif; }
.paper { fill: #ffffff; } text { fill: #24292f; } .grid { stroke: #d0d7de; }
.c0 { --c: #57606a; } .c1 { --c: #0969da; } .c2 { --c: #bc4c00; } .c3 { --c: #8250df; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #0d1117; } text { fill: #e6edf3; } .grid { stroke: #30363d; }
  .c0 { --c: #9198a1; } .c1 { --c: #58a6ff; } .c2 { --c: #f0883e; } .c3 { --c: #bc8cff; }
}
.line { fill: none; stroke: var(--c); stroke-width: 2.5; }
.seed { fill: var(--c); fill-opacity: .35; } .mean { fill: var(--c); }
.level { stroke: var(--c); stroke-width: 1.5; stroke-dasharray: 5 4; }
"""


@dataclass(frozen=True)
class _Curve:
    """name: for people. seeds: number of labels -> mIoU of each seed."""

    name: str
    seeds: dict[int, list[float]]

    @property
    def means(self) -> dict[int, float]:
        """Number of labels -> mean mIoU."""
        return {labels: statistics.fmean(mious) for labels, mious in self.seeds.items()}


class _Frame:
    """Places in pixels; the number of labels on a logarithmic axis."""

    def __init__(self, labels: Sequence[int], mious: Iterable[float]) -> None:
        mious = list(mious)
        self.labels = sorted(set(labels))
        self.ticks = find_ticks(min(mious), max(mious), most=6)

    def x(self, labels: int) -> float:
        """Of a number of labels."""
        first, last = math.log(self.labels[0]), math.log(self.labels[-1])
        share = (math.log(labels) - first) / (last - first) if last > first else 0.5
        return round(LEFT_PX + 16 + share * (WIDTH_PX - LEFT_PX - RIGHT_PX - 32), 1)

    def y(self, miou: float) -> float:
        """Of an mIoU."""
        share = (miou - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return round(HEIGHT_PX - BOTTOM_PX - share * (HEIGHT_PX - TOP_PX - BOTTOM_PX), 1)


def render_picture(study: Study, lines: Sequence[dict]) -> str:
    """The SVG of the study's first budget: seeds as points, means as lines. Needs a finished run.

    Each arm of `study.picture` is a curve for each of its teachers.
    """
    curves = _find_curves(study, find_values(lines))
    level = _find_level(study, lines)
    mious = [miou for curve in curves for seeds in curve.seeds.values() for miou in seeds]
    frame = _Frame(
        [labels for curve in curves for labels in curve.seeds],
        mious + ([] if level is None else [level]),
    )
    title = f"{study.name}: mIoU by the number of labels, {study.budgets[0]} steps"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH_PX}" height="{HEIGHT_PX}" rx="6"/>',
        *_draw_axes(frame),
        *([] if level is None else _draw_level(study, frame, level)),
        *(part for number, curve in enumerate(curves) for part in _draw(curve, number, frame)),
        *_draw_legend(curves),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _find_curves(study: Study, values: Values) -> list[_Curve]:
    curves = []
    for arm in study.picture:
        for teacher in (None, *study.teachers):
            seeds = {
                point.labels: list(own.values())
                for point, own in sorted(values.items(), key=lambda pair: pair[0].labels)
                if point == Point(study.budgets[0], point.labels, teacher, arm)
            }
            taught = f"teacher {study.teachers[teacher]['knows']}" if teacher else "no teacher"
            curves += [_Curve(f"{arm}, {taught}", seeds)] if seeds else []
    return curves


def _find_level(study: Study, lines: Sequence[dict]) -> float | None:
    """mIoU of the first teacher, 0 to 1."""
    first = next(iter(study.teachers))
    found = (x["teacher_miou"] for x in lines if x["teacher"] == first)
    return next((miou for miou in found if miou is not None), None)


def _draw_axes(frame: _Frame) -> Iterator[str]:
    right, bottom = WIDTH_PX - RIGHT_PX, HEIGHT_PX - BOTTOM_PX
    for tick in frame.ticks:
        y = frame.y(tick)
        yield f'<line class="grid" x1="{LEFT_PX}" x2="{right}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT_PX - 8}" y="{y + 4}" text-anchor="end">{tick:.2f}</text>'
    for labels in frame.labels:
        yield f'<text x="{frame.x(labels)}" y="{bottom + 20}" text-anchor="middle">{labels}</text>'
    yield f'<text x="{right}" y="{bottom + 37}" text-anchor="end">images with labels</text>'
    yield f'<text x="12" y="{TOP_PX - 10}">mIoU</text>'


def _draw_level(study: Study, frame: _Frame, level: float) -> Iterator[str]:
    right, y = WIDTH_PX - RIGHT_PX, frame.y(level)
    yield f'<line class="level c0" x1="{LEFT_PX}" x2="{right}" y1="{y}" y2="{y}"/>'
    knows = study.teachers[next(iter(study.teachers))]["knows"]
    text = escape(f"the teacher {knows}: {level:.3f}")
    yield f'<text x="{right}" y="{y - 6}" text-anchor="end">{text}</text>'


def _draw(curve: _Curve, number: int, frame: _Frame) -> Iterator[str]:
    places = [(frame.x(labels), frame.y(mean)) for labels, mean in curve.means.items()]
    path = "L".join(f"{x} {y}" for x, y in places)
    yield f'<g class="c{number % 4}"><path class="line" d="M{path}"/>'
    for labels, mious in curve.seeds.items():
        for miou in mious:
            yield f'<circle class="seed" cx="{frame.x(labels)}" cy="{frame.y(miou)}" r="3.5"/>'
    for x, y in places:
        yield f'<circle class="mean" cx="{x}" cy="{y}" r="4.5"/>'
    yield "</g>"


def _draw_legend(curves: Sequence[_Curve]) -> Iterator[str]:
    for number, curve in enumerate(curves):
        y = 22 + 19 * number
        yield f'<g class="c{number % 4}"><path class="line" d="M{LEFT_PX} {y}h26"/>'
        yield f'<circle class="mean" cx="{LEFT_PX + 13}" cy="{y}" r="4.5"/></g>'
        yield f'<text x="{LEFT_PX + 36}" y="{y + 4}">{escape(curve.name)}</text>'
