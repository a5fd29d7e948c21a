"""`python -m train_student --grid`: a matrix of runs from one cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdcache.config import CacheConfig
from kdcache.config.parser import read_given
from kdcache.errors import KdcacheError, Phrase, SettingsError, describe
from kdcache.progress import Console
from kdcache.storage import open_storage
from kdcache.training.grid import Grid, read_grid

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from kdcache.training.processes import Alone

GRID, SEEDS, DRY = "--grid", "--seeds", "--dry-run"


def take_grid(argv: list[str]) -> tuple[Grid | None, bool, list[str]]:
    """The grid, None where none is asked for; whether it is only to be listed; and the other words. Raises SettingsError."""
    taken: dict[str, list[str]] = {}
    rest, current = [], None
    for word in argv:
        name, equals, value = word.partition("=")
        if name in (GRID, SEEDS, DRY):
            current = taken.setdefault(name, [])
            current += [value] if equals else []
            current = None if name == DRY else current
        elif word.startswith("--") or current is None:
            current = None
            rest.append(word)
        else:
            current.append(word)
    if not taken:
        return None, False, argv
    if set(taken) == {DRY}:
        found, cure = Phrase("given alone"), "add --grid or --seeds"
        raise SettingsError(
            describe(
                "command line", field=DRY, found=found, expected=Phrase("a grid to list"), cure=cure
            )
        )
    seeds = taken.get(SEEDS)
    if taken.get(GRID) == [] or seeds == []:
        empty = SEEDS if seeds == [] else GRID
        cure = "as in `--grid loss.beta=0,0.5 loss.gamma=0,0.3 --seeds 0,1,2`"
        raise SettingsError(
            describe(
                "command line",
                field=empty,
                found=Phrase("empty"),
                expected=Phrase("values"),
                cure=cure,
            )
        )
    return read_grid(taken.get(GRID, []), ",".join(seeds) if seeds else None), DRY in taken, rest


def run_grid(
    parser: ArgumentParser, grid: Grid, words: list[str], processes: Alone, *, dry: bool
) -> int:
    """Train every run of the grid that is not finished; returns the exit code. Raises KdcacheError."""
    if processes.count > 1:
        found, cure = (
            Phrase(f"given to {processes.count} processes"),
            "start it without torchrun, once for each GPU",
        )
        raise SettingsError(
            describe(
                "command line", field=GRID, found=found, expected=Phrase("one process"), cure=cure
            )
        )

    def ask(point: Mapping[str, str]) -> dict:
        return read_given(
            parser,
            [*words, *(word for name, value in point.items() for word in (f"--{name}", value))],
        )

    root = open_storage(read_given(parser, words).get("cache", {}).get("path", CacheConfig().path))
    from kdcache.analysis.comparison import compare_runs
    from kdcache.cache.manifest import read_manifest
    from kdcache.report.comparison_text import format_comparison
    from kdcache.report.training import PrintedGrid
    from kdcache.training.grid_runs import plan_grid, train_grid

    manifest = read_manifest(root)
    plans = plan_grid(grid, ask, root=root, manifest=manifest)
    baselines = sum(not plan.config.loss.uses_teacher for plan in plans)
    folder = plans[0].config.run.dir
    print(f"{folder}: {len(plans)} runs, {baselines} of them with labels only, from {root}")
    if dry:
        for plan in plans:
            print(f"  {plan.folder.name}")
        return 0
    failures = train_grid(
        plans, root=root, manifest=manifest, progress=Console(), events=PrintedGrid(print)
    )
    if len(failures) < len(plans):
        unfinished = {failure.folder for failure in failures}
        print(
            format_comparison(
                compare_runs([plan.folder for plan in plans if plan.folder not in unfinished])
            )
        )
    return _conclude(failures, len(plans))


def _conclude(failures: list, total: int) -> int:
    elsewhere = sum(failure.elsewhere for failure in failures)
    failed = [failure for failure in failures if not failure.elsewhere]
    print(
        f"{total - len(failures)} of {total} runs are finished; {elsewhere} are left to other processes, {len(failed)} failed"
    )
    if not failed:
        return 0
    names = ", ".join(failure.folder.name for failure in failed)
    raise KdcacheError(
        f"{len(failed)} of {total} runs failed ({names}); mend what their lines say and start the same again"
    )
