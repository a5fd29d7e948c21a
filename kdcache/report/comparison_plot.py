"""Differences from the baseline as dots, one a seed, with mean and interval, as inline SVG.

The SVG is stretched to its box, as in `kdcache.report.curves`: dots are lines of no length with round ends.
"""

from __future__ import annotations

from html import escape

from kdcache.analysis.rows import Row, best_miou
from kdcache.report.comparison_text import format_difference, say_pairs
from kdcache.report.curves import find_ticks

SEEDS_Y, MEAN_Y, CAP = 30, 70, 12  # of 100


def draw_differences(rows: list[Row]) -> str:
    """A strip a row on a common axis of points; each row has a pair at least."""
    ticks = find_ticks(*_find_range(rows), most=6)
    strips = "".join(_draw_row(row, ticks) for row in rows)
    labels = "".join(
        f'<span style="left:{_place(tick, ticks)}%">{_label(tick)}</span>' for tick in ticks
    )
    return f'<div class="strips">{strips}<div class="scale">{labels}</div></div>'


def _find_range(rows: list[Row]) -> tuple[float, float]:
    """With 0, every seed and every interval in it."""
    values = [0.0]
    for row in rows:
        values += [
            *row.differences(best_miou).values(),
            *(row.difference(best_miou).interval or ()),
        ]
    return min(values), max(values)


def _place(value: float, ticks: list[float]) -> float:
    """Percent of the axis."""
    return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)


def _label(tick: float) -> str:
    return "0" if abs(tick) < 1e-9 else f"{tick:+.6g}"


def _draw_row(row: Row, ticks: list[float]) -> str:
    difference = row.difference(best_miou)
    lines = [
        f'<path class="{"zero" if abs(t) < 1e-9 else "grid"}" d="M{_place(t, ticks)} 0V100"/>'
        for t in ticks
    ]
    for seed, points in row.differences(best_miou).items():
        title = f"<title>seed {seed}: {points:+.2f} points</title>"
        lines.append(f'<path class="seed" d="M{_place(points, ticks)} {SEEDS_Y}h0">{title}</path>')
    if difference.interval:
        low, high = (_place(end, ticks) for end in difference.interval)
        caps = "".join(f"M{x} {MEAN_Y - CAP}V{MEAN_Y + CAP}" for x in (low, high))
        lines.append(f'<path class="interval" d="M{low} {MEAN_Y}H{high}{caps}"/>')
    lines.append(f'<path class="mean" d="M{_place(difference.mean, ticks)} {MEAN_Y}h0"/>')
    text = f"{format_difference(difference)} points"
    remark = say_pairs(row)
    note = f"{text}; {remark}" if remark else text
    return (
        f'<div class="strip"><div class="who">{escape(row.name)} <small>{note}</small></div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(row.name)}: {note}">'
        f"{''.join(lines)}</svg></div>"
    )
