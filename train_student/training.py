"""Training a student from a cache, or every student of a grid."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.command import Command, add_output, list_commands, read_output
from kdcache.config import CacheConfig
from kdcache.config.names import FROM_CACHE
from kdcache.config.options import Parser, find_words, override, read_given
from kdcache.config.parser import make_config
from kdcache.errors import KdcacheError, Phrase, SettingsError, describe
from kdcache.machine.process import find_worker
from kdcache.progress import Output, join_lines
from kdcache.storage import Storage, open_storage

if TYPE_CHECKING:
    from kdcache.training.grid import Grid
    from kdcache.training.grid_runs import UnfinishedRun
    from kdcache.training.processes import Alone

PROG = "python -m train_student"


def train(argv: list[str], commands: Mapping[str, Command]) -> int | None:
    """Train the student of these settings, or those of a grid; returns the exit code.

    Args:
        commands: by name, for --help.
    """
    args = build_parser(commands).parse_args(argv)
    grid = read_grid_of(args)
    if find_worker().count == 1:  # wrong settings are refused before torch is imported
        # a grid may vary what its base lacks: its points are checked before anything is trained
        _read(args) if grid is None else read_given(args)
    from kdcache.training.processes import join_processes

    with join_processes() as processes:
        if not processes.leads:  # the first one says what there is to warn of
            logging.getLogger("kdcache").setLevel(logging.ERROR)
        if grid is not None:
            return _train_grid(grid, args, processes)
        return _train_one(args, processes)


def build_parser(commands: Mapping[str, Command]) -> Parser:
    """The parser of settings and grids. Args: commands: by name, for --help."""
    parser = Parser(
        prog=PROG,
        description="Train a student from a cache, without the teacher. --grid trains every "
        "combination of values with every seed, each with its baseline, into run.dir. Or:\n\n"
        f"{PROG} COMMAND ..., each with a --help of its own:\n{list_commands(commands)}",
        epilog=f"for example: {PROG} --config configs/demo.yaml --run.dir runs/grid "
        "--grid loss.beta=0,0.5 loss.gamma=0,0.3 --seeds 0,1,2",
        settings=True,
    )
    parser.add_argument(
        "--grid", nargs="+", action="extend", metavar="NAME=VALUE,...",
        help="settings to vary, or FILE.yaml with lists of values by name",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", nargs="+", metavar="N,...", help="seeds of each combination (0,1,2)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list the runs of the grid")
    add_output(parser, verbose="print more of each epoch: times, and the terms of the loss")
    return parser


def read_grid_of(args: argparse.Namespace) -> Grid | None:
    """None if no grid is asked for. Raises SettingsError."""
    if args.grid is None and args.seeds is None:
        if args.dry_run:
            found, cure = Phrase("given alone"), "add --grid or --seeds"
            expected = Phrase("a grid to list")
            raise SettingsError(
                describe(
                    "command line", field="--dry-run", found=found, expected=expected, cure=cure
                )
            )
        return None
    from kdcache.training.grid import read_grid

    grid = read_grid(args.grid or [], ",".join(args.seeds) if args.seeds else None)
    varied = {**grid.values, "train.seed": ()}
    for name in (name for name in find_words(args) if name in varied):
        if name == "train.seed":
            raise SettingsError("--train.seed is given beside a grid, expected --seeds; write that")
        raise SettingsError(f"--{name} is given beside --grid, expected one of them; leave one out")
    return grid


def _train_one(args: argparse.Namespace, processes: Alone) -> None:
    given = processes.agree(_read, args)
    from kdcache.report.training import PrintedRun, report_result
    from kdcache.training.distill import distill

    output = read_output(args)
    outcome = distill(
        given,
        root=_find_cache(given),
        processes=processes,
        progress=output.progress,
        events=PrintedRun(output.say, verbose=output.verbose),
    )
    report_result(outcome, processes, output=output)


def _train_grid(grid: Grid, args: argparse.Namespace, processes: Alone) -> int:
    """Train every run of the grid that is not finished; returns the exit code.

    Raises: KdcacheError if a run failed.
    """
    if processes.count > 1:
        found = Phrase(f"given to {processes.count} processes")
        expected, cure = Phrase("one process"), "start it without torchrun, once for each GPU"
        raise SettingsError(
            describe("command line", field="--grid", found=found, expected=expected, cure=cure)
        )
    from kdcache.cache.manifest import read_manifest
    from kdcache.report.training import PrintedGrid
    from kdcache.training.grid_runs import plan_grid, train_grid

    given = read_given(args)
    root = _find_cache(given)
    manifest = read_manifest(root)
    plans = plan_grid(grid, lambda point: override(given, point), root=root, manifest=manifest)
    baselines = sum(not plan.config.loss.uses_teacher for plan in plans)
    folder, output = plans[0].config.run.dir, read_output(args)
    runs = f"{folder}: {len(plans)} runs, {baselines} of them with labels only, from {root}"
    output.say(join_lines([runs]))
    if args.dry_run:
        names = [plan.folder.name for plan in plans]
        output.tell(join_lines(f"  {name}" for name in names))
        output.conclude({"runs": names})
        return 0
    failures = train_grid(
        plans,
        root=root,
        manifest=manifest,
        progress=output.progress,
        events=PrintedGrid(output.say, verbose=output.verbose),
    )
    _conclude_grid([plan.folder for plan in plans], failures, output)
    return _count_failures(failures, len(plans), output)


def _read(args: argparse.Namespace) -> dict:
    """The given settings; the cache holds the others, so only the ranges of these are checked."""
    given = read_given(args)
    make_config({name: values for name, values in given.items() if name not in FROM_CACHE})
    return given


def _find_cache(given: Mapping) -> Storage:
    return open_storage(given.get("cache", {}).get("path", CacheConfig().path))


def _conclude_grid(folders: list[Path], failures: list[UnfinishedRun], output: Output) -> None:
    """Print the finished runs side by side, if there are any, or their results as JSON."""
    from kdcache.analysis.comparison import compare_runs
    from kdcache.report.comparison_text import format_comparison
    from kdcache.training.run_folder import read_result

    unfinished = {failure.folder for failure in failures}
    finished = [folder for folder in folders if folder not in unfinished]
    if finished:
        output.tell(format_comparison(compare_runs(finished)))
    runs = {folder.name: read_result(folder) for folder in finished}
    output.conclude({"runs": runs, "unfinished": [folder.name for folder in unfinished]})


def _count_failures(failures: list[UnfinishedRun], total: int, output: Output) -> int:
    """Say how many runs are finished. Raises KdcacheError if some have failed."""
    failed = [failure for failure in failures if not failure.elsewhere]
    elsewhere, finished = len(failures) - len(failed), total - len(failures)
    output.say(
        f"{finished} of {total} runs are finished; {elsewhere} are left to other processes, "
        f"{len(failed)} failed"
    )
    if not failed:
        return 0
    names = ", ".join(failure.folder.name for failure in failed)
    raise KdcacheError(
        f"{len(failed)} of {total} runs failed ({names}); mend what their lines say and start the "
        "same again"
    )
