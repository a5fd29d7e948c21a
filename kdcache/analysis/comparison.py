"""From folders to a comparison that can be believed, or to a refusal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from kdcache.analysis.rows import Row, build_rows
from kdcache.analysis.runs import CACHE, TEACHING, Run, find_runs
from kdcache.errors import Phrase, SettingsError, describe

log = logging.getLogger("kdcache")


@dataclass(frozen=True)
class Comparison:
    """Rows, baselines first.

    Args:
        names: of the classes.
        left_out: a line for each folder that is not compared.
        validation: identity of the validation data that all runs were measured on; None: the runs do not say.
    """

    rows: list[Row]
    names: list[str]
    left_out: list[str]
    validation: str | None

    @property
    def runs(self) -> list[tuple[Row, Run]]:
        """All that are compared, with their rows; by seed."""
        return [(row, row.runs[seed]) for row in self.rows for seed in sorted(row.runs)]

    @property
    def compared(self) -> list[Row]:
        """The rows that have a baseline."""
        return [row for row in self.rows if row.pairs]


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Compare the finished runs in `paths`, run folders or folders that hold some; what is left out is warned of.

    Raises: SettingsError where there is none, and for runs that were measured on different validation data.
    """
    runs, left_out = find_runs(paths)
    runs, unknown = _keep_known(runs)
    rows, repeated = build_rows(runs)
    left_out += unknown + repeated
    for line in left_out:
        log.warning("left out: %s", line)
    _check_any(runs, paths)
    check_validation(runs)
    return Comparison(name_rows(rows), runs[0].names, left_out, runs[0].validation)


def _check_any(runs: list[Run], paths: Sequence[Path]) -> None:
    if not runs:
        where, found, expected = ", ".join(map(str, paths)), Phrase("none"), Phrase("one or more")
        cure = "give folders of runs with a result.json"
        raise SettingsError(
            describe(where, field="finished runs", found=found, expected=expected, cure=cure)
        )


def check_validation(runs: list[Run]) -> None:
    """Raises SettingsError unless all runs were measured on the same images and labels."""
    first = runs[0]
    for run in runs:
        where, cure = (
            run.folder,
            f"compare runs of the same validation images, labels and size, as {first.folder}",
        )
        if run.validation != first.validation:
            found, expected = run.validation[:12], first.validation[:12]
            raise SettingsError(
                describe(where, field="validation data", found=found, expected=expected, cure=cure)
            )
        if len(run.ious) != len(first.ious):
            found, expected = len(run.ious), len(first.ious)
            raise SettingsError(
                describe(
                    where, field="number of classes", found=found, expected=expected, cure=cure
                )
            )


def _keep_known(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Runs of an older kdcache, which do not say what they were measured on, are compared with their like alone."""
    known = [run for run in runs if run.validation is not None]
    unknown = [run for run in runs if run.validation is None] if known else []
    why = "validation data is unknown (an older kdcache trained it), and that of other runs is not; train it again"
    return known or runs, [f"{run.folder}: {why}" for run in unknown]


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
