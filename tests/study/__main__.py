"""Whole runs over several seeds; stop a study at any moment, the same command goes on.

python -m tests.study gain ...        what a cache gains in mIoU, by the number of labels
python -m tests.study encodings ...   what each encoding costs in mIoU, beside the live teacher
python -m tests.study page            docs/results.md, its tables and picture, from recorded runs
"""

from __future__ import annotations

import sys

from kdcache.command import run_program
from kdcache.config.options import Parser
from tests.study.encodings import run_encodings
from tests.study.gain.command import run_gain
from tests.study.gain.page import run_page

COMMANDS = {"gain": run_gain, "encodings": run_encodings, "page": run_page}


def main(argv: list[str]) -> int:
    """Run the study that the first word names; returns the exit code."""
    return run_program("study", argv, commands=COMMANDS, otherwise=_explain)


def _explain(argv: list[str]) -> None:
    """Without a study: say which there are."""
    parser = Parser(prog="python -m tests.study", description=__doc__)
    parser.parse_args(argv)
    parser.print_help()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
