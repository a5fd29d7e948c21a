"""Options that a command has beside the settings: `--name VALUE` or `--name=VALUE`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from kdcache.checks import refuse

LEAST, MOST = 0.001, 1_000_000_000  # of a number with a unit


def take_options(argv: list[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Those of `names` that are given, and the other words."""
    options, words, rest = {}, [], iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in names:
            options[name] = value if equals else next(rest, "")
        else:
            words.append(word)
    return options, words


def read_count(options: Mapping[str, str], name: str, *, least: int) -> int:
    """A whole number. Raises SettingsError."""
    value = options[name]
    if not value.isdecimal() or not least <= int(value) < 2**31:
        raise refuse(name, value, f"a whole number, {least} or more")
    return int(value)


def read_number(options: Mapping[str, str], name: str) -> float | None:
    """A number above 0; None where the option is not given. Raises SettingsError."""
    if name not in options:
        return None
    with suppress(ValueError):
        if LEAST <= (number := float(options[name])) <= MOST:
            return number
    raise refuse(name, options[name], f"a number from {LEAST} to {MOST}")
