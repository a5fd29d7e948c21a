"""What a cache gains in mIoU: labels only against the same student with the teacher's answers.

python -m tests.study gain --root FOLDER --teacher FILE --out FOLDER

It trains the grid of the study's file on one half of val, the most important runs first, and prints
the table of what is finished. The same command goes on after a stop; started twice, the two share
the runs. Settings are chosen on the half `choose`, figures are those of `report`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from kdcache.command import read_count
from kdcache.config.options import Parser
from kdcache.errors import SettingsError
from kdcache.progress import Console
from kdcache.training.run_folder import is_finished
from tests.study.gain.jobs import Job, Place, Selection, plan_jobs
from tests.study.gain.page import write_page
from tests.study.gain.plan import HALVES, Study, read_study
from tests.study.gain.points import read_lists
from tests.study.gain.results import find_unrecorded, read_lines, record
from tests.study.gain.table import render_goals, render_tables
from tests.study.gain.teachers import find_teachers
from tests.study.gain.train import run_jobs
from tests.study.words import read_names, read_numbers

PROG = "python -m tests.study gain"
DEFAULT = Path(__file__).parents[1] / "gain.yaml"


def run_gain(argv: list[str]) -> int:
    """Run or finish the gain study, or show what it has; returns the exit code."""
    options, study = parse_gain(argv)
    if options.table or options.record:
        lines = read_lines(Place(options.out, options.half, {}).results)
        if options.record:
            record(lines)
            write_page()
        _show(study, lines)
        return 0
    return _run(study, options, argv)


def _run(study: Study, options: argparse.Namespace, argv: list[str]) -> int:
    lists = read_lists(study, _need(options.root, "--root", "the folder that holds VOCdevkit"))
    teachers = find_teachers(study, options.teacher or [], options.out)
    place = Place(options.out, options.half, teachers)
    every_job = plan_jobs(study, options.half, lists)
    wanted = Selection(options.only, options.labels, options.seeds, options.budget)
    jobs = [job for job in every_job if wanted.has(job)]
    told = {job.cached for job in jobs if job.cached not in teachers}
    for name in sorted(told):
        print(f"left out: runs of teacher {name}, which has no file; give --teacher {name}=FILE")
    jobs = [job for job in jobs if job.cached not in told]
    if options.unrecorded:
        jobs = find_unrecorded(study, jobs, place=place)
    if options.dry_run:
        _list_jobs(study, jobs, place, num_processes=options.jobs)
        return 0
    torch.set_num_threads(1)
    others = [_start_other(argv) for _ in range(options.jobs - 1)]
    try:
        work = {"place": place, "lists": lists, "every_job": every_job}
        failed = run_jobs(study, jobs, **work, progress=Console(), say=_say)
        codes = [other.wait() for other in others]
    finally:
        for other in others:
            other.terminate()
    _show(study, read_lines(place.results))
    return 1 if failed or any(codes) else 0


def _show(study: Study, lines: Sequence[dict]) -> None:
    print(
        "\n".join(filter(None, [render_goals(study, lines), render_tables(study, lines)])), end=""
    )


def _list_jobs(study: Study, jobs: Sequence[Job], place: Place, *, num_processes: int) -> None:
    """Print each run that is left, with the minutes it will take."""
    lines, total_min = read_lines(place.results), 0.0
    step_s = statistics.median([x["seconds"] / x["steps"] for x in lines] or [study.step_s])
    left = [job for job in jobs if not is_finished(place.run_folder(job))]
    for job in left:
        minutes = job.steps * step_s / 60
        total_min += minutes
        print(f"{minutes:6.1f} min  {job.name}")
    finished, hours = len(jobs) - len(left), total_min / 60 / num_processes
    print(
        f"{len(left)} runs are left of {len(jobs)}, {finished} are finished; about {hours:.1f} h "
        f"in {num_processes} processes of one core, caches and teachers not counted"
    )


def _start_other(argv: Sequence[str]) -> subprocess.Popen:
    """The same command as one process more; it shows its errors, and no table."""
    words, skip = [], False
    for word in argv:
        skip, skipped = word == "--jobs", skip
        if not (skip or skipped or word.startswith("--jobs=")):
            words.append(word)
    command = [sys.executable, "-m", "tests.study", "gain", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _say(text: str) -> None:
    print(text, flush=True)


def _need(value: Path | None, name: str, expected: str) -> Path:
    if value is None:
        raise SettingsError(f"{name} is missing, expected {expected}; --help explains it")
    return value


def parse_gain(argv: list[str]) -> tuple[argparse.Namespace, Study]:
    """The options, and the study, whose arms are choices of theirs. Raises SettingsError."""
    path = _find_config(argv)
    study = read_study(path)
    parser = Parser(prog=PROG, description=__doc__)
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        default=path,
        metavar="FILE",
        help="default: tests/study/gain.yaml",
    )
    add("--root", type=Path, metavar="FOLDER", help="the folder that holds VOCdevkit")
    add("--teacher", action="append", metavar="[NAME=]FILE",
        help="weights of the first teacher, or of the one with that name; {labels} in FILE is the "
        "number of labels; may be repeated")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FOLDER", help="data, caches and runs go there")
    add("--half", choices=HALVES, default="report", help="of val (default: report)")
    add("--only", type=read_names(tuple(study.arms)), metavar="ARM[,ARM]",
        help=f"some of {','.join(study.arms)}")  # fmt: skip
    add("--labels", type=read_numbers(1), metavar="N[,N]", help="numbers of labels")
    add("--seeds", type=read_numbers(0), metavar="N[,N]", help="seeds")
    add("--budget", type=read_numbers(1), metavar="N[,N]", help="steps")
    add("--jobs", type=read_count(1, 256), default=1, metavar="N", help="processes (default: 1)")
    add("--unrecorded", action="store_true",
        help="leave out runs whose results tests/study has already")  # fmt: skip
    add("--dry-run", action="store_true", help="list the runs that are left, with their minutes")
    add("--table", action="store_true", help="print the table of finished runs")
    add("--record", action="store_true",
        help="also keep their results in tests/study and docs/results.md")  # fmt: skip
    return parser.parse_args(argv), study


def _find_config(argv: Sequence[str]) -> Path:
    """The file that the command line names; its other words are not looked at."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name == "--config" and (value or following):
            return Path(value or following)
    return DEFAULT
