"""Looking at a cache without changing it: info, view, verify, fidelity."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kdcache.command import (
    DAMAGED,
    add_trust,
    build_cache_parser,
    cannot_run_as_2,
    read_count,
    read_new_path,
    read_number,
    read_trust,
)
from kdcache.config.names import BUILT_IN_STUDENT
from kdcache.config.options import read_given, read_path
from kdcache.errors import CacheCorruptError
from kdcache.progress import Console, print_line, print_text

PROG = "python -m cache_teacher"
WATCH_EVERY_S = 5.0
NUM_SHOWN, MOST_SHOWN, MOST_NAMED = 50, 1000, 5


def info(argv: list[str]) -> None:
    """What a cache holds."""
    parser = build_cache_parser(
        f"{PROG} info", "Say what the cache at PATH holds, and whether it is complete.",
        example=f"{PROG} info caches/demo", json=True,
    )  # fmt: skip
    parser.add_argument(
        "--watch", nargs="?", const=WATCH_EVERY_S, type=read_number(0.01, 86_400),
        metavar="SECONDS",
        help="show how far its building is until it is complete, looking every "
        f"{WATCH_EVERY_S:g} s, whoever builds it",
    )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache.report.cache_text import describe_cache, format_info, watch_cache

    if args.watch:
        watch_cache(args.path, every_s=args.watch, progress=Console(), say=_say_on_stderr)
    facts = describe_cache(args.path)
    print_text(json.dumps(facts, indent=2) if args.json else format_info(facts))


def view(argv: list[str]) -> None:
    """A page of samples and what the teacher said of them."""
    parser = build_cache_parser(
        f"{PROG} view",
        "Write a gallery of the cache at PATH, one HTML file: images, labels and what the teacher "
        "said of them, for the samples on which labels and teacher differ most and least (without "
        "labels: of which the teacher is least and most certain); and what the teacher calls each "
        "class.",
        example=f"{PROG} view caches/demo --split train --samples 20",
    )
    parser.add_argument(
        "--out", type=read_new_path, metavar="FILE.html",
        help="file to write (default: PATH's name and the split, in this folder)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=read_count(1, MOST_SHOWN), default=NUM_SHOWN, metavar="N",
        help=f"how many are shown ({NUM_SHOWN})",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("val", "train", "unlabelled"), default="val",
        help="val, or train or unlabelled in their views",
    )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache.report.gallery import write_gallery

    out = args.out or Path(f"{args.path.short_name}-{args.split}.html")
    try:
        done = write_gallery(
            args.path, out, split=args.split, num_samples=args.samples, progress=Console()
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing is kept") from None
    named = f"; mostly called something else: {_list_names(done.misnamed)}" if done.misnamed else ""
    print_line(
        f"{out}: {done.num_shown} samples shown, {done.num_looked_at} of {done.num_samples} "
        f"looked at, {done.size_bytes / 1e6:.1f} MB{named}"
    )


def verify(argv: list[str]) -> int:
    """What is damaged."""
    parser = build_cache_parser(
        f"{PROG} verify",
        "Find what is damaged. Exit code 0: sound, 1: damaged, 2: cannot run.",
        example=f"{PROG} verify caches/demo --data",
        json=True,
    )
    parser.add_argument(
        "--data", action="store_true", help="read and check every byte, not only the structure"
    )
    parser.add_argument(
        "--subset", metavar="P%|N/T",
        help="data of a random share of the shard groups, or of part N of T (implies --data)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache.cache.verify import choose_subset, verify_cache
    from kdcache.report.cache_text import describe_findings, format_findings

    choose, data = choose_subset(args.subset), args.data or args.subset is not None
    try:
        with cannot_run_as_2(args.path, doing="verified"):
            findings = verify_cache(args.path, data=data, choose=choose, progress=Console())
    except CacheCorruptError as error:  # a damaged manifest is damage, too
        error.exit_code = DAMAGED
        if args.json:
            damage = [{"file": str(error.where), "what": error.what}]
            print_text(
                json.dumps({"path": str(args.path), "sound": False, "damage": damage}, indent=2)
            )
        raise
    facts = describe_findings(findings, args.path)
    print_text(json.dumps(facts, indent=2) if args.json else format_findings(findings, args.path))
    return DAMAGED if findings.damage else 0


def fidelity(argv: list[str]) -> int:
    """Whether the teacher still says what is stored."""
    parser = build_cache_parser(
        f"{PROG} fidelity",
        "Ask the teacher again about random stored images, compare what it says with the cache at "
        "PATH, and the gradients a student receives from both: a fresh one, one after 40 steps "
        "(whose limits count) and that of RUN. Settings say where the weights are now. "
        "Exit code 0: faithful, 1: beyond a limit, 2: cannot run.",
        example=f"{PROG} fidelity caches/demo --samples 32",
        settings=True,
        json=True,
    )
    parser.add_argument(
        "--samples", type=read_count(1), default=32, metavar="N", help="how many are compared (32)"
    )
    parser.add_argument(
        "--seed", type=read_count(0), default=0, metavar="N", help="which are drawn (0)"
    )
    parser.add_argument(
        "--run", type=read_path, metavar="RUN", help="folder of a run whose student is asked, too"
    )
    add_trust(parser)
    args = parser.parse_args(argv)
    given, trust = read_given(args), read_trust(args)
    arch = given.get("student", {}).get("arch", BUILT_IN_STUDENT)
    trust.check(arch, source=None, where="--config")  # a file may be anybody's
    from kdcache.analysis.fidelity import measure_fidelity
    from kdcache.report.phase_one_text import format_fidelity

    with cannot_run_as_2(args.path, doing="compared"):
        result = measure_fidelity(
            args.path, given, num_samples=args.samples, seed=args.seed, run=args.run,
            trust=trust, progress=Console(),
        )  # fmt: skip
    print_text(json.dumps(result, indent=2) if args.json else format_fidelity(result, args.path))
    return DAMAGED if result["failures"] else 0


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more classes" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _say_on_stderr(text: str) -> None:
    print_line(text, file=sys.stderr)
