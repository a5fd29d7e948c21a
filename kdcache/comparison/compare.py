"""From folders to a comparison that can be believed, or to a refusal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcache.comparison.finding import find_runs
from kdcache.comparison.naming import name_rows
from kdcache.comparison.rows import Row, build_rows
from kdcache.comparison.runs import Run
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
