"""`python -m cache_teacher info|verify|repair|gc PATH`: look at a cache, check it, heal it, tidy it."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress

from kdcache.command import DAMAGED, OneLineParser, cannot_run_as_2
from kdcache.config.parser import build_parser, read_given
from kdcache.errors import CacheCorruptError, Phrase, SettingsError, describe
from kdcache.progress import Console
from kdcache.storage import Storage, open_storage

PROG = "python -m cache_teacher"
WATCH_EVERY_S = 5.0


def info(argv: list[str]) -> None:
    """What a cache holds."""
    parser = path_parser("info", "What a cache holds.", json=True)
    parser.add_argument(
        "--watch",
        nargs="?",
        const=WATCH_EVERY_S,
        type=_read_seconds,
        metavar="SECONDS",
        help=f"show how far its building is until it is complete, whoever builds it; a look every {WATCH_EVERY_S:g} s",
    )
    args = parser.parse_args(argv)
    from kdcache.report.cache_info import describe_cache, format_info, watch_cache

    if args.watch:
        watch_cache(
            args.path,
            every_s=args.watch,
            progress=Console(),
            say=lambda text: print(text, file=sys.stderr),
        )

    facts = describe_cache(args.path)
    print(json.dumps(facts, indent=2) if args.json else format_info(facts))


def _read_seconds(text: str) -> float:
    with suppress(ValueError):
        if 0.01 <= (seconds := float(text)) <= 86_400:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.01 to 86400")


def verify(argv: list[str]) -> int:
    """Exit code 0 sound, 1 damaged, 2 cannot run."""
    parser = path_parser(
        "verify", "Find what is damaged. Exit code 0: sound, 1: damaged, 2: cannot run.", json=True
    )
    parser.add_argument(
        "--data", action="store_true", help="read and check every byte, not only the structure"
    )
    parser.add_argument(
        "--subset",
        metavar="P%|N/T",
        help="data of a random share of the shard groups, or of part N of T (implies --data)",
    )
    args = parser.parse_args(argv)
    from kdcache.cache.verify import choose_subset, verify_cache
    from kdcache.report.findings import describe_findings, format_findings

    choose = choose_subset(args.subset)
    try:
        with cannot_run_as_2(args.path, doing="verified"):
            data = args.data or args.subset is not None
            findings = verify_cache(args.path, data=data, choose=choose, progress=Console())
    except CacheCorruptError as error:  # of the manifest: damage, too
        error.exit_code = DAMAGED
        if args.json:
            damage = [{"file": str(error.where), "what": error.what}]
            print(json.dumps({"path": str(args.path), "sound": False, "damage": damage}, indent=2))
        raise
    print(
        json.dumps(describe_findings(findings, args.path), indent=2)
        if args.json
        else format_findings(findings, args.path)
    )
    return DAMAGED if findings.damage else 0


def repair(argv: list[str]) -> None:
    """Recompute what is damaged or missing."""
    parser = build_parser(
        prog=f"{PROG} repair PATH [--dry-run]",
        description="Recompute exactly the damaged or missing shard groups of the cache at PATH, with the data set and teacher "
        "it was built with; settings say where these are now. --dry-run only tells what would be done.",
    )
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    root, rest = split_path([word for word in argv if word != "--dry-run"], "repair")
    given = read_given(parser, rest)
    from kdcache.precompute.repair import repair_cache
    from kdcache.report.findings import format_repair

    done = repair_cache(root, given, dry_run="--dry-run" in argv, progress=Console())
    print(format_repair(done, root, dry_run="--dry-run" in argv))


def gc(argv: list[str]) -> None:
    """Remove what killed runs left."""
    parser = path_parser(
        "gc",
        "Remove what killed runs left: unfinished files, shards without commit record, dead leases.",
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    args = parser.parse_args(argv)
    from kdcache.cache.leftovers import collect_leftovers

    found = collect_leftovers(args.path, dry_run=args.dry_run)
    for leftover in found:
        print(f"{leftover.path}: {leftover.what}, {leftover.size_bytes} bytes")
    verb = "would be removed" if args.dry_run else "removed"
    print(
        f"{args.path}: {len(found)} files, {sum(leftover.size_bytes for leftover in found) / 1e6:.1f} MB {verb}"
    )


def path_parser(name: str, description: str, *, json: bool = False) -> argparse.ArgumentParser:
    """Of a command whose first word is a cache."""
    parser = OneLineParser(prog=f"{PROG} {name}", description=description, allow_abbrev=False)
    parser.add_argument(
        "path",
        type=_read_place,
        metavar="PATH",
        help="the cache: a folder, s3://BUCKET/KEY or a packed file",
    )
    if json:
        parser.add_argument("--json", action="store_true", help="machine-readable")
    return parser


def _read_place(text: str) -> Storage:
    try:
        return open_storage(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def split_path(words: list[str], command: str) -> tuple[Storage, list[str]]:
    """PATH, which is the first word, and the settings behind it. Raises SettingsError."""
    if not words or words[0].startswith("-"):
        found, expected = words[0] if words else Phrase("missing"), Phrase("the folder of a cache")
        cure = f"write `{PROG} {command} PATH`, settings behind it"
        raise SettingsError(
            describe("command line", field="PATH", found=found, expected=expected, cure=cure)
        )
    return open_storage(words[0]), words[1:]
