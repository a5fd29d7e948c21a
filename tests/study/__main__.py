"""What a cache costs in mIoU, over whole runs and several seeds; stop it at any moment, the same
command goes on.

python -m tests.study --config FILE --out FOLDER                       labels only, three encodings,
the teacher in the loop python -m tests.study --config FILE --out FOLDER --views 1,2,4,8       how
many views: the exact cache, equal steps

Images and labels of `none` and `live` come from the exact cache, which is built for them, too. FILE
names data set, teacher,
student and training as for the two programs. The table has every finished run of FOLDER with these
    settings: best mIoU on val, mean ± standard deviation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kdcache.command import run_command
from kdcache.config.options import Parser
from kdcache.config.parser import make_config, merge
from kdcache.config.typed import read_settings
from kdcache.progress import Console
from kdcache.training.settings import check_crop
from tests.study.runs import ARMS, Study, build_caches, find_rows, run_study
from tests.study.table import render_table

PROG = "python -m tests.study"


def main(argv: list[str]) -> int:
    """Run or finish a study and print its table; returns the exit code."""
    return run_command("study", lambda: _run(_parse(argv)))


def _run(options: argparse.Namespace) -> None:
    study, progress = _make_study(options), Console()
    build_caches(study, progress=progress, say=print)
    run_study(study, progress=progress, say=print)
    table = render_table(find_rows(study))
    (study.folder / "study.md").write_text(table, encoding="utf-8")
    print(table, end="")


def _make_study(options: argparse.Namespace) -> Study:
    """Raises SettingsError for settings that are wrong, before anything is built."""
    given = read_settings(options.config)
    if options.epochs is not None:
        given = merge(given, {"train": {"epochs": options.epochs}})
    config = make_config(given)
    for seed in options.seeds:
        make_config(given, {"train": {"seed": seed}})
    check_crop(options.config, config)
    arms = options.arms or (("exact",) if options.views else ARMS)
    return Study(given, options.out, arms, options.views or (config.augment.views,), options.seeds)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=__doc__)
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML file of settings"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="caches, runs and study.md go there",
    )
    parser.add_argument(
        "--seeds", type=_read_seeds, default=(0, 1, 2), metavar="N[,N]", help="default: 0,1,2"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="default: train.epochs of FILE")
    parser.add_argument(
        "--arms", type=_read_arms, metavar="NAME[,NAME]", help=f"some of {','.join(ARMS)}"
    )
    parser.add_argument(
        "--views", type=_read_views, metavar="N[,N]", help="default: augment.views of FILE"
    )
    return parser.parse_args(argv)


def _read_numbers(text: str, *, least: int) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) >= least for word in words) or len(set(words)) < len(
        words
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of different numbers from {least}, with commas between them"
        )
    return tuple(int(word) for word in words)


def _read_seeds(text: str) -> tuple[int, ...]:
    return _read_numbers(text, least=0)


def _read_views(text: str) -> tuple[int, ...]:
    return _read_numbers(text, least=1)


def _read_arms(text: str) -> tuple[str, ...]:
    words = text.split(",")
    unknown = [word for word in words if word not in ARMS]
    if unknown or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(
            f"{text!r} has {unknown or 'an arm twice'}, expected some of {','.join(ARMS)}"
        )
    return tuple(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
