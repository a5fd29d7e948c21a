"""Line charts over epochs as inline SVG.

The SVG is stretched to its box and holds lines only, with strokes that keep their width; numbers and titles
are HTML around it, so that they have the page's font size on a telephone and on a wide screen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

MOST_DOTS = 40  # above, single epochs cannot be told apart and only the line is drawn
MOST_POINTS = (
    1000  # of a line: no screen shows more, and a page of a million epochs would have no bound
)
LEAST_SPAN = 0.05  # of the values: a constant curve is not blown up to its rounding errors


@dataclass(frozen=True)
class Curve:
    """One line. `kind` is its CSS class (student, baseline, teacher); values: one an epoch, from epoch 1 on.

    best: epoch to mark with a large dot, counted from 1.
    """

    kind: str
    values: list[float]
    best: int | None = None


def draw_chart(
    title: str, note: str, curves: list[Curve], *, height_px: int, level: float | None = None
) -> str:
    """A chart as HTML.

    Args:
        title, note: plain text above the chart.
        curves: at least one, with at least one value.
        level: height of a dashed line over all epochs, the teacher's.
    """
    heights = [value for curve in curves for value in curve.values] + (
        [] if level is None else [level]
    )
    most = 5 if height_px > 150 else 3
    ticks = find_ticks(min(heights), max(heights), most=most)
    frame = _Frame(max(len(curve.values) for curve in curves), ticks[0], ticks[-1])
    lines = [f'<path class="grid" d="M0 {frame.y(tick)}H100"/>' for tick in ticks]
    if level is not None:
        name = f"<title>teacher: {level:.4f}</title>"
        lines.append(f'<path class="line teacher" d="M0 {frame.y(level)}H100">{name}</path>')
    lines += [_draw_curve(curve, frame) for curve in curves]
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <small>{escape(note)}</small></figcaption>'
        f'<div class="plot" style="height:{height_px}px">{_label_heights(frame, ticks)}'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f"{''.join(lines)}</svg>{_label_epochs(frame, most)}</div></figure>"
    )


def find_ticks(low: float, high: float, *, most: int, whole: bool = False) -> list[float]:
    """Two or more round numbers in equal steps of 1, 2 or 5 times a power of ten that enclose low..high.

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


def _label_heights(frame: _Frame, ticks: list[float]) -> str:
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    spans = (f'<span style="top:{frame.y(tick)}%">{tick:.{digits}f}</span>' for tick in ticks)
    return f'<div class="ylabels">{"".join(spans)}</div>'


def _label_epochs(frame: _Frame, most: int) -> str:
    """Round numbers, and the first epoch; next to it no other has room, in a small chart less so."""
    last = frame.num_epochs
    least = 1 + last * (0.125 if most > 3 else 0.28)
    shown = [1, *(n for n in find_ticks(1, last, most=most, whole=True) if least < n <= last)]
    spans = (
        f'<span style="left:{frame.x(n)}%">{"epoch " if n == 1 else ""}{n}</span>' for n in shown
    )
    return f'<div class="xlabels">{"".join(spans)}</div>'


def _draw_curve(curve: Curve, frame: _Frame) -> str:
    points = {
        epoch: (frame.x(epoch), frame.y(curve.values[epoch - 1])) for epoch in _thin_epochs(curve)
    }
    drawn = [
        f'<path class="line {curve.kind}" d="M'
        + "L".join(f"{x} {y}" for x, y in points.values())
        + '"/>'
    ]
    for epoch, (x, y) in points.items():
        if frame.num_epochs <= MOST_DOTS or epoch == curve.best:
            size = " best" if epoch == curve.best else ""
            # a line of no length with round ends: a circle would be stretched with the SVG
            drawn.append(
                f'<path class="dot {curve.kind}{size}" d="M{x} {y}h0">'
                f"<title>{curve.kind}, epoch {epoch}: {curve.values[epoch - 1]:.4f}</title></path>"
            )
    return "".join(drawn)


def _thin_epochs(curve: Curve) -> list[int]:
    """The epochs that are drawn: all, or evenly spaced ones, the best and the last."""
    last = len(curve.values)
    step = -(-last // MOST_POINTS)
    return sorted({*range(1, last + 1, step), last, *([curve.best] if curve.best else [])})
