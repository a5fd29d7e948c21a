"""`python -m cache_teacher`: phase one, and what belongs to a cache."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cache_teacher import maintain
from cache_teacher.fidelity import fidelity
from cache_teacher.options import read_count, take_options
from cache_teacher.packing import export_cache, import_cache
from cache_teacher.plan import plan
from cache_teacher.view import view
from kdcache.command import check_command, run_command
from kdcache.config import Config, config_to_dict
from kdcache.config.parser import build_parser, make_config, read_given
from kdcache.errors import KdcacheError, Phrase, SettingsError, describe, refuse
from kdcache.machine.workers import find_worker
from kdcache.progress import Console

if TYPE_CHECKING:
    from kdcache.precompute.build import BuildSummary

log = logging.getLogger("kdcache")
OPTIONS = {"--engine": "processes", "--workers": None}
PROG = "python -m cache_teacher"
EPILOG = f"""other commands, as in {PROG} info PATH: info (what a cache holds), view (a page to look at it),
verify (what is damaged), repair (recompute that), gc (remove what killed runs left), export (pack it into one
HDF5 file), import (make a folder of that again), fidelity (compare with the teacher, asked again), sample-set
(write the sample data set); {PROG} plan says what all this will take, {PROG} fit fine-tunes a teacher,
settings as above"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return run_command(f"cache_teacher {argv[0]}", lambda: COMMANDS[argv[0]](argv[1:]))
    return run_command("cache_teacher", lambda: _build(argv))


def _build(argv: list[str]) -> None:
    check_command(PROG, argv, COMMANDS)
    options, words = take_options(argv, OPTIONS)
    parser = build_parser(
        prog=f"{PROG} [--engine ray [--workers N]]",
        description="Ask the teacher once: cache its logits and features. --engine ray: by N actors of the Ray cluster that is "
        "there, else of a Ray begun on this machine; without N one a GPU, or as many as its CPUs hold at OMP_NUM_THREADS each.",
        epilog=EPILOG,
    )
    config = make_config(read_given(parser, words))
    build = _choose_engine(options)
    from kdcache.cache.manifest import read_manifest

    summary = build(config, progress=Console())
    written = f"{summary.num_samples} samples, {summary.size_bytes / 1e6:.1f} MB written in {summary.time_s:.1f} s"
    if summary.score is None:
        worker = find_worker()
        print(
            f"{config.cache.path}: {written} by worker {worker.rank} of {worker.count}; the one that ends last does the rest"
        )
        return
    score = f"teacher's mIoU {summary.score.val_miou:.4f} on val, {summary.score.train_miou:.4f} on training views"
    print(f"{config.cache.path}: {written}; {score}")
    manifest = read_manifest(config.cache.path)
    compared = manifest.information.get("fidelity", {}).get("views")
    if (
        summary.num_samples or compared != manifest.complete_views["train"]
    ):  # or it was interrupted, or others wrote
        _say_fidelity(config)


def _choose_engine(options: dict[str, str | None]) -> Callable[..., BuildSummary]:
    """What builds: this process, perhaps one of several (`kdcache.machine.workers`), or Ray. Raises SettingsError."""
    engine, workers = options["--engine"], options["--workers"]
    if engine not in ("processes", "ray"):
        raise refuse("--engine", engine, "processes or ray")
    if engine == "ray":
        num_workers = read_count(options, "--workers", least=1) if workers is not None else None
        return partial(_import_ray_engine(), num_workers=num_workers)
    if workers is not None:
        expected, cure = (
            Phrase("nothing without --engine ray"),
            "add --engine ray; torchrun and SLURM have numbers of their own",
        )
        raise SettingsError(
            describe("command line", field="--workers", found=workers, expected=expected, cure=cure)
        )
    from kdcache.precompute.build import build_cache

    return build_cache


def _import_ray_engine() -> Callable[..., BuildSummary]:
    try:
        from kdcache.precompute.ray_engine import build_with_ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        expected, cure = Phrase("Ray to be installed"), "`pip install 'kdcache[ray]'`"
        raise SettingsError(
            describe(PROG, field="--engine", found="ray", expected=expected, cure=cure)
        ) from None
    return build_with_ray


def _say_fidelity(config: Config) -> None:
    """A small measurement at the end of phase one."""
    from kdcache.analysis.fidelity import FEW_SAMPLES, measure_fidelity
    from kdcache.report.findings import format_fidelity_line

    given = config_to_dict(config)
    here = {
        "teacher": {name: given["teacher"][name] for name in ("weights", "device", "batch_size")}
    }
    try:
        result = measure_fidelity(
            config.cache.path, here, num_samples=FEW_SAMPLES, progress=Console()
        )
    except KdcacheError as error:  # the cache is whole all the same
        log.warning("the cache is complete, but was not compared with the teacher: %s", error)
        return
    print(format_fidelity_line(result))
    for failure in result["failures"]:
        log.warning("%s; `%s fidelity %s` tells more", failure, PROG, config.cache.path)


def _fit(argv: list[str]) -> None:
    parser = build_parser(
        prog=f"{PROG} fit", description="Fine-tune a teacher on the configured data set."
    )
    config = make_config(read_given(parser, argv))
    from kdcache.models.fit import fit_teacher

    fit_teacher(config, progress=Console(), say=print)


def _sample_set(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f"{PROG} sample-set", description="Write the sample data set in VOC layout."
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder to write VOCdevkit/ into")
    args = parser.parse_args(argv)
    from kdcache.data.sample_set import write_sample_set

    write_sample_set(args.path)
    print(f"{args.path}: sample data set written")


COMMANDS = {
    "plan": plan,
    "info": maintain.info,
    "view": view,
    "verify": maintain.verify,
    "repair": maintain.repair,
    "gc": maintain.gc,
    "export": export_cache,
    "import": import_cache,
    "fidelity": fidelity,
    "fit": _fit,
    "sample-set": _sample_set,
}
