"""Comparison of finished runs: from folders to named rows of runs that differ only in the seed,
each with its baseline, or to a refusal.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kdcache.analysis.runs import (
    CACHE,
    SHARE,
    Estimate,
    Measure,
    Run,
    best_miou,
    estimate,
    find_runs,
    format_difference,
    format_estimate,
    read_encoding,
)
from kdcache.config.names import IDLE_SHARE
from kdcache.errors import Phrase, SettingsError, describe
from kdcache.progress import format_table
from kdcache.training.run_folder import TEACHING

log = logging.getLogger("kdcache")


@dataclass
class Row:
    """Runs by seed, all with the same `facts`.

    baseline: the row with the same settings but without the teacher, if there is one.
    """

    facts: dict
    runs: dict[int, Run] = field(default_factory=dict)
    baseline: Row | None = None
    name: str = ""

    @property
    def uses_teacher(self) -> bool:
        """False for a baseline."""
        return any(run.uses_teacher for run in self.runs.values())

    @cached_property
    def pairs(self) -> list[tuple[Run, Run]]:
        """(run, its baseline) for each seed that both rows have."""
        other = self.baseline.runs if self.baseline else {}
        return [(run, other[seed]) for seed, run in sorted(self.runs.items()) if seed in other]

    def estimate(self, measure: Measure) -> Estimate | None:
        """The measure over the seeds; None if no run has it."""
        values = [value for run in self.runs.values() if (value := measure(run)) is not None]
        return estimate(values) if values else None

    def differences(self, measure: Measure) -> dict[int, float]:
        """Seed -> run minus baseline, in points (hundredths of the measure), if both have it."""
        measured = [(run.seed, measure(run), measure(base)) for run, base in self.pairs]
        return {seed: 100 * (a - b) for seed, a, b in measured if a is not None and b is not None}

    def difference(self, measure: Measure) -> Estimate | None:
        """The differences over the seeds; None without a pair."""
        values = self.differences(measure).values()
        return estimate(values) if values else None

    def paired_means(self, measure: Measure) -> tuple[float, float] | None:
        """Means of row and baseline over the seeds of `differences`; None without a pair."""
        measured = [(measure(run), measure(base)) for run, base in self.pairs]
        both = [pair for pair in measured if None not in pair]
        return tuple(map(statistics.fmean, zip(*both, strict=True))) if both else None

    @cached_property
    def encoding(self) -> str | None:
        """The encoding of the cache all runs share; None for a baseline, which may share any."""
        found = (read_encoding(run.folder) for run in self.runs.values() if self.uses_teacher)
        return next(filter(None, found), None)

    @property
    def epoch_s(self) -> float | None:
        """Median seconds of an epoch over the runs; None if no run says it."""
        times = [run.epoch_s for run in self.runs.values() if run.epoch_s is not None]
        return statistics.median(times) if times else None


@dataclass(frozen=True)
class Comparison:
    """Rows, baselines first.

    names: of the classes. left_out: a line for each folder that is not compared. validation:
    identity of the validation data of all runs; None if the runs do not say.
    """

    rows: list[Row]
    names: list[str]
    left_out: list[str]
    validation: str | None

    @property
    def runs(self) -> list[tuple[Row, Run]]:
        """All compared runs with their rows, sorted by row and seed."""
        return [(row, row.runs[seed]) for row in self.rows for seed in sorted(row.runs)]

    @property
    def compared(self) -> list[Row]:
        """The rows that have a baseline."""
        return [row for row in self.rows if row.pairs]

    def _repr_html_(self) -> str:
        head = ("runs", "seeds", "mIoU on val", "gain over baseline, points [95 %]", "pairs")
        rows = []
        for row in self.rows:
            miou, gain = row.estimate(best_miou), row.difference(best_miou)
            text = format_difference(gain) if gain else "-"
            rows.append([row.name, len(row.runs), format_estimate(miou), text, len(row.pairs)])
        notes = [f"left out: {line}" for line in self.left_out]
        return format_table("runs compared, at the best epoch", head, rows, notes=notes)


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Compare the finished runs in `paths`: run folders, or folders of runs.

    Warns of what is left out. Raises SettingsError if no run is found, or if runs were measured on
    different validation data.
    """
    runs, left_out = find_runs(paths)
    runs, unknown = _keep_known(runs)
    rows, repeated = build_rows(runs)
    left_out += unknown + repeated
    for line in left_out:
        log.warning("left out: %s", line)
    if not runs:
        where, found, expected = ", ".join(map(str, paths)), Phrase("none"), Phrase("one or more")
        cure = "give folders of runs with a result.json"
        raise SettingsError(
            describe(where, field="finished runs", found=found, expected=expected, cure=cure)
        )
    check_validation(runs)
    return Comparison(name_rows(rows), runs[0].names, left_out, runs[0].validation)


