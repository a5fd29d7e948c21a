"""`python -m cache_teacher fidelity PATH`: does the cache still say what the teacher says?"""

from __future__ import annotations

import json
from pathlib import Path

from cache_teacher.maintain import PROG, split_path
from cache_teacher.options import read_count, take_options
from kdcache.command import DAMAGED, cannot_run_as_2
from kdcache.config.parser import build_parser, read_given
from kdcache.progress import Console

OPTIONS = {"--samples": "32", "--seed": "0", "--run": ""}


def fidelity(argv: list[str]) -> int:
    """Exit code 0 faithful, 1 not, 2 cannot run."""
    parser = build_parser(
        prog=f"{PROG} fidelity PATH [--samples 32] [--seed 0] [--run RUN] [--json]",
        description="Ask the teacher again about random stored images, compare what it says with the cache at PATH, and the "
        "gradients a student receives from both: a fresh one, one after 40 steps (whose limits count) and that of RUN. Settings "
        "say where the weights are now. Exit code 0: faithful, 1: beyond a limit, 2: cannot run.",
    )
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    options, words = take_options(argv, OPTIONS)
    root, rest = split_path([word for word in words if word != "--json"], "fidelity")
    given = read_given(parser, rest)
    from kdcache.analysis.fidelity import measure_fidelity
    from kdcache.report.findings import format_fidelity

    num_samples, seed = (
        read_count(options, "--samples", least=1),
        read_count(options, "--seed", least=0),
    )
    run = Path(options["--run"]) if options["--run"] else None
    with cannot_run_as_2(root, doing="compared"):
        result = measure_fidelity(
            root, given, num_samples=num_samples, seed=seed, run=run, progress=Console()
        )
    print(json.dumps(result, indent=2) if "--json" in argv else format_fidelity(result, root))
    return DAMAGED if result["failures"] else 0
