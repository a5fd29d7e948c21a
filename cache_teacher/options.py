"""Options of a command that are no settings, since no cache depends on them: `--samples 32` among `--SECTION.NAME VALUE`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from kdcache.errors import refuse

LEAST, MOST = 0.001, 1_000_000_000  # of a number with a unit


def take_options(
    argv: list[str], known: Mapping[str, str | None]
) -> tuple[dict[str, str | None], list[str]]:
    """The options, `--name VALUE` or `--name=VALUE`, and the other words.

    Args:
        known: option -> its value where it is not given.
    """
    options, words, rest = dict(known), [], iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in known:
            options[name] = value if equals else next(rest, "")
        else:
            words.append(word)
    return options, words


def read_count(options: Mapping[str, str | None], name: str, *, least: int) -> int:
    """The value of an option that is a number. Raises SettingsError."""
    value = options[name]
    if not value.isdecimal() or not least <= int(value) < 2**31:
        raise refuse(name, value, f"a whole number, {least} or more")
    return int(value)


def read_number(options: Mapping[str, str | None], name: str) -> float | None:
    """The value of an option that is a number with a unit; None where it is not given. Raises SettingsError."""
    value = options[name]
    if value is None:
        return None
    with suppress(ValueError):
        if LEAST <= (number := float(value)) <= MOST:
            return number
    raise refuse(name, value, f"a number from {LEAST} to {MOST}")
