"""Which classes are taken for which: a heat map where there is room for one, and the pairs that are confused most, as HTML.

Letters: K classes.
"""

from __future__ import annotations

from bisect import bisect_right
from html import escape

import numpy as np

from kdcache.report.finished import Finished
from kdcache.report.tables import draw_grid, draw_swatch, shorten

# On a page of 1240 px a cell of 40 classes has 26 px, the width of two digits and their margins; on a telephone of 390 px
# one of 12 classes has 20.
MOST_CLASSES = 40
MOST_NUMBERED_ON_PHONE = 12
MOST_PAIRS = 20
TINTS = (
    0.0,
    0.005,
    0.02,
    0.05,
    0.15,
    0.4,
    0.7,
)  # shares above which a cell has tint 1, 2, ... 7 (`style.TINTS_PERCENT`)


def draw_confusion(names: list[str], student: Finished, baseline: Finished | None) -> str:
    """The section, or nothing where the student's confusion is not kept."""
    if student.confusion_KK is None:
        return ""
    shares = normalize_rows(student.confusion_KK)
    matrix = _draw_matrix(names, shares) if len(names) <= MOST_CLASSES else ""
    return (
        f'<section><h2>What is taken for what</h2><p class="soft">The student at its best epoch, on val.</p>{matrix}'
        f"{_draw_pairs(names, student.confusion_KK, baseline)}</section>"
    )


def normalize_rows(confusion_KK: np.ndarray) -> np.ndarray:
    """Shares of each label's pixels, float64 [K, K], 0 to 1; NaN for a label without pixels."""
    pixels = confusion_KK.sum(1, keepdims=True)
    return np.divide(
        confusion_KK, pixels, out=np.full(confusion_KK.shape, np.nan), where=pixels > 0
    )


def find_most_confused(shares_KK: np.ndarray, most: int) -> list[tuple[int, int]]:
    """At most `most` pairs (label, called) in falling share of the label's pixels, none of share 0; equal ones by number."""
    wrong = np.where(np.eye(len(shares_KK), dtype=bool), 0.0, np.nan_to_num(shares_KK))
    falling = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = (divmod(int(place), len(wrong)) for place in falling)
    return [pair for pair in pairs if wrong[pair] > 0]


def _draw_matrix(names: list[str], shares_KK: np.ndarray) -> str:
    heads = "".join(
        f"<th><span>{draw_swatch(k)}{escape(shorten(name))}</span></th>"
        for k, name in enumerate(names)
    )
    rows = "".join(_draw_row(label, names, shares) for label, shares in enumerate(shares_KK))
    many = " many" if len(names) > MOST_NUMBERED_ON_PHONE else ""
    return (
        '<p class="soft">A row is a label: so many % of its pixels are called the class of each column.</p>'
        f'<table class="matrix{many}"><thead><tr><th>label / called</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _draw_row(label: int, names: list[str], shares_K: np.ndarray) -> str:
    cells = "".join(
        _draw_cell(label, called, names, share) for called, share in enumerate(shares_K)
    )
    return (
        f"<tr><th><span>{draw_swatch(label)}{escape(shorten(names[label]))}</span></th>{cells}</tr>"
    )


def _draw_cell(label: int, called: int, names: list[str], share: float) -> str:
    if not share > 0:  # NaN: no such pixel
        return "<td></td>"
    kind = "right" if label == called else "wrong"
    title = escape(f"{shorten(names[label])} called {shorten(names[called])}: {100 * share:.2f} %")
    number = f"{100 * share:.0f}" if share >= 0.005 else ""
    return f'<td class="{kind} tint{bisect_right(TINTS, share)}" title="{title}">{number}</td>'


def _draw_pairs(names: list[str], confusion_KK: np.ndarray, baseline: Finished | None) -> str:
    """A row a pair: label, what it is called, shares."""
    shares, wrong = normalize_rows(confusion_KK), confusion_KK.sum() - confusion_KK.trace()
    pairs = find_most_confused(shares, MOST_PAIRS)
    if not pairs:
        return '<p class="soft">No pixel is called another class than its label.</p>'
    compared = baseline is not None and baseline.confusion_KK is not None
    before = normalize_rows(baseline.confusion_KK) if compared else None
    rows = [
        [
            [(names[label], label), (names[called], called)],
            f"{100 * shares[label, called]:.1f}",
            *([f"{100 * before[label, called]:.1f}"] if compared else []),
            f"{100 * confusion_KK[label, called] / wrong:.1f}",
        ]
        for label, called in pairs
    ]
    titles = [
        "label → called",
        "% of the label",
        *(["baseline"] if compared else []),
        "% of all errors",
    ]
    return f"<h3>Most confused</h3>{draw_grid(titles, rows, kind='pairs')}"