def check_validation(runs: list[Run]) -> None:
    """Raise SettingsError unless all runs were measured on the same images and labels."""
    first = runs[0]
    cure = f"compare runs of the same validation images, labels and size, as {first.folder}"
    for run in runs:
        field, found, expected = "", None, None
        if run.validation != first.validation:
            field = "validation data"
            found, expected = run.validation[:12], first.validation[:12]
        elif len(run.ious) != len(first.ious):
            field, found, expected = "number of classes", len(run.ious), len(first.ious)
        if field:
            raise SettingsError(
                describe(run.folder, field=field, found=found, expected=expected, cure=cure)
            )


def _keep_known(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Leave out runs that do not name their validation data, unless none does.

    Those are runs of an older kdcache; they are only compared with each other.
    """
    known = [run for run in runs if run.validation is not None]
    unknown = [run for run in runs if run.validation is None] if known else []
    why = "validation data is unknown (an older kdcache trained it), and that of other runs is not"
    return known or runs, [f"{run.folder}: {why}; train it again" for run in unknown]


def build_rows(runs: Iterable[Run]) -> tuple[list[Row], list[str]]:
    """Rows with their baselines.

    Returns: the rows, and a line for each run that repeats another's settings and seed: a seed
        counts once.
    """
    rows, repeated = [], []
    for run in runs:
        row = next((row for row in rows if row.facts == run.facts), None)
        if row is None:
            row = Row(run.facts)
            rows.append(row)
        first = row.runs.setdefault(run.seed, run)
        if first is not run:
            repeated.append(
                f"{run.folder}: settings and seed are those of {first.folder}, which has mIoU "
                f"{first.miou:.4f}, this one {run.miou:.4f}; only that one is counted"
            )
    for row in rows:
        row.baseline = _find_baseline(row, rows)
    return rows, repeated


def _find_baseline(row: Row, rows: list[Row]) -> Row | None:
    """The baseline with the same settings.

    None if there is none, or several: a run of an older kdcache does not name its images, and may
    fit baselines on different ones.
    """
    wanted = _without_teacher(row.facts)
    plain = [other for other in rows if not other.uses_teacher]
    fitting = [other for other in plain if {**other.facts, **wanted} == other.facts]
    return fitting[0] if row.uses_teacher and len(fitting) == 1 else None


def _without_teacher(facts: dict) -> dict:
    """The facts of the baseline that `kdcache.training.distill.baseline_config` makes of a run."""
    idle = {"loss.temperature", "loss.pseudo_threshold", "cache.levels", CACHE}
    plain = {name: value for name, value in facts.items() if name not in idle}
    plain |= {"loss.alpha": facts["loss.alpha"] or 1.0} | dict.fromkeys(TEACHING, 0.0)
    return plain | {SHARE: IDLE_SHARE if facts[SHARE] is not None else None}


def name_rows(rows: list[Row]) -> list[Row]:
    """Name each row by the facts in which rows differ.

    Returns: the rows, baselines first, then sorted by these facts.
    """
    varied = find_varied(rows)
    for row in rows:
        names = [name for name in varied if name in row.facts]
        if row.uses_teacher:
            weights = [name for name in TEACHING if row.facts[name]]
            row.name = ", ".join(format_fact(name, row) for name in names or weights)
        else:
            names = [name for name in names if name not in TEACHING]
            row.name = ", ".join(["baseline", *(format_fact(name, row) for name in names)])

    def order(row: Row) -> tuple:
        return row.uses_teacher, [_order(row.facts.get(name)) for name in varied]

    return sorted(rows, key=order)


def find_varied(rows: Iterable[Row]) -> list[str]:
    """Names of the facts that have different values in two rows, those of the loss first."""
    values: dict[str, list] = {}
    for row in rows:
        for name, value in row.facts.items():
            values.setdefault(name, []).append(value)
    varied = [name for name, found in values.items() if any(x != found[0] for x in found)]
    return sorted(varied, key=lambda name: (not name.startswith("loss."), name))


def list_shared(rows: list[Row]) -> list[str]:
    """`name value` of the facts that are the same in all rows that have them."""
    varied, first = find_varied(rows), {}
    for row in rows:
        for name in row.facts:
            first.setdefault(name, row)
    return [format_fact(name, first[name]) for name in sorted(first) if name not in varied]


def list_beyond_loss(rows: list[Row]) -> dict[str, list[str]]:
    """Fact -> its different values as text, for facts outside the loss in which rows differ."""
    return {
        name: list(dict.fromkeys(_format(name, row) for row in rows if name in row.facts))
        for name in find_varied(rows)
        if not name.startswith("loss.")
    }


def format_fact(name: str, row: Row) -> str:
    """`loss.beta 0.5`."""
    return f"{name} {_format(name, row)}"


def _format(name: str, row: Row) -> str:
    text = format_value(row.facts[name])
    return f"{text} ({row.encoding})" if name == CACHE and row.encoding else text


def format_value(value: object) -> str:
    """The value as short, exact text; the first 12 digits of a hash."""
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(format_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _order(value: object) -> tuple:
    """Sorts numbers as numbers, before text."""
    is_number = isinstance(value, int | float)
    return (not is_number, value if is_number else 0, format_value(value))
