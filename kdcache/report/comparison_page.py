"""A comparison of runs as one HTML page."""

from __future__ import annotations

from kdcache.analysis.comparison import Comparison, Row
from kdcache.analysis.runs import (
    Estimate,
    best_miou,
    class_iou,
    format_difference,
    format_estimate,
    format_interval,
    last_miou,
)
from kdcache.report.comparison_text import (
    NO_BASELINE,
    ONE_PAIR,
    find_clear,
    list_notes,
    say_chance,
    say_no_difference,
    say_pairs,
)
from kdcache.report.template import find_ticks, render_page


def format_page(comparison: Comparison) -> str:
    """The whole page."""
    names, rows, compared = comparison.names, comparison.rows, comparison.compared
    return render_page(
        "comparison.html.j2",
        title=f"{len(comparison.runs)} runs compared",
        styles=["comparison.css"],
        num_rows=len(rows),
        no_baseline=NO_BASELINE,
        differences=_view_differences(compared) if compared else None,
        rows=[_view_row(row) for row in rows],
        chance=say_chance(len(names)),
        classes=[_view_classes(row, names) for row in compared],
        notes=list_notes(comparison),
        left_out=comparison.left_out,
        runs=[run for _, run in comparison.runs],
    )


def _view_differences(rows: list[Row]) -> dict:
    """A strip per row, on a common axis of points; each row has at least one pair."""
    ticks = find_ticks(*_find_range(rows), most=6)
    places = [{"x": _place(tick, ticks), "is_zero": abs(tick) < 1e-9} for tick in ticks]
    return {
        "grid": places,
        "labels": [(_place(tick, ticks), _format_tick(tick)) for tick in ticks],
        "strips": [_view_strip(row, ticks) for row in rows],
    }


def _find_range(rows: list[Row]) -> tuple[float, float]:
    """From the lowest to the highest point of all seeds and intervals, and of 0."""
    values = [0.0]
    for row in rows:
        values += row.differences(best_miou).values()
        values += row.difference(best_miou).interval or ()
    return min(values), max(values)


def _place(value: float, ticks: list[float]) -> float:
    """Percent of the axis."""
    return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)


def _format_tick(tick: float) -> str:
    return "0" if abs(tick) < 1e-9 else f"{tick:+.6g}"


def _view_strip(row: Row, ticks: list[float]) -> dict:
    difference = row.difference(best_miou)
    interval = difference.interval
    points = row.differences(best_miou).items()
    notes = [f"{format_difference(difference)} points", say_pairs(row)]
    return {
        "name": row.name,
        "note": "; ".join(filter(None, notes)),
        "seeds": [(_place(value, ticks), f"seed {k}: {value:+.2f} points") for k, value in points],
        "interval": [_place(end, ticks) for end in interval] if interval else None,
        "mean": _place(difference.mean, ticks),
    }


def _view_row(row: Row) -> dict:
    """The row's mIoU and its difference from the baseline, at the best and at the last epoch."""
    note = f"{len(row.runs)} seed{'s' * (len(row.runs) > 1)}"
    note += "" if row.epoch_s is None else f", {row.epoch_s:.1f} s an epoch"
    reason, remark = say_no_difference(row), say_pairs(row)
    lines = [
        {
            "epoch": epoch,
            "miou": format_estimate(row.estimate(measure)),
            "reason": reason,
            "difference": None if reason else _view_difference(row.difference(measure), remark),
        }
        for epoch, measure in (("best", best_miou), ("last", last_miou))
    ]
    return {"name": row.name, "note": note, "lines": lines}


def _view_difference(difference: Estimate, remark: str = "") -> dict:
    """A cell whose sign, arrow and colour say the same."""
    mean, is_clear = difference.mean, difference.excludes_zero
    kind, arrow = ("gain", "\u25b2") if mean > 0 else ("fall", "\u25bc") if mean < 0 else ("", "")
    return {
        "kind": kind,
        "is_clear": is_clear,
        "text": f"{arrow} {mean:+.2f}" if is_clear else f"{mean:+.2f}",
        "interval": format_interval(difference) if difference.interval else "",
        "remark": remark,
    }


def _view_classes(row: Row, names: list[str]) -> dict:
    """A line per class: IoU of the baseline and of the row, and their difference."""
    clear = f"{len(find_clear(row, len(names)))} of {len(names)} classes marked"
    lines = []
    for number, name in enumerate(names):
        own, base = row.paired_means(class_iou(number)) or (None, None)
        difference = row.difference(class_iou(number))
        cell = None if difference is None else _view_difference(difference)
        lines.append({"name": name, "base": base, "own": own, "difference": cell})
    note = ONE_PAIR if len(row.pairs) == 1 else clear
    return {"name": row.name, "note": note, "lines": lines}
