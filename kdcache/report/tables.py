"""The tables of a report as HTML: IoU of each class, rows of text, facts by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from kdcache.report.pictures import css_colour

MOST_ROWS = 40  # above, a table of classes scrolls in a box
Classes = list[tuple[str, int]]  # name, number; one becomes the next
LONGEST_NAME = (
    60  # characters: five lines of a column on a telephone; the settings below have names in full
)


def draw_class_table(
    names: list[str], ious: dict[str, list], mious: dict[str, float | None]
) -> str:
    """A row a class with a bar in each cell, mIoU below.

    Args:
        names: one name a class.
        ious: "teacher", "baseline", "student" (those there are) -> one IoU a class, 0 to 1, or None.
        mious: the same -> mIoU or None.
    """
    compared = "baseline" in ious
    titles = [*ious, *(["&Delta; points"] if compared else [])]
    rows = []
    for number, name in enumerate(names):
        cells = "".join(_iou_cell(who, values[number]) for who, values in ious.items())
        if compared:
            cells += f"<td>{_points(ious['student'][number], ious['baseline'][number])}</td>"
        rows.append(f"<tr><th>{draw_swatch(number)}{escape(shorten(name))}</th>{cells}</tr>")
    foot = "".join(f"<td>{format_share(mious[who])}</td>" for who in ious)
    foot += f"<td>{_points(mious['student'], mious['baseline'])}</td>" if compared else ""
    table = (
        '<table class="ious"><thead><tr><th>class</th>'
        + "".join(f"<th>{title}</th>" for title in titles)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody><tfoot><tr><th>mIoU</th>{foot}</tr></tfoot></table>"
    )
    # a box that scrolls must be reachable by keyboard
    return f'<div class="scroll" tabindex="0">{table}</div>' if len(names) > MOST_ROWS else table


def draw_grid(titles: Sequence[str], rows: Sequence[Sequence[str | Classes]], *, kind: str) -> str:
    """Rows of text below titles; classes have their colours. Args: kind: CSS class."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        f"<tr>{''.join(f'<td>{_draw_cell(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<table class="grid {kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def draw_facts(facts: Mapping[str, object]) -> str:
    """Name and value, a row each."""
    rows = (
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<table class="facts">{"".join(rows)}</table>'


def draw_swatch(class_number: int) -> str:
    """A small square in the colour of a class."""
    return f'<span class="swatch" style="background:{css_colour(class_number)}"></span>'


def format_share(value: float | None) -> str:
    """0 to 1 with four digits, as in the terminal; "-" for None."""
    return "-" if value is None else f"{value:.4f}"


def shorten(name: str) -> str:
    """The name, cut where it is longer than LONGEST_NAME."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\u2026"


def _draw_cell(cell: str | Classes) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return " → ".join(
        f"<bdi>{draw_swatch(number)}{escape(shorten(name))}</bdi>" for name, number in cell
    )


def _iou_cell(who: str, iou: float | None) -> str:
    width = "0" if iou is None else f"{100 * iou:.1f}%"
    return f'<td>{format_share(iou)}<span class="bar"><i class="{who}" style="width:{width}"></i></span></td>'


def _points(value: float | None, base: float | None) -> str:
    return "-" if value is None or base is None else f"{100 * (value - base):+.2f}"
