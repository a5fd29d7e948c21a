"""A comparison of runs as one HTML page."""

from __future__ import annotations

from html import escape

from kdcache.analysis.comparison import Comparison
from kdcache.analysis.rows import Estimate, Row, best_miou, class_iou, last_miou
from kdcache.report.comparison_plot import draw_differences
from kdcache.report.comparison_text import (
    NO_BASELINE,
    ONE_PAIR,
    find_clear,
    format_estimate,
    format_interval,
    list_notes,
    say_chance,
    say_no_difference,
    say_pairs,
)
from kdcache.report.document import make_document
from kdcache.report.tables import format_share

CSS = """
:root { --gain: #1a5fb4; --fall: #a04800; --clear: #eef3fa; }
@media (prefers-color-scheme: dark) { :root { --gain: #7db8ff; --fall: #ffab5e; --clear: #262c35; } }
.strip { padding: 12px 0 0; }
.who { overflow-wrap: anywhere; font-weight: 600; }
.strip svg { display: block; width: 100%; height: 44px; overflow: visible; }
.strip path { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: round; }
.strips { padding: 0 18px 30px; }
.strip .zero { stroke: var(--soft); stroke-width: 2px; }
.seed { stroke: var(--soft); stroke-width: 8px; }
.interval { stroke: var(--student); stroke-width: 2px; }
.mean { stroke: var(--student); stroke-width: 12px; }
.scale { position: relative; height: 0; }
.scale span { position: absolute; top: 6px; transform: translateX(-50%); font-size: 12px; color: var(--soft); }
.rows th { width: auto; text-align: left; overflow-wrap: anywhere; }
.rows thead th:nth-child(n + 2) { text-align: right; }
.rows tbody th { border-bottom: 0; padding-top: 12px; font-weight: 600; }
.rows td:first-child { text-align: left; }
.rows thead th:first-child { width: 16%; }
.classes thead th:nth-child(2), .classes thead th:nth-child(3) { width: 18%; }
.classes thead th:last-child { width: 38%; }
td.clear { background: var(--clear); font-weight: 600; }
.gain { color: var(--gain); }
.fall { color: var(--fall); }
td small { display: inline-block; color: inherit; min-width: 11em; }
td small.interval { white-space: nowrap; }
details { margin-top: 6px; }
.runs th:first-child { width: 14%; }
.runs td:first-child, .runs th:last-child, .runs td:last-child { text-align: left; overflow-wrap: anywhere; }
.runs th:last-child { width: 46%; }
p, li, summary { overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 20px; }
section h2 ~ h2 { margin-top: 18px; }
section > details:only-child { margin: 0; }
@media (max-width: 700px) { td small { min-width: 0; font-size: .74rem; } }
"""


def format_page(comparison: Comparison) -> str:
    """The whole page."""
    runs, rows = len(comparison.runs), len(comparison.rows)
    head = f'<header><h1>{runs} runs compared</h1><p class="soft">{rows} rows of equal settings, each over its seeds</p></header>'
    parts = [head, _differences(comparison), _rows(comparison.rows), _classes(comparison)]
    parts += [_notes(comparison), _runs(comparison)]
    return make_document(f"{runs} runs compared", parts, css=CSS)


def _differences(comparison: Comparison) -> str:
    if not comparison.compared:
        return f'<section><h2>Difference from the baseline</h2><p class="soft">None: {NO_BASELINE}.</p></section>'
    key = "Grey dots: seeds. Blue: their mean, with its 95 % interval; where that holds 0, there may be no difference."
    return (
        f'<section><h2>Difference from the baseline</h2><p class="soft">val mIoU of the best epoch, points of 0.01. {key}</p>'
        f"{draw_differences(comparison.compared)}</section>"
    )


