"""The page of results and README's short table: made from the recorded runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kdcache import disk
from kdcache.config.options import Parser
from tests.study.gain.picture import render_picture
from tests.study.gain.plan import HALVES, Study, read_study
from tests.study.gain.results import RECORDED, read_lines
from tests.study.gain.table import render_goals, render_short, render_tables, render_teachers

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/results.md"
README = ROOT / "README.md"
STUDIES = Path(__file__).parents[1]
NOTHING = "No runs are recorded yet.\n"
_TABLES = re.compile(r"(<!-- (tables|short): (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def run_page(argv: list[str]) -> None:
    """Write docs/results.md and README.md again, tables and pictures, from the recorded runs."""
    Parser(prog="python -m tests.study page", description=run_page.__doc__).parse_args(argv)
    write_page()


def write_page() -> None:
    """Replace tables and pictures; the text between them stays."""
    lines = read_lines(RECORDED)
    for path in (PAGE, README):
        page = path.read_text(encoding="utf-8")
        disk.replace_file(path, fill_page(page, lines).encode())
    for path, picture in make_pictures(lines).items():
        disk.replace_file(path, picture.encode())


def fill_page(page: str, lines: Sequence[dict]) -> str:
    """The page with today's tables between `<!-- tables: DATA HALF -->` and `<!-- end -->`, or the
    short one behind `<!-- short: DATA HALF -->`.
    """

    def fill(found: re.Match) -> str:
        study, own = find_study(found[3]), choose_lines(lines, found[3], half=found[4])
        if found[2] == "short":
            return f"{found[1]}{render_short(study, own)}{found[5]}"
        parts = [_show_picture(study, own), render_goals(study, own)]
        parts += [render_teachers(own), render_tables(study, own) or NOTHING]
        text = "\n".join(filter(None, parts))
        return f"{found[1]}{text}{found[5]}"

    return _TABLES.sub(fill, page)


def make_pictures(lines: Sequence[dict]) -> dict[Path, str]:
    """File -> SVG, for each data set with runs on the half `report`."""
    pictures = {}
    for name in sorted({line["data"] for line in lines}):
        study, own = find_study(name), choose_lines(lines, name, half="report")
        if _has_picture(study, own):
            pictures[PAGE.with_name(f"results_{name}.svg")] = render_picture(study, own)
    return pictures


def _has_picture(study: Study, lines: Sequence[dict]) -> bool:
    return any(line["budget"] == study.budgets[0] for line in lines)


def _show_picture(study: Study, lines: Sequence[dict]) -> str:
    shown = _has_picture(study, lines) and lines[0]["half"] == HALVES[1]
    return f"![mIoU by the number of labels](results_{study.name}.svg)\n" if shown else ""


def choose_lines(lines: Sequence[dict], name: str, *, half: str) -> list[dict]:
    """The runs of one data set on one half of val."""
    return [line for line in lines if line["data"] == name and line["half"] == half]


def find_study(name: str) -> Study:
    """The study of a data set, among the files beside this folder."""
    studies = (read_study(path) for path in sorted(STUDIES.glob("gain*.yaml")))
    return next(study for study in studies if study.name == name)
