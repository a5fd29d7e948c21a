"""What train-time flips and crops of cached answers miss: the teacher asked about moved images,
against moved cached answers.

`python -m tests.bench.equivariance CACHE --teacher.weights FILE [--num-samples 24] [--crop N]`:
prints a Markdown table. The
cache is only read. Errors are those of `cache_teacher fidelity`: cosine of a position's features,
    KL and agreement of the scores, cosine of a student's gradients, which is 1 where the moved
    cache teaches exactly what the teacher would. A command that cannot go on ends in one line and a
    code, as those of kdcache do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdcache.analysis.agreement import AnswerErrors, GradientErrors, ScoreErrors
from kdcache.analysis.students import (
    CacheWithTeacher,
    make_students,
    open_with_teacher,
)
from kdcache.cache.manifest import read_manifest
from kdcache.command import run_command
from kdcache.config import STRIDE
from kdcache.config.names import as_hw
from kdcache.progress import Silent
from kdcache.training.batches import Augmentation, Batch
from kdcache.training.loop import Learner
from kdcache.training.order import split_batches

BORDER_PX = (
    32  # at each side of a crop, where the teacher misses most of what it saw in the whole view
)


@dataclass
class Case:
    """One way to move batches, and what it misses, over all samples."""

    title: str
    augmentation: Augmentation | None
    answers: dict[str, AnswerErrors]
    scores: ScoreErrors
    inner: ScoreErrors
    probes: dict[str, GradientErrors]

    def row(self, terms: list[str]) -> str:
        """Of the table; `terms` of the loss."""
        answers = {name: error.to_dict() for name, error in self.answers.items()}
        scores, inner = self.scores.to_dict(), self.inner.to_dict()
        felt = [probe.terms[term].to_dict() for term in terms for probe in self.probes.values()]
        cells = [f"{error['cosine']:.4f}" for name, error in answers.items() if name != "logits"]
        cells += [f"{scores['kl']:.2g}", f"{scores['agreement']:.3f}", f"{inner['agreement']:.3f}"]
        cells += [f"{term['grad_cos_mean']:.4f} ({term['grad_cos']:.4f})" for term in felt]
        return " | ".join([self.title, *cells])


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, print; returns the exit code."""
    return run_command("equivariance", lambda: _measure(_build_parser(), argv))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--teacher.weights", dest="weights", required=True)
    parser.add_argument(
        "--num-samples", type=_read_count, default=24, help="2 or more (default: 24)"
    )
    crop = "pixels, a multiple of 16 above 64 (default: three quarters of the view)"
    parser.add_argument("--crop", type=int, help=crop)
    return parser


def _read_count(text: str) -> int:
    """Raises ArgumentTypeError for what is no number of samples; BatchNorm needs two."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"it is {text!r}, expected a whole number, 2 or more")
    return int(text)


def _measure(parser: argparse.ArgumentParser, argv: list[str] | None) -> None:
    """Raises CacheError, TeacherError, SettingsError; SystemExit for wrong usage."""
    args = parser.parse_args(argv)
    opened = open_with_teacher(
        args.cache, read_manifest(args.cache), {"teacher": {"weights": args.weights}}
    )
    view_hw = opened.config.dataset.size_hw
    crop_hw = (
        tuple(3 * px // 4 // STRIDE * STRIDE for px in view_hw)
        if args.crop is None
        else as_hw(args.crop)
    )
    if any(
        crop % STRIDE or not 2 * BORDER_PX < crop <= view
        for crop, view in zip(crop_hw, view_hw, strict=True)
    ):
        parser.error(
            f"--crop is {crop_hw}, expected multiples of {STRIDE} above {2 * BORDER_PX} "
            f"and at most {view_hw}"
        )
    cases = _make_cases(opened, make_students(opened, run=None, progress=Silent()), crop_hw)
    places = opened.choose_places(args.num_samples, 0)
    size = max(opened.config.teacher.batch_size, 2)  # BatchNorm cannot do with one
    for batch in opened.make_batches(size).read(split_batches(places, size, join_single=True)):
        for case in cases:
            _compare(opened, case, batch)
    print(f"{len(places)} samples of {' x '.join(map(str, view_hw))} pixels\n")
    for line in _table(opened, cases):
        print(f"| {line} |")


def _make_cases(
    opened: CacheWithTeacher, students: dict[str, Learner], crop_hw: tuple[int, int]
) -> list[Case]:
    config, view_hw = opened.config, opened.config.dataset.size_hw
    ways = {
        "as it is": None,
        "flip": Augmentation(seed=0, flip=1.0, view_hw=view_hw, crop_hw=view_hw),
        f"crop {crop_hw[0]} x {crop_hw[1]}": Augmentation(
            seed=0, flip=0.0, view_hw=view_hw, crop_hw=crop_hw
        ),
    }
    temperature = config.loss.temperature
    return [
        Case(
            title,
            way,
            {name: AnswerErrors(opened.reader.encodings[name]) for name in opened.names},
            ScoreErrors(temperature),
            ScoreErrors(temperature),
            {
                name: GradientErrors(learner, terms=opened.terms, temperature=temperature)
                for name, learner in students.items()
            },
        )
        for title, way in ways.items()
    ]


def _compare(opened: CacheWithTeacher, case: Case, batch: Batch) -> None:
    """moved(cached) against teacher(moved image)."""
    cached = case.augmentation.apply(batch, epoch=0) if case.augmentation else batch
    answer = {name: value.clone() for name, value in opened.teacher(cached.arrays["image"]).items()}
    plain = {name: cached.arrays[name] for name in ("image", "label")}
    for name, error in case.answers.items():
        error.add(opened.targets.make(name, cached.arrays).decode(), answer[name])
    scores, cells = opened.targets.make("logits", cached.arrays).decode(), BORDER_PX // 8
    case.scores.add(scores, answer["logits"])
    case.inner.add(_inner(scores, cells), _inner(answer["logits"], cells))
    for probe in case.probes.values():
        probe.add(cached, Batch({**plain, **answer}, cached.sample_ids), opened.targets)


def _inner(x_NCHW: Tensor, cells: int) -> Tensor:
    return x_NCHW[:, :, cells:-cells, cells:-cells]


def _table(opened: CacheWithTeacher, cases: list[Case]) -> Iterator[str]:
    students = list(cases[0].probes)
    heads = [
        "",
        *(f"cosine {name}" for name in opened.names if name != "logits"),
        "KL",
        "agreement",
    ]
    heads += [f"agreement {BORDER_PX} px inside"]
    heads += [f"gradient {term}, {name}" for term in opened.terms for name in students]
    yield " | ".join(heads)
    yield "|".join(["---"] * len(heads))
    yield from (case.row(opened.terms) for case in cases)


if __name__ == "__main__":
    sys.exit(main())
