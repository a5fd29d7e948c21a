"""How the pages read: `python -m tests.reading`, part of `make lint`.

It prints lines, columns and Flesch's reading ease of README.md and each page of docs/, and ends
with 1 if one misses a goal. Code and tables do not count for the ease, nor for the columns of a
page of docs/; what stands in `backticks` counts as a word of one syllable.
"""

from __future__ import annotations

import re
import sys

import textstat

from tests.support.pages import GUIDES, ROOT, leave_out_code, read

README = ROOT / "README.md"
MOST_LINES, MOST_COLUMNS, LEAST_EASE = 150, 100, 50.0


def main() -> int:
    """Print the figures; 1 if a page misses one."""
    faults = []
    for page in GUIDES:
        text = read(page)
        lines, width, ease = len(text.splitlines()), measure_width(text), measure_ease(text)
        if page == README:
            width = max(map(len, text.splitlines()))
            faults += [f"README.md has {lines} lines"] * (lines > MOST_LINES)
        faults += [f"{page.name} is {width} columns wide"] * (width > MOST_COLUMNS)
        faults += [f"{page.name} reads too hard"] * (ease < LEAST_EASE)
        print(f"{page.name:<20} {lines:>4} lines, {width:>3} columns, reading ease {ease:.1f}")
    print(f"README.md has at most {MOST_LINES} lines, pages {MOST_COLUMNS} columns", end=" ")
    print(f"and a reading ease of {LEAST_EASE:.0f} or more", *faults, sep="\n")
    return int(bool(faults))


def measure_width(text: str) -> int:
    """The longest line outside of code and tables."""
    return max(len(line) for line in leave_out_code(text).splitlines() if line[:1] != "|")


def measure_ease(text: str) -> float:
    """Flesch's reading ease of a page's sentences: 100 is very easy, 0 is very hard."""
    return textstat.textstat.flesch_reading_ease(find_prose(text))


def find_prose(text: str) -> str:
    """The sentences of a page, a block a line; headings and items of lists end a sentence."""
    text = re.sub(r"^(\||!\[).*$", "", leave_out_code(text), flags=re.MULTILINE)
    text = re.sub(r"^#+ (.*)$", r"\n\1\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]+`", "word", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    sentences = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        words = re.sub(r"[*_]+|^\s*(?:[-*]|\d+\.) ", " ", block)
        words = " ".join(words.split()).rstrip(":;")
        if words:
            sentences.append(words if words[-1] in ".!?" else f"{words}.")
    return "\n".join(sentences)


if __name__ == "__main__":
    sys.exit(main())
