"""Building a cache, and what comes before: forecast, fine-tuned teacher, sample data set."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from kdcache.command import (
    Command,
    add_output,
    list_commands,
    read_count,
    read_number,
    read_output,
)
from kdcache.config import Config, config_to_dict
from kdcache.config.options import Parser, read_given, read_path
from kdcache.config.parser import make_config
from kdcache.errors import KdcacheError, Phrase, SettingsError, describe
from kdcache.machine.process import find_worker
from kdcache.progress import Console, Output, join_lines, print_line, print_text

if TYPE_CHECKING:
    from kdcache.precompute.build import BuildSummary

log = logging.getLogger("kdcache")
PROG = "python -m cache_teacher"


def build(argv: list[str], commands: Mapping[str, Command]) -> None:
    """Build the cache of these settings.

    Args:
        commands: by name, for --help.
    """
    parser = Parser(
        prog=PROG,
        description="Run the teacher once and cache its logits and features. Or:\n\n"
        f"{PROG} COMMAND ..., each with a --help of its own:\n{list_commands(commands)}",
        epilog=f"for example: {PROG} --config configs/demo.yaml --cache.path caches/mine",
        settings=True,
    )
    parser.add_argument(
        "--engine", choices=("processes", "ray"), default="processes",
        help="ray: by tasks of the Ray cluster that is there, else of one started on this machine",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=read_count(1), metavar="N",
        help="tasks of --engine ray (default: one a GPU, else as many as its CPUs hold at "
        "OMP_NUM_THREADS each)",
    )  # fmt: skip
    add_output(parser)
    args = parser.parse_args(argv)
    config, output = make_config(read_given(args)), read_output(args)
    summary = _choose_engine(args.engine, args.workers)(config, progress=output.progress)
    score, path = summary.score, str(config.cache.path)
    output.tell(f"{path}: {format_summary(summary)}")
    if score is not None:
        _tell_unlisted(path, output)
    is_compared = score is None or (not summary.num_samples and _is_compared(config))
    fidelity = None if is_compared else _measure_fidelity(config, output)
    output.conclude({"path": path, **asdict(summary), "fidelity": fidelity})


def format_summary(summary: BuildSummary) -> str:
    """What phase one wrote and, if it was this process that looked, how right the teacher is."""
    written = (
        f"{summary.num_samples} samples, {summary.size_bytes / 1e6:.1f} MB "
        f"written in {summary.time_s:.1f} s"
    )
    if summary.score is None:
        worker = find_worker()
        rest = f"by worker {worker.rank} of {worker.count}; the one that ends last does the rest"
        return f"{written} {rest}"
    return (
        f"{written}; teacher's mIoU {summary.score.val_miou:.4f} on val, "
        f"{summary.score.train_miou:.4f} on training views"
    )


def plan(argv: list[str]) -> None:
    """What the cache of these settings will weigh and take."""
    parser = Parser(
        prog=f"{PROG} plan",
        description="Say what the cache of these settings will weigh and take, from a few samples "
        "that are really made beside cache.path and removed again: at least two shard groups of "
        "about 16 (0.5 GB at 512x512), more only if the disk has plenty of room. A cache that is "
        "already there is not touched.",
        epilog=f"for example: {PROG} plan --config configs/demo.yaml",
        settings=True,
    )
    parser.add_argument(
        "--workers", type=read_count(1), metavar="N", help="what it means for N workers like this"
    )
    parser.add_argument(
        "--bandwidth", type=read_number(0.001, 1e9), metavar="MB_PER_S",
        help="what all workers together can write",
    )  # fmt: skip
    parser.add_argument(
        "--per-hour", type=read_number(0.001, 1e9), metavar="PRICE", help="price of a worker's hour"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    args = parser.parse_args(argv)
    config = make_config(read_given(args))
    facts = _forecast(config)
    if any(given is not None for given in (args.workers, args.bandwidth, args.per_hour)):
        from kdcache.forecast.costs import Fleet, find_work, spread

        fleet = Fleet(
            workers=args.workers or 1, bandwidth_mb_s=args.bandwidth, per_hour=args.per_hour
        )
        facts["fleet"] = spread(find_work(facts), fleet)
    from kdcache.report.phase_one_text import format_forecast

    print_text(json.dumps(facts, indent=2) if args.json else format_forecast(facts))


def fit(argv: list[str]) -> None:
    """Fine-tune a teacher on the data set of these settings."""
    parser = Parser(
        prog=f"{PROG} fit",
        description="Fine-tune a teacher on the data set of these settings; teacher.weights takes "
        "what it writes.",
        epilog=f"for example: {PROG} fit --config configs/camvid.yaml --fit.epochs 10",
        settings=True,
    )
    add_output(parser)
    args = parser.parse_args(argv)
    config, output = make_config(read_given(args)), read_output(args)
    from kdcache.models.fit import fit_teacher

    fitted = fit_teacher(config, progress=output.progress, say=output.say)
    output.tell(join_lines([fitted]))
    output.conclude({**asdict(fitted), "path": str(fitted.path)})


def sample_set(argv: list[str]) -> None:
    """Write the sample data set."""
    parser = Parser(
        prog=f"{PROG} sample-set",
        description="Write the sample data set, 400 drawn images in VOC layout.",
        epilog=f"for example: {PROG} sample-set data/demo",
    )
    parser.add_argument(
        "path", type=read_path, metavar="PATH", help="folder to write VOCdevkit/ into"
    )
    args = parser.parse_args(argv)
    from kdcache.data.sample_set import write_sample_set

    write_sample_set(args.path)
    print_line(f"{args.path}: sample data set written")


def _tell_unlisted(path: str, output: Output) -> None:
    """Say what the cache keeps of samples that were taken out of the lists, or have changed."""
    from kdcache.cache.unlisted import count_unlisted

    if count := count_unlisted(path):
        cure = f"`{PROG} gc {path} --unlisted` removes what is stored of them"
        output.tell(f"{path}: samples in no list: {count}; {cure}")


def _choose_engine(engine: str, workers: int | None) -> Callable[..., BuildSummary]:
    """What builds: this process, perhaps one of several (`kdcache.machine.process`), or Ray.

    Raises: SettingsError if Ray is missing, or `workers` is given without it.
    """
    if engine == "ray":
        return partial(_import_ray_engine(), num_workers=workers)
    if workers is not None:
        cure = "add --engine ray; torchrun and SLURM have numbers of their own"
        expected = Phrase("nothing without --engine ray")
        raise SettingsError(
            describe("command line", field="--workers", found=workers, expected=expected, cure=cure)
        )
    from kdcache.precompute.build import build_cache

    return build_cache


def _import_ray_engine() -> Callable[..., BuildSummary]:
    if os.environ.get("RAY_ADDRESS", "") in ("", "local"):
        # a Ray of our own listens on all interfaces (docs/cluster.md); set before Ray is imported,
        # since later its programs ask for a token that this process does not send
        os.environ.setdefault("RAY_AUTH_MODE", "token")
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


def _is_compared(config: Config) -> bool:
    """Whether the whole cache was compared with the teacher; an interruption can prevent it."""
    from kdcache.cache.manifest import read_manifest

    manifest = read_manifest(config.cache.path)
    compared = manifest.information.get("fidelity", {}).get("views")
    return compared == manifest.count_complete("train")


def _measure_fidelity(config: Config, output: Output) -> dict | None:
    """Compare a few samples with the teacher at the end of phase one, and say what that gave."""
    from kdcache.analysis.fidelity import FEW_SAMPLES, measure_fidelity
    from kdcache.analysis.students import use_built_in
    from kdcache.models.own_code import Trust
    from kdcache.report.phase_one_text import format_fidelity_line

    given = config_to_dict(use_built_in(config))
    weights = {name: given["teacher"][name] for name in ("weights", "device", "batch_size")}
    here = {"teacher": weights, **{name: given[name] for name in ("student", "loss", "train")}}
    try:
        result = measure_fidelity(
            config.cache.path,
            here,
            num_samples=FEW_SAMPLES,
            trust=Trust(teacher=config.teacher.arch),  # the teacher of this command line
            progress=output.progress,
        )
    except KdcacheError as error:  # the cache is complete all the same
        log.warning("the cache is complete, but was not compared with the teacher: %s", error)
        return None
    output.tell(join_lines([format_fidelity_line(result)]))
    for failure in result["failures"]:
        log.warning("%s; `%s fidelity %s` tells more", failure, PROG, config.cache.path)
    return result


def _forecast(config: Config) -> dict:
    """The forecast's facts; what was made for it is removed, also if it is ended."""
    from kdcache.analysis.fidelity import FEW_SAMPLES
    from kdcache.forecast.forecast import forecast_cache

    try:
        return forecast_cache(config, num_compared=FEW_SAMPLES, progress=Console())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing is kept") from None
