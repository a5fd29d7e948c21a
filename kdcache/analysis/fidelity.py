"""Ask the teacher again about stored images, and compare what it says with what is cached."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from kdcache.analysis.agreement import AnswerErrors, Probe, ScoreErrors
from kdcache.analysis.students import (
    TRAINED,
    Setting,
    choose_places,
    make_batches,
    make_students,
    open_setting,
)
from kdcache.cache.folder import add_information
from kdcache.cache.manifest import read_manifest
from kdcache.errors import CacheError, TeacherError, one_line
from kdcache.progress import Progress, Silent
from kdcache.training.batches import Batch, split_batches

log = logging.getLogger("kdcache")


FEW_SAMPLES = 8  # what phase one compares at its end


def measure_fidelity(
    root: Path,
    given: dict,
    *,
    num_samples: int = 32,
    seed: int = 0,
    run: Path | None = None,
    progress: Progress | None = None,
) -> dict:
    """Compare cached and live answers of random (view, sample), and what students feel of the difference.

    Args:
        given: settings that differ from those the cache was built with: where the weights are now, the device.
        num_samples: how many, at least 2. seed: which. run: folder of a run from this cache, whose student is asked, too.

    Returns: JSON values, kept in the manifest, too; `failures` is empty where every limit is kept.
    Raises: CacheError, TeacherError, SettingsError, TrainingError.
    """
    progress, manifest = progress or Silent(), read_manifest(root)
    setting = open_setting(root, manifest, given)
    temperature = setting.config.loss.temperature
    students = make_students(setting, run=run, progress=progress)
    probes = {
        name: Probe(
            learner,
            terms=[t for t in setting.terms if t == "kd" or learner.loss.align],
            temperature=temperature,
        )
        for name, learner in students.items()
    }
    errors = {name: AnswerErrors(setting.reader.encodings[name]) for name in setting.names}
    scores, places = ScoreErrors(temperature), choose_places(setting.reader, num_samples, seed)
    with progress.start("comparing", total=len(places), unit="samples") as bar:
        for cached, live in _ask_again(setting, places):
            for name, error in errors.items():
                decoded = setting.targets.make(name, cached.arrays).decode()
                error.add(decoded, live.arrays[name])
                if name == "logits":
                    scores.add(decoded, live.arrays[name])
            for probe in probes.values():
                probe.add(cached, live, setting.targets)
            bar.advance(len(cached.sample_ids))
    answers = {name: error.to_dict() for name, error in errors.items()}
    answers["logits"] |= scores.to_dict()
    felt = {
        name: {term: f.to_dict() for term, f in probe.felt.items()}
        for name, probe in probes.items()
    }
    result = {"samples": len(places), "seed": seed, **_describe(setting, answers, felt)}
    _keep(root, result)
    return result


def _ask_again(setting: Setting, places: list[tuple[int, int]]) -> Iterator[tuple[Batch, Batch]]:
    """Batches as cached, and the same with live float32 answers. Raises TeacherError where those are not finite."""
    size = max(setting.config.teacher.batch_size, 2)  # BatchNorm cannot do with one
    for cached in make_batches(setting, size).read(split_batches(places, size, join_single=True)):
        answer = {
            name: value.clone() for name, value in setting.teacher(cached.arrays["image"]).items()
        }
        for name, value in answer.items():
            if not torch.isfinite(value).all():
                samples = ", ".join(cached.sample_ids)
                raise TeacherError(
                    f"samples {samples}: teacher's {name} is not finite, expected finite values; check its weights"
                )
        plain = {name: cached.arrays[name] for name in ("image", "label")}
        yield cached, Batch({**plain, **answer}, cached.sample_ids)


def _describe(setting: Setting, answers: dict, felt: dict) -> dict:
    teacher, device = setting.config.teacher, setting.teacher.device
    exact = teacher.precision == "float32" and device.type == "cpu"
    kinds = {name: encoding.kind for name, encoding in setting.reader.encodings.items()}
    limits, least = find_limits(kinds, exact=exact), find_least_cosines(kinds, exact=exact)
    return {
        "date": date.today().isoformat(),
        "device": str(device),
        "precision": teacher.precision,
        "views": setting.reader.num_views,
        "planned_views": setting.manifest.layouts["train"].num_views,
        "answers": answers,
        "students": felt,
        "limits": {term: vars(limit) for term, limit in limits.items()},
        "least_cosines": least,
        "judged": TRAINED,
        "failures": [*find_blurred(answers, least), *find_failures(felt[TRAINED], limits)],
    }


def _keep(root: Path, result: dict) -> None:
    """In the manifest, where that can be written; what was measured is not lost where it cannot."""
    try:
        add_information(root, {"fidelity": result})
    except (CacheError, ValueError) as error:
        log.warning("%s: the result is not kept in the cache (%s)", root, one_line(error))


FAITHFULNESS = ("float16", "int8", "lowrank")  # most faithful first


@dataclass(frozen=True)
class Limit:
    """Least cosine of gradients, and largest relative change of the loss (None: only reported)."""

    grad_cos: float
    loss_rel: float | None = None


EXACT = Limit(
    grad_cos=0.999999, loss_rel=1e-4
)  # the smaller a loss, the more of it rounding is: 1e-7 to 2e-5 were seen
EXACT_NOT_FLOAT32 = Limit(
    grad_cos=0.999, loss_rel=1e-2
)  # autocast, or a GPU: asked again, the teacher itself differs
LIMITS = {
    "kd": {"float16": EXACT, "int8": Limit(0.9999), "lowrank": Limit(0.9999)},
    "feature": {"float16": EXACT, "int8": Limit(0.9999), "lowrank": Limit(0.995)},
}

# Least mean cosine of a position's channels, each answer by itself: gradients of all levels together hide one that is lost. Of
# CamVid's compact keeps 0.966 to 0.98; eight coefficients for layer4 kept 0.875, and the gradients were within their limit.
LEAST_COSINES = {"float16": 0.999999, "int8": 0.999, "lowrank": 0.9}
NOT_FLOAT32_COSINE = 0.999


def find_limits(kinds: dict[str, str], *, exact: bool) -> dict[str, Limit]:
    """The limit of each term, by the least faithful encoding it reads.

    Args:
        kinds: logits and levels -> kind of encoding. exact: whether the same question gets the same answer (float32 on a CPU).
    """
    used = {
        "kd": [kinds["logits"]],
        "feature": [kind for name, kind in kinds.items() if name != "logits"],
    }
    limits = {}
    for term, found in used.items():
        if found:
            limit = LIMITS[term][max(found, key=FAITHFULNESS.index)]
            limits[term] = limit if exact else _loosen(limit)
    return limits


def find_least_cosines(kinds: dict[str, str], *, exact: bool) -> dict[str, float]:
    """Of logits and each level."""
    least = {name: LEAST_COSINES[kind] for name, kind in kinds.items()}
    return (
        least
        if exact
        else {name: min(cosine, NOT_FLOAT32_COSINE) for name, cosine in least.items()}
    )


def find_blurred(answers: dict[str, dict], least: dict[str, float]) -> list[str]:
    """Answers that are below their least cosine, in words."""
    return [
        f"cached {name} have a cosine of {answers[name]['cosine']:.7f} with live ones, expected {cosine} or more"
        for name, cosine in least.items()
        if not answers[name]["cosine"] >= cosine
    ]


def _loosen(limit: Limit) -> Limit:
    """Never stricter than what is asked of an exact cache there."""
    loss_rel = None if limit.loss_rel is None else max(limit.loss_rel, EXACT_NOT_FLOAT32.loss_rel)
    return Limit(min(limit.grad_cos, EXACT_NOT_FLOAT32.grad_cos), loss_rel)


def find_failures(felt: dict[str, dict], limits: dict[str, Limit]) -> list[str]:
    """What is beyond its limit, in words; `felt` has `grad_cos` and `loss_rel` of each term."""
    failures = []
    for term, limit in limits.items():
        facts = felt[term]
        if not facts["grad_cos"] >= limit.grad_cos:
            failures.append(
                f"{term} gradient's cosine is {facts['grad_cos']:.7f}, expected {limit.grad_cos} or more"
            )
        if limit.loss_rel is not None and not facts["loss_rel"] <= limit.loss_rel:
            failures.append(
                f"{term} loss differs by {facts['loss_rel']:.1e} of itself, expected {limit.loss_rel} or less"
            )
    return failures
