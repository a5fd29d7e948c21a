"""Fidelity of a cache: ask the teacher again about stored images, compare, and judge by limits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from kdcache.analysis.agreement import AnswerErrors, GradientErrors, ScoreErrors
from kdcache.analysis.students import (
    TRAINED,
    CacheWithTeacher,
    make_students,
    open_with_teacher,
)
from kdcache.cache.facts import list_devices
from kdcache.cache.lifecycle import add_information
from kdcache.cache.manifest import read_manifest
from kdcache.errors import CacheError, TeacherError, one_line
from kdcache.models.own_code import Trust
from kdcache.progress import Progress, Silent
from kdcache.storage import Storage, open_storage
from kdcache.training.batches import Batch
from kdcache.training.loop import Learner
from kdcache.training.order import split_batches

log = logging.getLogger("kdcache")
FEW_SAMPLES = 8  # compared at the end of phase one
FAITHFULNESS = ("float16", "int8", "lowrank")  # most faithful first


@dataclass(frozen=True)
class Limit:
    """Least cosine of gradients, and largest relative change of the loss (None: any)."""

    grad_cos: float
    loss_rel: float | None = None


# How faithful each encoding must be, measured by the student after some steps (docs/caches.md says
# what it means). The smaller a loss, the more of it rounding is: loss_rel 1e-7 to 2e-5 were seen.
EXACT = Limit(grad_cos=0.999999, loss_rel=1e-4)
# With autocast or on a GPU even the teacher differs if it is asked again.
EXACT_NOT_FLOAT32 = Limit(grad_cos=0.999, loss_rel=1e-2)
LIMITS = {
    "kd": {"float16": EXACT, "int8": Limit(0.9999), "lowrank": Limit(0.9999)},
    "feature": {"float16": EXACT, "int8": Limit(0.9999), "lowrank": Limit(0.995)},
}
# Least mean cosine of the channels at a position, for each answer by itself: the gradient of all
# levels together hides one that is lost. CamVid's compact keeps 0.966 to 0.98; eight coefficients
# for layer4 kept 0.875, and the gradients were within their limit.
LEAST_COSINES = {"float16": 0.999999, "int8": 0.999, "lowrank": 0.9}
NOT_FLOAT32_COSINE = 0.999


def measure_fidelity(
    place: Storage | str | Path,
    given: dict,
    *,
    num_samples: int = 32,
    seed: int = 0,
    run: Path | None = None,
    trust: Trust | None = None,
    progress: Progress | None = None,
) -> dict:
    """Compare cached and live answers of random (view, sample), and the gradients they give.

    Args:
        given: settings that differ from those the cache was built with: where the weights are now,
            the device.
        num_samples: at least 2. seed: chooses the samples. run: folder of a run from this cache,
            whose student is compared, too. trust: whether a student of the user's that the run
            names, or a teacher of the user's, may be imported (default: no); a student that
            `given` names is.

    Returns: JSON values, also stored in the manifest; `failures` is empty if every limit is kept.
    Raises: CacheError, TeacherError, SettingsError, TrainingError.
    """
    root = open_storage(place)
    progress, manifest = progress or Silent(), read_manifest(root)
    opened = open_with_teacher(root, manifest, given, trust=trust)
    students = make_students(opened, run=run, trust=trust, progress=progress)
    places = opened.choose_places(num_samples, seed)
    answers, gradients = _compare(opened, students, places, progress)
    result = {"samples": len(places), "seed": seed, **_judge(opened, answers, gradients)}
    _store(root, result)
    return result


def _compare(
    opened: CacheWithTeacher,
    students: Mapping[str, Learner],
    places: list[tuple[int, int]],
    progress: Progress,
) -> tuple[dict, dict]:
    """Errors of each answer, and of each term of each student, as JSON values."""
    temperature, gradients = opened.config.loss.temperature, {}
    for name, learner in students.items():
        terms = [term for term in opened.terms if term == "kd" or learner.loss.align]
        gradients[name] = GradientErrors(learner, terms=terms, temperature=temperature)
    errors = {name: AnswerErrors(opened.reader.encodings[name]) for name in opened.names}
    scores = ScoreErrors(temperature)
    with progress.start("comparing", total=len(places), unit="samples") as bar:
        for cached, live in _ask_again(opened, places):
            for name, error in errors.items():
                decoded = opened.targets.make(name, cached.arrays).decode()
                error.add(decoded, live.arrays[name])
                if name == "logits":
                    scores.add(decoded, live.arrays[name])
            for student in gradients.values():
                student.add(cached, live, opened.targets)
            bar.advance(len(cached.sample_ids))
    answers = {name: error.to_dict() for name, error in errors.items()}
    answers["logits"] |= scores.to_dict()
    return answers, {
        name: {term: errors.to_dict() for term, errors in student.terms.items()}
        for name, student in gradients.items()
    }


def _ask_again(
    opened: CacheWithTeacher, places: list[tuple[int, int]]
) -> Iterator[tuple[Batch, Batch]]:
    """Batches as cached, and the same with live float32 answers.

    Raises TeacherError if a live answer is not finite.
    """
    size = max(opened.config.teacher.batch_size, 2)  # BatchNorm needs two samples
    for cached in opened.make_batches(size).read(split_batches(places, size, join_single=True)):
        found = opened.teacher(cached.arrays["image"])
        answer = {name: value.clone() for name, value in found.items()}
        for name, value in answer.items():
            if not torch.isfinite(value).all():
                raise TeacherError(
                    f"samples {', '.join(cached.sample_ids)}: teacher's {name} is not finite, "
                    "expected finite values; check its weights"
                )
        plain = {name: cached.arrays[name] for name in ("image", "label")}
        yield cached, Batch({**plain, **answer}, cached.sample_ids)


def _judge(opened: CacheWithTeacher, answers: dict, students: dict) -> dict:
    """Measurements, limits, and the measurements beyond them, as JSON values."""
    teacher, device = opened.config.teacher, opened.teacher.device
    wrote = list_devices(opened.manifest.information)
    on_cpus = device.type == "cpu" and set(wrote) <= {"cpu"}  # who wrote counts as who compares
    exact = teacher.precision == "float32" and on_cpus
    kinds = {name: encoding.kind for name, encoding in opened.reader.encodings.items()}
    limits, least = find_limits(kinds, exact=exact), find_least_cosines(kinds, exact=exact)
    return {
        "date": date.today().isoformat(),
        "device": str(device),
        **({} if set(wrote) <= {"cpu"} else {"written_on": wrote}),
        "precision": teacher.precision,
        "views": opened.reader.num_views,
        "planned_views": opened.manifest.listed["train"].num_views,
        "answers": answers,
        "students": students,
        "limits": {term: vars(limit) for term, limit in limits.items()},
        "least_cosines": least,
        "judged": TRAINED,
        "failures": [*find_blurred(answers, least), *find_failures(students[TRAINED], limits)],
    }


def _store(root: Storage, result: dict) -> None:
    """Store the result in the manifest; warn if that cannot be written."""
    try:
        add_information(root, {"fidelity": result})
    except (CacheError, ValueError) as error:
        log.warning("%s: the result is not kept in the cache (%s)", root, one_line(error))


def find_limits(kinds: dict[str, str], *, exact: bool) -> dict[str, Limit]:
    """Term -> limit, by the least faithful encoding that the term reads.

    Args:
        kinds: logits and levels -> kind of encoding. exact: whether the teacher gives the same
            answer again (float32 on a CPU, where a CPU wrote, too).
    """
    levels = [kind for name, kind in kinds.items() if name != "logits"]
    limits = {}
    for term, used in {"kd": [kinds["logits"]], "feature": levels}.items():
        if used:
            limit = LIMITS[term][max(used, key=FAITHFULNESS.index)]
            limits[term] = limit if exact else _loosen(limit)
    return limits


def _loosen(limit: Limit) -> Limit:
    """No stricter than EXACT_NOT_FLOAT32."""
    loss_rel = None if limit.loss_rel is None else max(limit.loss_rel, EXACT_NOT_FLOAT32.loss_rel)
    return Limit(min(limit.grad_cos, EXACT_NOT_FLOAT32.grad_cos), loss_rel)


def find_least_cosines(kinds: dict[str, str], *, exact: bool) -> dict[str, float]:
    """Logits and levels -> least cosine; arguments as for `find_limits`."""
    least = {name: LEAST_COSINES[kind] for name, kind in kinds.items()}
    if exact:
        return least
    return {name: min(cosine, NOT_FLOAT32_COSINE) for name, cosine in least.items()}


def find_blurred(answers: dict[str, dict], least: dict[str, float]) -> list[str]:
    """A sentence for each answer below its least cosine, or NaN."""
    return [
        f"cached {name} have a cosine of {answers[name]['cosine']:.7f} with live ones, "
        f"expected {cosine} or more"
        for name, cosine in least.items()
        if not answers[name]["cosine"] >= cosine
    ]


def find_failures(terms: dict[str, dict], limits: dict[str, Limit]) -> list[str]:
    """A sentence for each gradient or loss beyond its limit, or NaN.

    Args:
        terms: term -> `grad_cos` and `loss_rel`.
    """
    failures = []
    for term, limit in limits.items():
        cosine, loss_rel = terms[term]["grad_cos"], terms[term]["loss_rel"]
        if not cosine >= limit.grad_cos:
            failures.append(
                f"{term} gradient's cosine is {cosine:.7f}, expected {limit.grad_cos} or more"
            )
        if limit.loss_rel is not None and not loss_rel <= limit.loss_rel:
            failures.append(
                f"{term} loss differs by {loss_rel:.1e} of itself, "
                f"expected {limit.loss_rel} or less"
            )
    return failures
