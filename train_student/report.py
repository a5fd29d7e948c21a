"""`python -m train_student report RUN`: write the report of a finished run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcache.command import OneLineParser

MOST_PANELS = 50


def report(argv: list[str]) -> None:
    """Write report.html of a run again."""
    parser = OneLineParser(
        prog="python -m train_student report",
        epilog="for example: python -m train_student report runs/student_kd --panels 50",
        description="Write report.html of a finished run again.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--panels",
        type=_read_count,
        metavar="N",
        help=f"validation samples to show, 1 to {MOST_PANELS} (default: as many as at a run's end)",
    )
    parser.add_argument(
        "--cache.path",
        dest="path",
        metavar="PATH",
        help="where its cache is now (default: where it was)",
    )
    parser.add_argument(
        "--train.device",
        dest="device",
        metavar="DEVICE",
        help="that answers (default: the one that trained)",
    )
    args = parser.parse_args(argv)
    from kdcache.report.panels import NUM_PANELS
    from kdcache.report.run_page import rewrite_report

    cache = {"cache": {"path": args.path}} if args.path else {}
    device = {"train": {"device": args.device}} if args.device else {}
    print(rewrite_report(args.run, {**cache, **device}, num_panels=args.panels or NUM_PANELS))


def _read_count(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= MOST_PANELS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of panels, 1 to {MOST_PANELS}")
