"""`python -m train_student`: phase two, from the cache alone."""

from __future__ import annotations

import logging
import sys

from kdcache.cache.place import find_place
from kdcache.command import run_command
from kdcache.config import CacheConfig
from kdcache.report.progress import Console
from kdcache.settings import build_parser, make_config, read_given
from kdcache.training.processes import join_processes
from kdcache.training.settings import FROM_CACHE

PROG = "python -m train_student"


def main(argv: list[str] | None = None) -> int:
    """Train a student; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return run_command("train_student", lambda: _train(argv))


def _train(argv: list[str]) -> None:
    with join_processes() as processes:
        if not processes.leads:  # what the first one warns of is said
            logging.getLogger("kdcache").setLevel(logging.ERROR)
        given = processes.agree(_read, argv)
        root = find_place(given.get("cache", {}).get("path", CacheConfig().path))
        from kdcache.training.distill import distill

        distill(given, root=root, processes=processes, progress=Console(), say=print)


def _read(argv: list[str]) -> dict:
    parser = build_parser(prog=PROG, description="Train a student from a cache, without the teacher.")
    given = read_given(parser, argv)
    make_config({section: values for section, values in given.items() if section not in FROM_CACHE})  # ranges
    return given
