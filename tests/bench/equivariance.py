"""What train-time flips and crops of cached answers miss: the teacher asked about moved images, against moved cached answers.

`python -m tests.bench.equivariance CACHE --teacher.weights FILE [--num-samples 24] [--crop N]`: prints a Markdown table. The
cache is only read. Errors are those of `cache_teacher fidelity`: cosine of a position's features, KL and agreement of the scores,
cosine of a student's gradients, which is 1 where the moved cache teaches exactly what the teacher would.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdcache.cache.manifest import read_manifest
from kdcache.checks import as_hw
from kdcache.config import STRIDE
from kdcache.fidelity.answers import AnswerErrors, ScoreErrors
from kdcache.fidelity.gradients import Probe
from kdcache.fidelity.setting import choose_places, make_batches, open_setting
from kdcache.fidelity.students import make_students
from kdcache.report.progress import Silent
from kdcache.training.augment import Augmentation
from kdcache.training.batches import Batch

BORDER_PX = 32  # at each side of a crop, where the teacher misses most of what it saw in the whole view


@dataclass
class Case:
    """One way to move batches, and what it misses, over all samples."""

    title: str
    augmentation: Augmentation | None
    answers: dict[str, AnswerErrors]
    scores: ScoreErrors
    inner: ScoreErrors
    probes: dict[str, Probe]

    def row(self) -> str:
        """Of the table."""
        answers, scores, inner = {k: e.to_dict() for k, e in self.answers.items()}, *_dicts(self.scores, self.inner)
        felt = [probe.felt[term].to_dict() for term in ("kd", "feature") for probe in self.probes.values()]
        cells = [*(f"{error['cosine']:.4f}" for name, error in answers.items() if name != "logits")]
        cells += [f"{scores['kl']:.2g}", f"{scores['agreement']:.3f}", f"{inner['agreement']:.3f}"]
        cells += [f"{term['grad_cos_mean']:.4f} ({term['grad_cos']:.4f})" for term in felt]
        return " | ".join([self.title, *cells])


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--teacher.weights", dest="weights", required=True)
    parser.add_argument("--num-samples", type=int, default=24)
    parser.add_argument(
        "--crop", type=int, help="pixels, a multiple of 16 above 64 (default: three quarters of the view)"
    )
    args = parser.parse_args(argv)
    manifest = read_manifest(args.cache)
    setting = open_setting(args.cache, manifest, {"teacher": {"weights": args.weights}})
    view_hw = setting.config.dataset.size_hw
    crop_hw = as_hw(args.crop) if args.crop else tuple(3 * px // 4 // STRIDE * STRIDE for px in view_hw)
    if any(crop % STRIDE or not 2 * BORDER_PX < crop <= view for crop, view in zip(crop_hw, view_hw, strict=True)):
        parser.error(f"--crop is {crop_hw}, expected multiples of {STRIDE} above {2 * BORDER_PX} and at most {view_hw}")
    students = make_students(setting, run=None, progress=Silent())
    cases = _make_cases(setting, students, crop_hw)
    places = choose_places(setting.reader, args.num_samples, 0)
    size = setting.config.teacher.batch_size
    batches = [places[start : start + size] for start in range(0, len(places), size)]
    for batch in make_batches(setting, size).read(batches):
        for case in cases:
            _compare(setting, case, batch)
    print(f"{len(places)} samples of {' x '.join(map(str, setting.config.dataset.size_hw))} pixels\n")
    for line in _table(setting, cases):
        print(f"| {line} |")


def _make_cases(setting: object, students: dict, crop_hw: tuple[int, int]) -> list[Case]:
    config, view_hw = setting.config, setting.config.dataset.size_hw
    ways = {
        "as it is": None,
        "flip": Augmentation(seed=0, flip=1.0, view_hw=view_hw, crop_hw=view_hw),
        f"crop {crop_hw[0]} x {crop_hw[1]}": Augmentation(seed=0, flip=0.0, view_hw=view_hw, crop_hw=crop_hw),
    }
    temperature, terms = config.loss.temperature, ["kd", "feature"]
    return [
        Case(
            title,
            way,
            {name: AnswerErrors(setting.reader.encodings[name]) for name in setting.names},
            ScoreErrors(temperature),
            ScoreErrors(temperature),
            {name: Probe(learner, terms=terms, temperature=temperature) for name, learner in students.items()},
        )
        for title, way in ways.items()
    ]


def _compare(setting: object, case: Case, batch: Batch) -> None:
    """moved(cached) against teacher(moved image)."""
    cached = case.augmentation.apply(batch, epoch=0) if case.augmentation else batch
    answer = {name: value.clone() for name, value in setting.teacher(cached.arrays["image"]).items()}
    plain = {name: cached.arrays[name] for name in ("image", "label")}
    for name, error in case.answers.items():
        error.add(setting.targets.make(name, cached.arrays).decode(), answer[name])
    scores, cells = setting.targets.make("logits", cached.arrays).decode(), BORDER_PX // 8
    case.scores.add(scores, answer["logits"])
    case.inner.add(_inner(scores, cells), _inner(answer["logits"], cells))
    for probe in case.probes.values():
        probe.add(cached, Batch({**plain, **answer}, cached.sample_ids), setting.targets)


def _inner(x_NCHW: Tensor, cells: int) -> Tensor:
    return x_NCHW[:, :, cells:-cells, cells:-cells]


def _table(setting: object, cases: list[Case]) -> Iterator[str]:
    students = list(cases[0].probes)
    heads = ["", *(f"cosine {name}" for name in setting.names if name != "logits"), "KL", "agreement"]
    heads += [f"agreement {BORDER_PX} px inside"]
    heads += [f"gradient {term}, {name}" for term in ("kd", "feature") for name in students]
    yield " | ".join(heads)
    yield "|".join(["---"] * len(heads))
    yield from (case.row() for case in cases)


def _dicts(*errors: ScoreErrors) -> list[dict]:
    return [error.to_dict() for error in errors]


if __name__ == "__main__":
    main()
