"""Text in columns of a terminal, where some letters are two places wide."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest


def measure_width(text: str) -> int:
    """Places the text takes."""
    return sum(_width(letter) for letter in text)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` places, broken at spaces, a longer word anywhere; nothing is left out."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if measure_width(joined) <= width:
            lines[-1] = joined
        else:
            pieces = list(_cut(word, width))
            lines += pieces if lines[-1] else []
            lines = lines if lines[-1] else pieces
    return lines


def lay_out(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One row of a table as lines: each cell wrapped to its width, its own line breaks kept; columns two spaces apart."""
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
