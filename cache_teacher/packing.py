"""`python -m cache_teacher export|import`: a cache as one HDF5 file, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from cache_teacher.maintain import PROG, path_parser
from kdcache.progress import Console


def export_cache(argv: list[str]) -> None:
    """Pack a cache into one file."""
    parser = path_parser(
        "export",
        "Pack the cache at PATH, or some levels and views of it, into one HDF5 file, which trains like the cache. It takes its "
        "name once every byte was written, flushed and read back.",
    )
    parser.add_argument("out", type=_read_out, metavar="OUT.h5", help="the new file")
    parser.add_argument(
        "--levels",
        type=_read_levels,
        metavar="LEVEL,...",
        help="some of low,mid,high, or none (default: all that are cached)",
    )
    parser.add_argument(
        "--views", type=_read_count, metavar="N", help="the first N training views (default: all)"
    )
    args = parser.parse_args(argv)
    from kdcache.cache.pack import pack_cache

    packed = pack_cache(
        args.path, args.out, levels=args.levels, num_views=args.views, progress=Console()
    )
    print(
        f"{args.out}: {packed.num_samples} samples, {packed.size_bytes / 1e6:.1f} MB written and read back"
    )


def import_cache(argv: list[str]) -> None:
    """Make a folder of a packed cache."""
    parser = path_parser(
        "import",
        "Make the cache in the file PATH, which export has written, a folder again, byte for byte. Begun again, it goes on.",
    )
    parser.add_argument("out", type=_read_out, metavar="OUT", help="the new folder")
    args = parser.parse_args(argv)
    from kdcache.cache.unpack import unpack_cache

    num_groups, size_bytes = unpack_cache(args.path, args.out, progress=Console())
    print(
        f"{args.out}: {num_groups} shard groups, {size_bytes / 1e6:.1f} MB written; train on it, or `{PROG} verify {args.out}`"
    )


def _read_out(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no path of this machine; write there, then copy it"
        )
    return Path(text)


def _read_levels(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _read_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of views from 1 to 10000")
    return int(text)
