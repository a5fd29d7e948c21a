"""Changing a cache, or making another of it: repair, gc, export, import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdcache.command import (
    add_trust,
    build_cache_parser,
    read_count,
    read_new_path,
    read_trust,
)
from kdcache.config.options import read_given
from kdcache.progress import Console, print_line, print_text

if TYPE_CHECKING:
    from kdcache.storage import Storage

PROG = "python -m cache_teacher"
CHANGEABLE = "the cache: a folder or s3://BUCKET/KEY"


def repair(argv: list[str]) -> None:
    """Recompute what is damaged or missing."""
    parser = build_cache_parser(
        f"{PROG} repair",
        "Recompute exactly the damaged or missing shard groups of the cache at PATH, with the data "
        "set and teacher it was built with; settings say where these are now.",
        example=f"{PROG} repair caches/demo --dry-run",
        place=CHANGEABLE,
        settings=True,
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    add_trust(parser)
    args = parser.parse_args(argv)
    given, trust = read_given(args), read_trust(args)
    from kdcache.precompute.repair import repair_cache
    from kdcache.report.cache_text import format_repair

    done = repair_cache(args.path, given, dry_run=args.dry_run, trust=trust, progress=Console())
    print_text(format_repair(done, args.path, dry_run=args.dry_run))


def gc(argv: list[str]) -> None:
    """Remove what killed runs left."""
    parser = build_cache_parser(
        f"{PROG} gc",
        "Remove what killed runs left: unfinished files, shards without commit record, dead "
        "leases.",
        example=f"{PROG} gc caches/demo --dry-run",
        place=CHANGEABLE,
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--unlisted", action="store_true",
        help="also remove samples that were taken out of the lists, or have changed since",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.unlisted:
        _remove_unlisted(args.path, dry_run=args.dry_run)
    from kdcache.cache.leftovers import collect_leftovers

    found = collect_leftovers(args.path, dry_run=args.dry_run)
    for leftover in found:
        print_line(f"{leftover.path}: {leftover.what}, {leftover.size_bytes} bytes")
    size_mb = sum(leftover.size_bytes for leftover in found) / 1e6
    verb = "would be removed" if args.dry_run else "removed"
    print_line(f"{args.path}: {len(found)} files, {size_mb:.1f} MB {verb}")


def _remove_unlisted(path: Storage, *, dry_run: bool) -> None:
    from kdcache.cache.unlisted import collect_unlisted

    done = collect_unlisted(path, dry_run=dry_run, progress=Console())
    copied = f", {done.num_copied} that shared shard groups with them copied"
    verb = "would be removed" if dry_run else "removed"
    size = f"{done.num_samples} samples that are not listed, {done.size_bytes / 1e6:.1f} MB"
    print_line(f"{path}: {size} {verb}{copied if done.num_copied else ''}")


def export_cache(argv: list[str]) -> None:
    """Pack a cache into one HDF5 file."""
    parser = build_cache_parser(
        f"{PROG} export",
        "Pack the cache at PATH, or some levels and views of it, into one HDF5 file, which trains "
        "like the cache. It takes its name once every byte was written, flushed and read back.",
        example=f"{PROG} export caches/demo demo.h5 --levels low,mid",
    )
    parser.add_argument("out", type=read_new_path, metavar="OUT.h5", help="the new file")
    parser.add_argument(
        "--levels", type=_read_levels, metavar="LEVEL,...",
        help="some of low,mid,high, or none (default: all that are cached)",
    )  # fmt: skip
    parser.add_argument(
        "--views", type=read_count(1, 10_000), metavar="N",
        help="the first N views of training and unlabelled images (default: all)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    from kdcache.cache.pack import pack_cache

    packed = pack_cache(
        args.path, args.out, levels=args.levels, num_views=args.views, progress=Console()
    )
    size_mb = packed.size_bytes / 1e6
    print_line(f"{args.out}: {packed.num_samples} samples, {size_mb:.1f} MB written and read back")


def import_cache(argv: list[str]) -> None:
    """Make a folder of a packed cache again."""
    parser = build_cache_parser(
        f"{PROG} import",
        "Make the cache in the file PATH, which export has written, a folder again, byte for byte. "
        "Started again after a stop, it goes on.",
        example=f"{PROG} import demo.h5 caches/again",
        place="the packed file",
    )
    parser.add_argument("out", type=read_new_path, metavar="OUT", help="the new folder")
    args = parser.parse_args(argv)
    from kdcache.cache.unpack import unpack_cache

    num_groups, size_bytes = unpack_cache(args.path, args.out, progress=Console())
    written = f"{args.out}: {num_groups} shard groups, {size_bytes / 1e6:.1f} MB written"
    print_line(f"{written}; train on it, or `{PROG} verify {args.out}`")


def _read_levels(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")
