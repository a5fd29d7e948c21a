"""What the teacher calls each class, as HTML: another order of classes, or weights of another data set, show here at once.

Letters: K classes.
"""

from __future__ import annotations

from html import escape

import numpy as np

from kdcache.report.pictures import heat_map_uri
from kdcache.report.tables import draw_swatch, shorten

MOST_OPEN = 40  # classes; a longer table is folded up
MOST_NAMED = 12  # classes that are named above the table


def find_called(confusion_KK: np.ndarray) -> list[int | None]:
    """What the teacher calls most pixels of each label, the label itself where others have no more; None without pixels."""
    called = []
    for number, counts in enumerate(confusion_KK):
        most = int(counts.argmax())
        called.append(
            None if not counts.any() else number if counts[number] == counts[most] else most
        )
    return called


def find_misnamed(confusion_KK: np.ndarray) -> list[int]:
    """Labels most of whose pixels the teacher gives one other class."""
    return [
        number
        for number, most in enumerate(find_called(confusion_KK))
        if most not in (None, number)
    ]


def is_exchanged(confusion_KK: np.ndarray) -> bool:
    """Whether several labels have others' names, and no two the same."""
    called = [most for most in find_called(confusion_KK) if most is not None]
    return len(find_misnamed(confusion_KK)) > 1 and len(set(called)) == len(called)


def draw_summary(names: list[str], confusion_KK: np.ndarray) -> str:
    """A verdict in words, the confusion as a picture, a row a class.

    Args:
        confusion_KK: pixels of each label (row) by what the teacher calls them.
    """
    matrix = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    picture = f'<img class="confusion" alt="confusion of teacher and labels" src="{heat_map_uri(matrix, most=1.0)}">'
    opened = " open" if len(names) <= MOST_OPEN else ""
    return (
        f"<section><h2>What the teacher calls each class</h2>{_draw_verdict(names, confusion_KK)}"
        f'<div class="called"><figure>{picture}<figcaption>From top to bottom the labels, from left to right what the teacher '
        "calls them, in the order of the classes; a row's shares from dark, 0, to light, 1. Right answers are on the diagonal: "
        "a line beside it is another order of the classes.</figcaption></figure>"
        f"<details{opened}><summary>{len(names)} classes</summary>{_draw_table(names, confusion_KK)}</details></div></section>"
    )


def _draw_verdict(names: list[str], confusion_KK: np.ndarray) -> str:
    misnamed, called = find_misnamed(confusion_KK), find_called(confusion_KK)
    num_there = len(called) - called.count(None)
    if not misnamed:
        return f"<p>The teacher calls each of the {num_there} labelled classes mostly by its own name.</p>"
    listed = "; ".join(
        f"<bdi>{escape(shorten(names[k]))}</bdi> → <bdi>{escape(shorten(names[called[k]]))}</bdi>"
        for k in misnamed[:MOST_NAMED]
    )
    more = f"; and {len(misnamed) - MOST_NAMED} more" if len(misnamed) > MOST_NAMED else ""
    advice = (
        "Each is called by one name of its own: labels and teacher have their classes in different orders. "
        "See dataset.class_names, the numbers in the labels and teacher.weights."
        if is_exchanged(confusion_KK)
        else "Small, rare classes may well be; where large ones are, the teacher has not learned them, or not from such labels."
    )
    return (
        f'<p class="warn"><b>{len(misnamed)} of {num_there} labelled classes mostly called something else</b>: '
        f"{listed}{more}. {advice}</p>"
    )


def _draw_table(names: list[str], confusion_KK: np.ndarray) -> str:
    titles = ("class", "% of labels", "% of answers", "% right", "mostly called")
    called = find_called(confusion_KK)
    rows = "".join(
        _draw_row(number, most, names, confusion_KK) for number, most in enumerate(called)
    )
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<table class="classes"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _draw_row(number: int, most: int | None, names: list[str], confusion_KK: np.ndarray) -> str:
    total = max(int(confusion_KK.sum()), 1)
    labels, answers = int(confusion_KK[number].sum()), int(confusion_KK[:, number].sum())
    if most is None:
        right, mostly = "-", "-"
    else:
        right, mostly = (
            f"{100 * confusion_KK[number, number] / labels:.1f}",
            _draw_name(names, most),
        )
        mostly += f", {100 * confusion_KK[number, most] / labels:.1f} %"
    mark = ' class="warn"' if most not in (None, number) else ""
    wrong = "≠ " if mark else ""
    return (
        f"<tr{mark}><th>{_draw_name(names, number)}</th><td>{100 * labels / total:.1f}</td><td>{100 * answers / total:.1f}</td>"
        f"<td>{right}</td><td>{wrong}{mostly}</td></tr>"
    )


def _draw_name(names: list[str], number: int) -> str:
    return f"{draw_swatch(number)}<bdi>{escape(shorten(names[number]))}</bdi>"
