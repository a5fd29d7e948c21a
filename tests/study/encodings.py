"""What a cache costs in mIoU, over whole runs and several seeds; stop it at any moment, the same
command goes on.

python -m tests.study encodings --config FILE --out FOLDER
    labels only, three encodings, the teacher in the loop
python -m tests.study encodings --config FILE --out FOLDER --views 1,2,4,8
    how many views: the exact cache, equal steps

Images and labels of `none` and `live` come from the exact cache, which is built for them, too. FILE
names data set, teacher, student and training as for the two programs. The table has every finished
run of FOLDER with these settings: best mIoU on val, mean ± standard deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcache.config.options import Parser
from kdcache.config.parser import make_config, merge, read_settings
from kdcache.progress import Console
from kdcache.training.settings import check_crop
from tests.study.runs import ARMS, Study, build_caches, find_rows, run_study
from tests.study.table import render_table
from tests.study.words import read_names, read_numbers

PROG = "python -m tests.study encodings"


def run_encodings(argv: list[str]) -> None:
    """Run or finish the study of encodings, and print its table."""
    options = _parse(argv)
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
        "--seeds", type=read_numbers(0), default=(0, 1, 2), metavar="N[,N]", help="default: 0,1,2"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="default: train.epochs of FILE")
    parser.add_argument(
        "--arms", type=read_names(ARMS), metavar="NAME[,NAME]", help=f"some of {','.join(ARMS)}"
    )
    parser.add_argument(
        "--views", type=read_numbers(1), metavar="N[,N]", help="default: augment.views of FILE"
    )
    return parser.parse_args(argv)
