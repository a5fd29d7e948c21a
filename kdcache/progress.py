"""The progress of a long job: a bar on a terminal, plain lines elsewhere, nothing in a library."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
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
        rate = self.done / took_s
        of = f"/{self.total}" if self.total is not None else ""
        line = f"{self.title}: {self.done}{of} {self.unit}, {rate:.1f} {self.unit}/s"
        if self.size_bytes:
            line += f", {self.size_bytes / 1e6 / took_s:.1f} MB/s"
        if self.total and 0 < self.done < self.total:
            line += f", {(self.total - self.done) / rate:.0f} s left"
        print_line(line, file=self.stream)


class _TerminalBar(_SilentBar):
    """tqdm's bar, with MB/s behind it."""

    def __init__(self, title: str, total: int | None, unit: str, stream: TextIO) -> None:
        from tqdm import tqdm  # here: only a terminal needs it

        self.bar = tqdm(total=total, desc=title, unit=f" {unit}", file=stream, dynamic_ncols=True)
        self.size_bytes, self.began_s = 0, time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def advance(self, count: int, *, size_bytes: int = 0) -> None:
        self.size_bytes += size_bytes
        if self.size_bytes:
            rate = self.size_bytes / 1e6 / max(time.monotonic() - self.began_s, 1e-9)
            self.bar.set_postfix_str(f"{rate:.1f} MB/s", refresh=False)
        self.bar.update(count)


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
