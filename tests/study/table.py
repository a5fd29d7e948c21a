"""A study as a Markdown table."""

from __future__ import annotations

import statistics

from tests.study.runs import Row


def render_table(rows: dict[tuple[str, int], Row]) -> str:
    """One line an arm and number of views; a difference is taken seed by seed, from the exact cache
    with as many views.
    """
    seeds = sorted({seed for row in rows.values() for seed in row.miou})
    head = [
        "arm",
        "views",
        "mIoU",
        *(f"seed {seed}" for seed in seeds),
        "to exact, points",
        "s/epoch",
        "cache MB",
    ]
    lines = [render_line(head), render_line(["---"] * len(head))]
    for (arm, views), row in rows.items():
        exact = rows.get(("exact", views))
        cells = [arm, str(views), format_spread(list(row.miou.values()), digits=4)]
        cells += [f"{row.miou[seed]:.4f}" if seed in row.miou else "-" for seed in seeds]
        cells += [_format_differences(row, exact) if exact and exact is not row else "-"]
        cells += [f"{statistics.median(row.epoch_s):.1f}", _format_mb(row.cache_bytes)]
        lines.append(render_line(cells))
    return "\n".join(lines) + "\n"


def _format_differences(row: Row, exact: Row) -> str:
    """Mean, standard deviation, and that of each seed that both have."""
    points = [
        100 * (row.miou[seed] - exact.miou[seed]) for seed in sorted(row.miou) if seed in exact.miou
    ]
    if not points:
        return "-"
    single = ", ".join(f"{value:+.2f}" for value in points)
    return f"{format_spread(points, digits=2, sign='+')} ({single})"


def format_spread(values: list[float], *, digits: int, sign: str = "") -> str:
    """Mean and standard deviation; one seed has none."""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _format_mb(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.1f}"


def render_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
