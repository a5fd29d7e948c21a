"""Rows are named by what differs between them; the rest is said once for all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from operator import itemgetter

from kdcache.comparison.rows import Row
from kdcache.comparison.runs import CACHE, TEACHING


def name_rows(rows: list[Row]) -> list[Row]:
    """Give each row its name; returns them with baselines first, then by the values of what differs."""
    varied = find_varied(rows)
    for row in rows:
        names = [
            name for name in varied if name in row.facts and (row.teaches or name not in TEACHING)
        ]
        if row.teaches:
            names = names or list(TEACHING)
        words = [format_fact(name, row) for name in names]
        row.name = ", ".join(words if row.teaches else ["baseline", *words])
    return sorted(
        rows, key=lambda row: (row.teaches, [_order(row.facts.get(name)) for name in varied])
    )


def find_varied(rows: Iterable[Row]) -> list[str]:
    """Names of the facts that two rows have with different values, those of the loss first."""
    differing = [
        name
        for name, values in _list_values(rows).items()
        if any(value != values[0] for value in values)
    ]
    return sorted(differing, key=lambda name: (not name.startswith("loss."), name))


def list_shared(rows: list[Row]) -> list[str]:
    """`name value` of the facts that are the same in all rows that have them."""
    varied, first = find_varied(rows), {}
    for row in rows:
        for name in row.facts:
            first.setdefault(name, row)
    return [
        format_fact(name, row)
        for name, row in sorted(first.items(), key=itemgetter(0))
        if name not in varied
    ]


def list_beyond_loss(rows: list[Row]) -> dict[str, list[str]]:
    """name -> its values, as text, of each fact but the loss's in which rows differ."""
    names = [name for name in find_varied(rows) if not name.startswith("loss.")]
    return {
        name: list(dict.fromkeys(_say(name, row) for row in rows if name in row.facts))
        for name in names
    }


def format_fact(name: str, row: Row) -> str:
    """`loss.beta 0.5`."""
    return f"{name} {_say(name, row)}"


def _list_values(rows: Iterable[Row]) -> dict[str, list]:
    values: dict[str, list] = {}
    for row in rows:
        for name, value in row.facts.items():
            values.setdefault(name, []).append(value)
    return values


def _say(name: str, row: Row) -> str:
    said = format_value(row.facts[name])
    return f"{said} ({row.encoding})" if name == CACHE and row.encoding else said


def format_value(value: object) -> str:
    """Short and exact; of a hash the first 12 digits."""
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(format_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _order(value: object) -> tuple:
    """Numbers as numbers, before words."""
    is_number = isinstance(value, int | float)
    return (not is_number, value if is_number else 0, format_value(value))
