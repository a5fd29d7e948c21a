"""A comparison of runs in the terminal, within 100 columns, and as CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from kdcache.analysis.comparison import Comparison, Row, format_value, list_beyond_loss, list_shared
from kdcache.analysis.runs import (
    SEED,
    Estimate,
    Run,
    best_miou,
    class_iou,
    format_difference,
    format_estimate,
    last_miou,
)
from kdcache.progress import escape_line

WIDTH = 100
WIDTHS = (34, 5, 5, 15, 24, 7)
HEAD = ("row", "seeds", "epoch", "val mIoU", "to baseline, points", "s/epoch")
MOST_CLASSES = 6  # of a row; --html has all
NO_BASELINE = "no baseline with the same settings"
_FORMULA = tuple("=+-@\t\r\n")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
ONE_PAIR = "one seed: no interval"


def format_comparison(comparison: Comparison) -> str:
    """The table, what it means, and the classes that differ clearly, within WIDTH columns."""
    lines = [*lay_out(HEAD, WIDTHS), "-" * (sum(WIDTHS) + 2 * len(WIDTHS) - 2)]
    for row in comparison.rows:
        lines += lay_out(_list_cells(row), WIDTHS)
    blocks = ["\n".join(lines), *(_fill(note) for note in list_notes(comparison))]
    blocks += [
        _format_classes(row, comparison.names) for row in comparison.compared if len(row.pairs) > 1
    ]
    return "\n\n".join(blocks)


def list_notes(comparison: Comparison) -> list[str]:
    """What a reader must know about the table, a paragraph each."""
    notes = [
        "mIoU: mean ± standard deviation over seeds, 0 to 1. best: the best epoch of each run, "
        "chosen on the validation data itself, which flatters; last: the last epoch, which nobody "
        "chose. To baseline: mean of the differences seed by seed from the run with the same "
        "settings and without a teacher, in points of 0.01, [95 % interval by Student's t]. "
        "s/epoch: median, without validation."
    ]
    if any(len(row.pairs) > 1 for row in comparison.compared):
        chance = say_chance(len(comparison.names))
        notes.append(f"A class differs clearly if its interval excludes 0. {chance}")
    if len(comparison.compared) > 1:
        notes.append(
            f"The best of {len(comparison.compared)} rows, chosen by this table, owes a part of "
            "its difference to chance: train it again with other seeds, or measure it on data that "
            "no choice has seen."
        )
    notes += _note_differences(list_beyond_loss(comparison.rows))
    notes.append(f"The same in all rows: {', '.join(list_shared(comparison.rows))}.")
    return [*notes, _note_validation(comparison.validation)]


def _note_differences(beyond: dict[str, list[str]]) -> list[str]:
    """A warning if rows differ in more than the loss. Args: beyond: setting -> its values."""
    if not beyond:
        return []
    differing = "; ".join(f"{name} ({', '.join(values)})" for name, values in beyond.items())
    return [
        f"Rows differ in more than the loss: {differing}. Compare only those that differ in what "
        "you ask about."
    ]


def _note_validation(identity: str | None) -> str:
    """What all runs were measured on."""
    if identity:
        return f"Validation data: {identity[:12]}."
    return (
        "Validation data: unknown (an older kdcache trained these runs, and did not write down "
        "what they were measured on, nor where they were trained): that they can be compared is "
        "taken on trust."
    )


def _list_cells(row: Row) -> list[str]:
    epoch_s = "-" if row.epoch_s is None else f"{row.epoch_s:.1f}"
    mious = "\n".join(format_estimate(row.estimate(measure)) for measure in (best_miou, last_miou))
    return [row.name, str(len(row.runs)), "best\nlast", mious, _say_difference(row), epoch_s]


def _say_difference(row: Row) -> str:
    reason, remark = say_no_difference(row), say_pairs(row)
    lines = (
        []
        if reason
        else [format_difference(row.difference(measure)) for measure in (best_miou, last_miou)]
    )
    return "\n".join(word for word in (reason, *lines, remark) if word)


def say_no_difference(row: Row) -> str:
    """Why a row has no difference from a baseline; "" if it has one."""
    if not row.uses_teacher:
        return "-"
    if row.baseline is None:
        return NO_BASELINE
    return "" if row.pairs else "no baseline with the same seed"


def say_pairs(row: Row) -> str:
    """How few pairs the difference of a row rests on; "" if every seed has a baseline."""
    if len(row.pairs) == 1:
        return ONE_PAIR
    return (
        f"{len(row.pairs)} of {len(row.runs)} seeds have a baseline"
        if 1 < len(row.pairs) < len(row.runs)
        else ""
    )


def find_clear(row: Row, num_classes: int) -> dict[int, Estimate]:
    """The classes whose interval excludes 0: number -> mean paired difference, largest first."""
    found = {k: row.difference(class_iou(k)) for k in range(num_classes)}
    clear = {k: value for k, value in found.items() if value is not None and value.excludes_zero}
    return dict(sorted(clear.items(), key=lambda pair: -abs(pair[1].mean)))


def say_chance(num_classes: int) -> str:
    """How many classes seem to differ clearly though none does."""
    count = f"{0.05 * num_classes:.1f} on average"
    return f"Of {num_classes} classes, {count} stand out by chance alone even if nothing differs."


def _format_classes(row: Row, names: list[str]) -> str:
    clear = find_clear(row, len(names))
    lines = wrap(f"{row.name}: {len(clear)} of {len(names)} classes differ clearly", WIDTH)
    for number in list(clear)[:MOST_CLASSES]:
        lines += [
            "  " + line
            for line in lay_out([names[number], format_difference(clear[number])], (60, 30))
        ]
    hidden = len(clear) - MOST_CLASSES
    return "\n".join(
        lines + ([f"  and {hidden} more; --html FILE shows all"] if hidden > 0 else [])
    )


def _fill(text: str) -> str:
    return "\n".join(wrap(text, WIDTH))


def format_csv(comparison: Comparison) -> str:
    """A line per run, so that every number of the table can be computed again.

    Columns: row, folder, seed, mIoU (0 to 1), differences from the baseline of the same seed (in
    points), seconds per epoch, every fact by its name, IoU of each class. Empty if there is none.
    """
    settings = sorted({name for row in comparison.rows for name in row.facts})
    ious = [f"iou {number} {name}" for number, name in enumerate(comparison.names)]
    columns = ["row", "folder", SEED, "best_miou", "best_epoch", "last_miou"]
    columns += ["best_points", "last_points", "baseline"]
    rows = [[*columns, "epoch_s", "encoding", *settings, *ious]]
    for row, run in comparison.runs:
        facts = [format_value(row.facts[name]) if name in row.facts else "" for name in settings]
        rows.append([*_list_numbers(row, run), run.epoch_s, row.encoding, *facts, *run.ious])
    return write_csv(rows)


def write_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV. Text that a spreadsheet would take for a formula gets an apostrophe before it.

    >>> write_csv([["=1+1", "-0.5", -0.5]])
    "'=1+1,-0.5,-0.5\\n"
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_quote(cell) for cell in row] for row in rows)
    return out.getvalue()


def _quote(cell: object) -> object:
    text = str(cell) if isinstance(cell, str | Path) else ""
    return f"'{text}" if text[:1] in _FORMULA and not _NUMBER.fullmatch(text) else cell


def _list_numbers(row: Row, run: Run) -> list[object]:
    base = next((base.folder for own, base in row.pairs if own is run), None)
    points = [row.differences(measure).get(run.seed) for measure in (best_miou, last_miou)]
    return [row.name, run.folder, run.seed, run.miou, run.best_epoch, run.last_miou, *points, base]


def measure_width(text: str) -> int:
    """Columns of a terminal that a text takes: wide letters take two."""
    return sum(_width(letter) for letter in text)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at spaces; a longer word is broken anywhere."""
    lines = [""]
    for word in escape_line(text).split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if measure_width(joined) <= width:
            lines[-1] = joined
        else:
            pieces = list(_cut(word, width))
            lines += pieces if lines[-1] else []
            lines = lines if lines[-1] else pieces
    return lines


def lay_out(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One row of a table as lines.

    Each cell is wrapped to its width, and its own line breaks are kept; cells are two spaces apart.
    """
    columns = [
        [line for part in cell.split("\n") for line in wrap(part, width)]
        for cell, width in zip(cells, widths, strict=True)
    ]
    lines = zip_longest(*columns, fillvalue="")
    return [
        "  ".join(_pad(part, width) for part, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _pad(text: str, width: int) -> str:
    return text + " " * (width - measure_width(text))


def _width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _cut(word: str, width: int) -> Iterator[str]:
    piece = ""
    for letter in word:
        if piece and measure_width(piece + letter) > width:
            yield piece
            piece = ""
        piece += letter
    yield piece
