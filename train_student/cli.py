"""`python -m train_student`: phase two, from the cache alone."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, NoReturn

from kdcache.command import check_command, run_command
from kdcache.config import CacheConfig
from kdcache.config.names import FROM_CACHE
from kdcache.config.parser import build_parser, make_config, read_given
from kdcache.machine.workers import find_worker
from kdcache.progress import Console
from kdcache.storage import open_storage
from train_student.compare import compare
from train_student.grid import run_grid, take_grid
from train_student.report import report
from train_student.takeaway import export, predict

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from kdcache.training.processes import Alone

PROG = "python -m train_student"
DESCRIPTION = f"""Train a student from a cache, without the teacher. Many students: {PROG} --config FILE --grid
loss.beta=0,0.5,1 loss.gamma=0,0.3 --seeds 0,1,2 [--dry-run] trains every combination with every seed (0,1,2 where none are
given), each with its baseline, into run.dir; --grid FILE.yaml has lists of values by name. Other commands, as in {PROG}
report RUN: report (write a finished run's report again, --panels N), compare (finished runs side by side, over seeds), export
(take the student away: onnx, safetensors, executorch), predict (ask it about images). Settings of a run:"""


def main(argv: list[str] | None = None) -> int:
    """Run a command, else train a student, or many; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return run_command(f"train_student {argv[0]}", lambda: COMMANDS[argv[0]](argv[1:]))
    return run_command("train_student", lambda: _train(argv))


def command() -> NoReturn:
    """What the console script runs."""
    code = main()
    if "kdcache.training.processes" in sys.modules:
        from kdcache.training.processes import end_process

        end_process(code)
    sys.exit(code)


def _train(argv: list[str]) -> int | None:
    check_command(PROG, argv, COMMANDS)
    parser = build_parser(prog=PROG, description=DESCRIPTION)
    grid, dry, words = take_grid(argv)
    if find_worker().count == 1:  # wrong settings are refused before torch is imported
        _read(parser, words)
    from kdcache.training.processes import join_processes

    with join_processes() as processes:
        if not processes.leads:  # what the first one warns of is said
            logging.getLogger("kdcache").setLevel(logging.ERROR)
        if grid is not None:
            return run_grid(parser, grid, words, processes, dry=dry)
        return _train_one(parser, words, processes)


def _train_one(parser: ArgumentParser, words: list[str], processes: Alone) -> None:
    given = processes.agree(_read, parser, words)
    root = open_storage(given.get("cache", {}).get("path", CacheConfig().path))
    from kdcache.report.training import PrintedRun, report_result
    from kdcache.training.distill import distill

    outcome = distill(
        given, root=root, processes=processes, progress=Console(), events=PrintedRun(print)
    )
    report_result(outcome, processes, say=print)


def _read(parser: ArgumentParser, words: list[str]) -> dict:
    given = read_given(parser, words)
    make_config(
        {section: values for section, values in given.items() if section not in FROM_CACHE}
    )  # ranges
    return given


COMMANDS = {"report": report, "compare": compare, "export": export, "predict": predict}
