"""`python -m train_student compare`: finished runs side by side."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from kdcache.command import OneLineParser

PROG = "python -m train_student compare"


def compare(argv: list[str]) -> None:
    """Print the table, and write it where that is asked for. Raises SettingsError."""
    args = _build_parser().parse_args(argv)
    from kdcache import durable
    from kdcache.analysis.comparison import compare_runs
    from kdcache.report.comparison_page import format_page
    from kdcache.report.comparison_text import format_comparison, format_csv

    comparison = compare_runs(args.paths)
    asked = [
        (path, form)
        for path, form in ((args.csv, format_csv), (args.html, format_page))
        if path is not None
    ]
    for path, form in asked:  # before a word: who reads our words may stop early, as `| head` does
        durable.replace_file(path, form(comparison).encode("utf-8", "backslashreplace"))
    print("\n\n".join([format_comparison(comparison), *(f"{path}: written" for path, _ in asked)]))


def _build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog=PROG,
        epilog=f"for example: {PROG} runs/grid --csv runs/grid.csv --html runs/grid.html",
        description="Compare finished runs: those with the same settings but the seed are a row, with mean and deviation; each "
        "has its difference from the baseline with the same settings, seed by seed, with a 95 % interval. Runs that are not "
        "finished and other folders are named and left out; runs of different validation data are refused (exit code 2).",
        allow_abbrev=False,
    )
    runs = "folder of a run, or a folder that holds some"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=runs)
    for name, what in (("--csv", "a line a run"), ("--html", "one page")):
        read = partial(_read_out, ending=f".{name.removeprefix('--')}")
        parser.add_argument(
            name, type=read, metavar="FILE", help=f"write {what}; a file of that name is replaced"
        )
    return parser


def _read_out(text: str, ending: str) -> Path:
    path = Path(text)
    if path.suffix != ending:  # what is there is replaced: not a checkpoint by mistake
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {ending}")
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no file name in a folder that is there")
    return path