def _rows(rows: list[Row]) -> str:
    head = "".join(f"<th>{title}</th>" for title in ("epoch", "val mIoU", "to baseline, points"))
    bodies = "".join(map(_row, rows))
    return f'<section><h2>Rows</h2><table class="rows"><thead><tr>{head}</tr></thead>{bodies}</table></section>'


def _row(row: Row) -> str:
    facts = f"{len(row.runs)} seed{'s' * (len(row.runs) > 1)}"
    facts += "" if row.epoch_s is None else f", {row.epoch_s:.1f} s an epoch"
    lines = [f'<tr><th colspan="3">{escape(row.name)} <small>{facts}</small></th></tr>']
    reason = say_no_difference(row)
    for title, measure in (("best", best_miou), ("last", last_miou)):
        cell = (
            f"<td>{reason}</td>"
            if reason
            else _difference_cell(row.difference(measure), remark=say_pairs(row))
        )
        lines.append(
            f"<tr><td>{title}</td><td>{format_estimate(row.estimate(measure))}</td>{cell}</tr>"
        )
    return f"<tbody>{''.join(lines)}</tbody>"


def _difference_cell(difference: Estimate, *, remark: str = "") -> str:
    """Sign, arrow and colour say the same."""
    mean, marked = difference.mean, difference.excludes_zero
    kind, arrow = ("gain", "\u25b2") if mean > 0 else ("fall", "\u25bc") if mean < 0 else ("", "")
    shown = f"{arrow} {mean:+.2f}" if marked else f"{mean:+.2f}"
    interval = (
        f'<small class="interval">{format_interval(difference)}</small>'
        if difference.interval
        else ""
    )
    small = f" <small>{remark}</small>" if remark else ""
    return f'<td class="{kind}{" clear" if marked else ""}">{shown} {interval}{small}</td>'


def _classes(comparison: Comparison) -> str:
    names, rows = comparison.names, comparison.compared
    if not rows:
        return ""
    tables = "".join(_class_table(row, names, is_open=place == 0) for place, row in enumerate(rows))
    marks = "\u25b2 \u25bc mark classes whose 95 % interval does not hold 0. "
    return f'<section><h2>Classes</h2><p class="soft">{marks}{say_chance(len(names))}</p>{tables}</section>'


def _class_table(row: Row, names: list[str], *, is_open: bool) -> str:
    lines = []
    for number, name in enumerate(names):
        means = row.paired_means(class_iou(number)) or (None, None)
        difference = row.difference(class_iou(number))
        cell = "<td>-</td>" if difference is None else _difference_cell(difference)
        own, base = map(format_share, means)
        lines.append(f"<tr><th>{escape(name)}</th><td>{base}</td><td>{own}</td>{cell}</tr>")
    head = "".join(f"<th>{title}</th>" for title in ("class", "baseline", "row", "&Delta; points"))
    marked = (
        ONE_PAIR
        if len(row.pairs) == 1
        else f"{len(find_clear(row, len(names)))} of {len(names)} classes marked"
    )
    summary = f"{escape(row.name)} <small>{marked}</small>"
    return (
        f"<details{' open' if is_open else ''}><summary>{summary}</summary>"
        f'<table class="classes"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></details>'
    )


def _notes(comparison: Comparison) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in list_notes(comparison))
    left_out = "".join(f"<li>{escape(line)}</li>" for line in comparison.left_out)
    listed = f"<h2>Left out</h2><ul>{left_out}</ul>" if left_out else ""
    return f"<section><h2>How to read this</h2>{notes}{listed}</section>"


def _runs(comparison: Comparison) -> str:
    lines = "".join(
        f"<tr><td>{run.seed}</td><td>{run.miou:.4f}</td><td>{run.last_miou:.4f}</td><td>{escape(str(run.folder))}</td></tr>"
        for _, run in comparison.runs
    )
    head = "".join(f"<th>{title}</th>" for title in ("seed", "best", "last", "folder"))
    return (
        "<section><details><summary>Every run</summary>"
        f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></details></section>'
    )
