"""`python -m cache_teacher`: phase one, and what belongs to a cache."""

from __future__ import annotations

from cache_teacher.building import build, fit, plan, sample_set
from cache_teacher.changing import export_cache, gc, import_cache, repair
from cache_teacher.looking import fidelity, info, verify, view
from kdcache.command import run_program

COMMANDS = {
    "plan": plan,
    "info": info,
    "view": view,
    "verify": verify,
    "repair": repair,
    "gc": gc,
    "export": export_cache,
    "import": import_cache,
    "fidelity": fidelity,
    "fit": fit,
    "sample-set": sample_set,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command, else build a cache; returns the exit code."""
    return run_program(
        "cache_teacher", argv, commands=COMMANDS, otherwise=lambda words: build(words, COMMANDS)
    )
