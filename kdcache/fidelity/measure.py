"""Ask the teacher again about stored images, and compare what it says with what is cached."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from kdcache.cache.folder import add_information
from kdcache.cache.manifest import read_manifest
from kdcache.errors import CacheError, TeacherError
from kdcache.fidelity.answers import AnswerErrors, ScoreErrors
from kdcache.fidelity.gradients import Probe
from kdcache.fidelity.limits import find_blurred, find_failures, find_least_cosines, find_limits
from kdcache.fidelity.setting import Setting, choose_places, make_batches, open_setting
from kdcache.fidelity.students import TRAINED, make_students
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
        log.warning(
            "%s: the result is not kept in the cache (%s)", root, " ".join(str(error).split())[:120]
        )
