"""What the fields of a document must be: kinds, declared as tables and checked where it is read.

A kind is a function of a value that raises FieldError. Documents are JSON, or plain values beside
tensors in a checkpoint; they may be anybody's, so every range is closed: a number is finite, a
whole number has 64 bits, a text has a largest length.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping

from kdcache.errors import show_value

Kind = Callable[[object], None]
MOST_FLOAT, MOST_WHOLE = 1.7e308, 2**63 - 1
MOST_TEXT = 100_000  # characters: a list of 254 class names is a tenth of that
MOST_DEPTH, MOST_VALUES = 64, 1_000_000  # of values whose names are not known


class FieldError(ValueError):
    """A field is not what its document promises; the message does not name the document.

    what: is wrong, as in "is -1, expected 0 or more". place: of the field, as in "views[3].flip".
    """

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(f"{place or 'content'} {what}")
        self.what, self.place = what, place

    def inside(self, outer: str) -> FieldError:
        """The same error, of a field inside the field `outer`."""
        dot = "." if self.place and not self.place.startswith("[") else ""
        return FieldError(self.what, f"{outer}{dot}{self.place}")


def parse_json(text: str | bytes) -> object:
    """Read JSON strictly: numbers are finite, as they are when written.

    Raises: ValueError for anything else; RecursionError if it is nested too deeply.
    """
    text = text.decode() if isinstance(text, bytes) else text
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_read_float)


def number(least: float = -MOST_FLOAT, most: float = MOST_FLOAT) -> Kind:
    """A finite number from `least` to `most`, whole or not."""

    def check(value: object) -> None:
        if type(value) not in (int, float) or not least <= value <= most:  # also refuses NaN
            raise _refuse(value, f"a finite number{_bounds(least, most)}")

    return check


def whole(least: int = 0, most: int = MOST_WHOLE) -> Kind:
    """A whole number from `least` to `most`."""

    def check(value: object) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _refuse(value, f"a whole number{_bounds(least, most)}")

    return check


def text(form: str | None = None) -> Kind:
    """Text as files and names of files can hold it, of a form (a regular expression) if one is
    given.
    """

    def check(value: object) -> None:
        fits = isinstance(value, str) and len(value) <= MOST_TEXT and is_writable(value)
        if not fits or (form is not None and not re.fullmatch(form, value)):
            raise _refuse(value, "text" if form is None else f"text like {form}")

    return check


def is_writable(value: str) -> bool:
    """Whether a system takes a text: no zero byte, no half of a character.

    Bytes of a path that are no text are kept as Python keeps them, as U+DC80 to U+DCFF.
    """
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def flag(value: object) -> None:
    """True or false."""
    if type(value) is not bool:
        raise _refuse(value, "true or false")


def plain(value: object) -> None:
    """Anything that JSON can hold, without bounds of its own: settings, facts that are compared."""
    pending, count = [(value, 0)], 0
    while pending:
        one, depth = pending.pop()
        count += 1
        if depth > MOST_DEPTH or count > MOST_VALUES:
            raise FieldError("is nested or filled beyond any use")
        if isinstance(one, dict):
            _check_names(one)
            pending += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list | tuple):
            pending += [(inner, depth + 1) for inner in one]
        else:
            _check_leaf(one)


def all_of(*kinds: Kind) -> Kind:
    """What all of these kinds take."""

    def check(value: object) -> None:
        for kind in kinds:
            kind(value)

    return check


def maybe(kind: Kind) -> Kind:
    """The kind, or null."""
    return lambda value: None if value is None else kind(value)


def list_of(kind: Kind, *, least: int = 0, most: int = MOST_VALUES) -> Kind:
    """A list of `least` to `most` values of one kind."""

    def check(value: object) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise _refuse(value, f"a list{_bounds(least, most)} values")
        place = 0
        try:
            for place, one in enumerate(value):  # noqa: B007  for the message
                kind(one)
        except FieldError as error:
            raise error.inside(f"[{place}]") from None

    return check


def table_of(kind: Kind) -> Kind:
    """Any names, each with a value of one kind."""

    def check(value: object) -> None:
        _check_names(value)
        name = ""
        try:
            for name, inner in value.items():  # noqa: B007  for the message
                kind(inner)
        except FieldError as error:
            raise error.inside(name[:60]) from None

    return check


def fields(required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None) -> Kind:
    """These names, each with its kind; other names are those of other versions, and not read."""
    others = optional or {}

    def check(value: object) -> None:
        if not isinstance(value, dict):
            raise _refuse(value, "names with values")
        name = next((name for name in required if name not in value), None)
        if name is not None:
            raise FieldError("is missing", name)
        try:
            for name, kind in required.items():
                kind(value[name])
            for name in [name for name in others if name in value]:
                others[name](value[name])
        except FieldError as error:
            raise error.inside(name) from None

    return check


def _check_leaf(value: object) -> None:
    if isinstance(value, str):
        text()(value)
    elif type(value) is int:
        whole(-MOST_WHOLE - 1)(value)
    elif type(value) is float:
        number()(value)
    elif value is not None and type(value) is not bool:
        raise _refuse(value, "text, a number, true, false, null, a list or names with values")


def _check_names(value: object) -> None:
    named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if not named or not all(map(is_writable, value)):
        raise _refuse(value, "names with values")


def _bounds(least: float, most: float) -> str:
    if most in (MOST_FLOAT, MOST_WHOLE, MOST_VALUES):
        return "" if least in (-MOST_FLOAT, -MOST_WHOLE - 1) else f" of {least:g} or more"
    return f" of {least:g}" if least == most else f" of {least:g} to {most:g}"


def _refuse(value: object, expected: str) -> FieldError:
    return FieldError(f"is {show_value(value)}, expected {expected}")


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is no number of JSON")


def _read_float(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word[:40]} is too large a number")
    return value
