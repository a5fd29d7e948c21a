"""`python -m cache_teacher view PATH`: look at a cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from cache_teacher.maintain import path_parser
from kdcache.cache.layout import SPLITS
from kdcache.progress import Console

NUM_SAMPLES, MOST_SAMPLES = 50, 1000
MOST_NAMED = 5


def view(argv: list[str]) -> None:
    """Write a gallery."""
    parser = path_parser(
        "view",
        "Write a gallery of the cache at PATH, one HTML file: images, labels and what the teacher said of them, for the "
        "samples on which labels and teacher differ most and least; and what the teacher calls each class.",
    )
    parser.epilog = (
        "for example: python -m cache_teacher view caches/demo --split train --samples 20"
    )
    parser.add_argument(
        "--out",
        type=_read_out,
        metavar="FILE.html",
        help="where (default: PATH's name and the split, in this folder)",
    )
    parser.add_argument(
        "--samples",
        type=_read_count,
        default=NUM_SAMPLES,
        metavar="N",
        help=f"how many are shown ({NUM_SAMPLES})",
    )
    parser.add_argument(
        "--split",
        choices=sorted(SPLITS, reverse=True),
        default="val",
        help="val, or train in its views",
    )
    args = parser.parse_args(argv)
    from kdcache.report.gallery import write_gallery

    out = args.out or Path(f"{args.path.short_name}-{args.split}.html")
    try:
        done = write_gallery(
            args.path, out, split=args.split, num_samples=args.samples, progress=Console()
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing is kept") from None
    misnamed = (
        f"; mostly called something else: {_list_names(done.misnamed)}" if done.misnamed else ""
    )
    print(
        f"{out}: {done.num_shown} samples shown, {done.num_looked_at} of {done.num_samples} looked at, "
        f"{done.size_bytes / 1e6:.1f} MB{misnamed}"
    )


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more classes" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _read_out(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no path of this machine; write there, then copy it"
        )
    return Path(text)


def _read_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_SAMPLES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of samples from 1 to {MOST_SAMPLES}"
        )
    return int(text)
