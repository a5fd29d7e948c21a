"""Ask the teacher again about stored images, and compare what it says with what is cached."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from pathlib import Path

from kdcache.cache.folder import add_information
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.repair import stored_config
from kdcache.config import Config
from kdcache.devices import choose_device
from kdcache.errors import CacheMismatchError, describe
from kdcache.fidelity.answers import AnswerErrors, ScoreErrors
from kdcache.fidelity.gradients import Probe
from kdcache.fidelity.limits import find_failures, find_limits
from kdcache.models.teacher import Teacher, build_teacher
from kdcache.models.weights import hash_weights
from kdcache.report.progress import Progress, Silent
from kdcache.settings import merge
from kdcache.training.batches import Batch, BatchReader, plan_epoch
from kdcache.training.checkpoint import BEST, read_checkpoint, restore
from kdcache.training.loop import Learner, train_step
from kdcache.training.run import build_learner, find_teacher_channels
from kdcache.training.targets import Targets, open_targets

STEPS = 40  # of training before the gradients that count: a fresh student's are not what it will feel
TRAINED = f"after {STEPS} steps"


@dataclass(frozen=True)
class _Setting:
    """What is compared: an opened cache, its teacher, and the student's settings."""

    config: Config
    reader: CacheReader
    teacher: Teacher
    targets: Targets

    @property
    def names(self) -> list[str]:
        """Logits and the cached levels."""
        return list(self.reader.encodings)


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
        num_samples: how many. seed: which. run: folder of a training run from this cache, whose student is asked, too.

    Returns: JSON values, kept in the manifest, too; `failures` is empty where every limit is kept.
    Raises: CacheError, TeacherError, SettingsError, TrainingError.
    """
    progress, manifest = progress or Silent(), read_manifest(root)
    setting = _open(root, manifest, given)
    terms = ["kd", *(["feature"] if len(setting.names) > 1 else [])]
    students = _make_students(setting, manifest, run=run, progress=progress)
    temperature = setting.config.loss.temperature
    probes = {name: Probe(learner, terms=terms, temperature=temperature) for name, learner in students.items()}
    errors = {name: AnswerErrors(setting.reader.encodings[name]) for name in setting.names}
    scores, places = ScoreErrors(temperature), _choose_places(setting.reader, num_samples, seed)
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
    return _finish(root, setting, errors=errors, scores=scores, probes=probes, num_samples=len(places), seed=seed)


def _open(root: Path, manifest: Manifest, given: dict) -> _Setting:
    """Raises CacheMismatchError where the weights are not those of the teacher that was asked."""
    config = stored_config(root, manifest, merge(given, {"student": {"pretrained": False}}))
    device = choose_device(config.teacher.device, field="teacher.device")
    config = replace(config, train=replace(config.train, device=str(device), precision="float32"))
    levels = [name for name in manifest.encodings if name != "logits"]
    config = replace(config, cache=replace(config.cache, levels=levels))
    teacher, weights = build_teacher(
        config.teacher, num_classes=config.dataset.num_classes, levels=levels, device=device
    )
    asked, found = manifest.identity["train"]["teacher"]["weights_sha256"], hash_weights(weights)
    if found != asked:
        cure = "set teacher.weights to those the cache was built with"
        raise CacheMismatchError(
            describe(root, field="teacher.weights_sha256", found=asked[:12], expected=found[:12], cure=cure)
        )
    reader = CacheReader(root, manifest, "train", num_views=max(manifest.complete_views["train"], 1))
    return _Setting(config, reader, teacher, open_targets(reader, device))


def _make_students(
    setting: _Setting, manifest: Manifest, *, run: Path | None, progress: Progress
) -> dict[str, Learner]:
    """A fresh one, one after some steps, and a run's."""
    learner = build_learner(setting.config, teacher_channels=find_teacher_channels(setting.reader))
    learner.targets = setting.targets
    students = {"fresh": copy.deepcopy(learner)}
    _train_some(learner, setting, progress)
    students[TRAINED] = learner
    if run is not None:
        trained, state = copy.deepcopy(students["fresh"]), read_checkpoint(run / BEST)
        if state["cache_identity"] != manifest.identity_hash:
            found, expected = state["cache_identity"][:12], manifest.identity_hash[:12]
            cure = "give a run that was trained from this cache"
            raise CacheMismatchError(describe(run, field="cache identity", found=found, expected=expected, cure=cure))
        restore(trained, state)
        students[str(run)] = trained
    return students


def _train_some(learner: Learner, setting: _Setting, progress: Progress) -> None:
    config, layout = setting.config, setting.reader.layout
    reader = _make_batches(setting, config.train.batch_size)
    plan = (
        batch
        for epoch in range(STEPS)
        for batch in plan_epoch(
            num_samples=layout.num_samples,
            num_views=setting.reader.num_views,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            epoch=epoch,
        )
    )
    learner.student.train()
    with progress.start("training a student", total=STEPS, unit="steps") as bar:
        for step, batch in enumerate(reader.read(list(islice(plan, STEPS)))):
            train_step(learner, batch, where=f"step {step}")
            bar.advance(1)


def _make_batches(setting: _Setting, batch_size: int) -> BatchReader:
    names = ["image", "label", *(array for name in setting.names for array in setting.targets.list_arrays(name))]
    return BatchReader(setting.reader, arrays=names, batch_size=batch_size, device=setting.teacher.device)


def _choose_places(reader: CacheReader, count: int, seed: int) -> list[tuple[int, int]]:
    """Different (view, sample), in order."""
    total = reader.num_views * reader.layout.num_samples
    chosen = random.Random(seed).sample(range(total), min(count, total))
    return sorted(divmod(place, reader.layout.num_samples) for place in chosen)


def _ask_again(setting: _Setting, places: list[tuple[int, int]]) -> Iterator[tuple[Batch, Batch]]:
    """Batches as cached, and the same with live float32 answers."""
    size = setting.config.teacher.batch_size
    batches = [places[start : start + size] for start in range(0, len(places), size)]
    for cached in _make_batches(setting, size).read(batches):
        answer = {name: value.clone() for name, value in setting.teacher(cached.arrays["image"]).items()}
        plain = {name: cached.arrays[name] for name in ("image", "label")}
        yield cached, Batch({**plain, **answer}, cached.sample_ids)


def _finish(
    root: Path,
    setting: _Setting,
    *,
    errors: dict[str, AnswerErrors],
    scores: ScoreErrors,
    probes: dict[str, Probe],
    num_samples: int,
    seed: int,
) -> dict:
    """The result, after it was kept in the manifest."""
    teacher = setting.config.teacher
    exact = teacher.precision == "float32" and setting.teacher.device.type == "cpu"
    limits = find_limits({name: encoding.kind for name, encoding in setting.reader.encodings.items()}, exact=exact)
    felt = {name: {term: f.to_dict() for term, f in probe.felt.items()} for name, probe in probes.items()}
    answers = {name: error.to_dict() for name, error in errors.items()}
    answers["logits"] |= scores.to_dict()
    result = {
        "samples": num_samples,
        "seed": seed,
        "date": date.today().isoformat(),
        "device": str(setting.teacher.device),
        "precision": teacher.precision,
        "answers": answers,
        "students": felt,
        "limits": {term: vars(limit) for term, limit in limits.items()},
        "failures": find_failures(felt[TRAINED], limits),
    }
    add_information(root, {"fidelity": result})
    return result
