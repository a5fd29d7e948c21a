"""The progress of a long job: a bar on a terminal, plain lines elsewhere, nothing in a library."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import Protocol, TextIO

from kdcache.errors import hide_passwords

LINE_EVERY_S = 10.0
Say = Callable[[str], None]  # takes text that a person should read, without its last line break
# codes that move the cursor, colour, or turn the direction of writing; and all line breaks
_CODES = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escape_line(text: object) -> str:
    """Text as one line: control codes and line breaks as Python writes them, no passwords.

    Names may come from anybody's cache, run or lease.

    >>> escape_line("a\\nb\\x1b[2J")
    'a\\\\nb\\\\x1b[2J'
    """
    return _CODES.sub(lambda code: repr(code[0])[1:-1], hide_passwords(str(text)))


def join_lines(lines: Iterable[object]) -> str:
    """Lines as one text; a name with a line break in it makes no new line."""
    return "\n".join(map(escape_line, lines))


def print_line(text: object, *, file: TextIO | None = None) -> None:
    """Print one line, whatever is in it; errors and warnings are always one."""
    print(escape_line(text), file=file or sys.stdout, flush=file is not None)


def print_text(text: str) -> None:
    """Print text of several lines without control codes; what builds it uses `join_lines`."""
    print(join_lines(text.split("\n")))


def format_table(
    title: object,
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    notes: Iterable[object] = (),
) -> str:
    """A table as HTML, for a notebook. All texts are escaped, and it fetches and runs nothing.

    It has no colours: so it takes those of the notebook, light or dark.

    Args:
        title: above the table. head: of each column. notes: a paragraph each, below.
    """

    def write(tag: str, texts: Iterable[object]) -> str:
        return "".join(f"<{tag}>{escape(escape_line(text))}</{tag}>" for text in texts)

    body = "".join(f"<tr>{write('th', row[:1])}{write('td', row[1:])}</tr>" for row in rows)
    top = f"{write('caption', [title])}<thead><tr>{write('th', head)}</tr></thead>"
    return f"<table>{top}<tbody>{body}</tbody></table>{write('p', notes)}"


@dataclass(frozen=True)
class Output:
    """How much a command says on stdout; warnings and errors go to stderr in any case.

    quiet: only its result. verbose: more of each epoch. json: only its result, as JSON.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    @property
    def progress(self) -> Progress:
        """Bars or lines, or nothing for --quiet and --json."""
        return Silent() if self.quiet or self.json else Console()

    def say(self, text: str) -> None:
        """Print what happens on the way."""
        if not (self.quiet or self.json):
            print_text(text)

    def tell(self, text: str) -> None:
        """Print a result, or a part of it, for people."""
        if not self.json:
            print_text(text)

    def conclude(self, document: Mapping) -> None:
        """Print the whole result as JSON, if that is asked for."""
        if self.json:
            print_text(json.dumps(document, indent=2))


class Bar(AbstractContextManager, Protocol):
    """One running job."""

    def advance(self, count: int, *, size_bytes: int = 0) -> None:
        """`count` more are done, `size_bytes` more were moved."""


class Progress(Protocol):
    """Makes bars."""

    def start(self, title: str, *, total: int | None, unit: str) -> Bar:
        """A bar for `total` (None: unknown) things."""


class Silent:
    """Shows nothing."""

    def start(self, title: str, *, total: int | None, unit: str) -> Bar:
        """A bar that is not shown."""
        return _SilentBar()


class Console:
    """Shows progress on a text stream: a bar with rate and time left on a terminal, else lines."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def start(self, title: str, *, total: int | None, unit: str) -> Bar:
        """A bar that is shown, unless `total` is 0."""
        if total == 0:
            return _SilentBar()
        kind = _TerminalBar if self.stream.isatty() else _PlainBar
        return kind(title, total, unit, self.stream)


class _SilentBar:
    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def advance(self, count: int, *, size_bytes: int = 0) -> None:
        pass


class _PlainBar(_SilentBar):
    """One line at the end and every 10 s, the last once."""

    def __init__(self, title: str, total: int | None, unit: str, stream: TextIO) -> None:
        self.title, self.total, self.unit, self.stream = title, total, unit, stream
        self.done, self.size_bytes = 0, 0
        self.began_s = self.shown_s = time.monotonic()

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if kind is None:
            self._show()

    def advance(self, count: int, *, size_bytes: int = 0) -> None:
        self.done += count
        self.size_bytes += size_bytes
        if time.monotonic() - self.shown_s >= LINE_EVERY_S and self.done != self.total:
            self._show()

    def _show(self) -> None:
        self.shown_s = time.monotonic()
        took_s = max(self.shown_s - self.began_s, 1e-9)
        line = format_rate(self.done, self.total, self.unit, self.size_bytes, took_s)
        if self.total and 0 < self.done < self.total:
            line += f", {(self.total - self.done) * took_s / self.done:.0f} s left"
        print_line(f"{self.title}: {line}", file=self.stream)


class _TerminalBar(_SilentBar):
    """A bar of rich with count, rate and time left, which goes when the job ends."""

    def __init__(self, title: str, total: int | None, unit: str, stream: TextIO) -> None:
        from rich.console import Console as Terminal  # here: only a terminal needs it
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.unit, self.done, self.size_bytes = unit, 0, 0
        self.began_s = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.fields[at]}", markup=False), TimeRemainingColumn(),
            console=Terminal(file=stream), transient=True,
            redirect_stdout=sys.stdout.isatty(),  # a file or a pipe stays what it is
        )  # fmt: skip
        self.task = self.bar.add_task(escape_line(title), total=total, at="")

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def advance(self, count: int, *, size_bytes: int = 0) -> None:
        self.done += count
        self.size_bytes += size_bytes
        took_s = max(time.monotonic() - self.began_s, 1e-9)
        at = format_rate(self.done, self.bar.tasks[0].total, self.unit, self.size_bytes, took_s)
        self.bar.update(self.task, advance=count, at=at)


def format_rate(done: int, total: float | None, unit: str, size_bytes: int, took_s: float) -> str:
    """How far a job is, and how fast.

    >>> format_rate(3, 12, "samples", 6_000_000, 2.0)
    '3/12 samples, 1.5 samples/s, 3.0 MB/s'
    """
    of = f"/{total:.0f}" if total is not None else ""
    moved = f", {size_bytes / 1e6 / took_s:.1f} MB/s" if size_bytes else ""
    return f"{done}{of} {unit}, {done / took_s:.1f} {unit}/s{moved}"


def format_bytes(count: float) -> str:
    """A size in words: 1234567 -> 1.23 MB; units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 999.5 else f"{count:.0f} TB"


def format_time(time_s: float) -> str:
    """A duration in words: milliseconds below 1 s, then seconds, minutes, hours."""
    if time_s < 0.9995:
        return f"{1000 * time_s:.3g} ms"
    if time_s < 99.5:
        return f"{time_s:.3g} s"
    return f"{time_s / 60:.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"
