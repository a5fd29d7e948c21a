"""`python -m train_student`: phase two, from the cache alone."""

from __future__ import annotations

import sys
from typing import NoReturn

from kdcache.command import run_program
from kdcache.machine.signals import ignore_signals
from train_student.runs import compare, export, predict, report
from train_student.training import train

COMMANDS = {"report": report, "compare": compare, "export": export, "predict": predict}


def main(argv: list[str] | None = None) -> int:
    """Run a command, else train a student, or many; returns the exit code."""
    return run_program(
        "train_student", argv, commands=COMMANDS, otherwise=lambda words: train(words, COMMANDS)
    )


def command() -> NoReturn:
    """Run a command and leave with its exit code."""
    code = main()
    ignore_signals()
    if "kdcache.training.processes" in sys.modules:
        from kdcache.training.processes import end_process

        end_process(code)
    sys.exit(code)
