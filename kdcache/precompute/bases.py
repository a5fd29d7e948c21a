"""Encodings of a cache, and the bases of its lowrank levels: read from the cache, else learned."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from kdcache.cache.basis import (
    BasisLearner,
    choose_samples,
    hash_basis,
    read_any_basis,
    read_basis,
)
from kdcache.cache.encodings import STEPS, Encoding
from kdcache.cache.layout import MANIFEST
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import list_records
from kdcache.config import CacheConfig, Config
from kdcache.data.pictures import Split
from kdcache.errors import CacheCorruptError, TeacherError, refuse
from kdcache.models.teacher import Teacher
from kdcache.precompute.group import draw_view
from kdcache.precompute.pipeline import Job
from kdcache.progress import Progress
from kdcache.storage import Storage, open_storage


def choose_ranks(config: CacheConfig, targets: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Lowrank level -> number of coefficients.

    Args:
        targets: logits and each cached level -> (channels, stride).

    Raises: SettingsError for more coefficients than channels, or an encoding of a level that is
        not cached.
    """
    named = config.encoding if isinstance(config.encoding, dict) else {}
    absent = [name for name in named if name not in config.kinds]
    if absent:
        raise refuse("cache.encoding", named, f"no {absent[0]}, which cache.levels does not have")
    lowrank = [level for level, kind in config.kinds.items() if kind == "lowrank"]
    ranks = {level: getattr(config.rank, level) for level in lowrank}
    for level, rank in ranks.items():
        channels = targets[level][0]
        if rank > channels:
            expected = f"1 to {channels}, the channels of {level}"
            raise refuse(f"cache.rank.{level}", rank, expected)
    return ranks


def choose_encodings(config: CacheConfig, bases: Mapping[str, np.ndarray]) -> dict[str, Encoding]:
    """The encodings of logits and levels, given the bases of the lowrank levels."""
    encodings = {}
    for name, kind in config.kinds.items():
        encodings[name] = Encoding(kind)
        if kind == "lowrank":
            channels, rank = bases[name].shape
            encodings[name] = Encoding(kind, channels, rank, STEPS[name], hash_basis(bases[name]))
    return encodings


def find_bases(
    config: Config,
    ranks: dict[str, int],
    *,
    there: Manifest | None,
    targets: dict[str, tuple[int, int]],
    splits: dict[str, Split],
    teacher: Teacher,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """The bases of the lowrank levels, float32 [C, R]: those of the cache, else learned ones.

    They are learned once and kept, because another machine would learn others: a last bit can turn
    a vector.

    Args:
        ranks: level -> number of coefficients.
        targets: logits and each cached level -> (channels, stride).
        there: manifest of the cache that is there, if there is one.

    Raises: DataError, TeacherError.
    """
    shapes = {level: (targets[level][0], rank) for level, rank in ranks.items()}
    bases = _read_stored(open_storage(config.cache.path), shapes, there)
    lost = {level: rank for level, rank in ranks.items() if level not in bases}
    if lost:
        bases |= learn_bases(config, lost, splits=splits, teacher=teacher, progress=progress)
    return {level: bases[level] for level in ranks}


def _read_stored(
    root: Storage, shapes: dict[str, tuple[int, int]], there: Manifest | None
) -> dict[str, np.ndarray]:
    """Undamaged bases of these shapes.

    Without a manifest, commit records say that a basis beside them belongs to this cache.
    """
    bases = {}
    if there:
        encodings = there.encodings
        for level, shape in shapes.items():
            encoding = encodings.get(level, Encoding())
            if (encoding.channels, encoding.rank) == shape:
                # a damaged one is learned anew; if that differs, the identity says so
                with suppress(CacheCorruptError):
                    bases[level] = read_basis(root, level, encoding)
    elif shapes and root.is_folder() and list_records(root):
        for level, shape in shapes.items():
            with suppress(CacheCorruptError):
                bases[level] = read_any_basis(root, level, shape)
    return bases


def learn_bases(
    config: Config,
    ranks: dict[str, int],
    *,
    splits: dict[str, Split],
    teacher: Teacher,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Learn bases from the teacher's answers about a few samples of view 0.

    The samples are asked about one at a time: the last bits of an answer depend on the batch size.
    Raises DataError, TeacherError.
    """
    samples, learner = splits["train"].samples, BasisLearner()
    chosen = [samples[index] for index in choose_samples(len(samples))]
    with progress.start("learning bases", total=len(chosen), unit="samples") as bar:
        for sample in chosen:
            image, _, _ = draw_view(config, sample, split="train", view=0)
            answer = teacher(torch.from_numpy(image[None]))
            for level in ranks:
                if not torch.isfinite(answer[level]).all():
                    raise TeacherError(
                        f"sample {sample.id!r}: teacher's {level} is not finite, expected finite "
                        "values; check the weights, teacher.precision and teacher.layers"
                    )
                learner.add(level, answer[level])
            bar.advance(1)
    return learner.finish(ranks)


def adopt_bases(job: Job) -> Job:
    """The job with the bases of a cache that another process has begun in the meantime.

    Raises: CacheCorruptError if those are damaged.
    """
    root, bases = open_storage(job.config.cache.path), {}
    if not (job.bases and root.exists(MANIFEST)):
        return job
    there = read_manifest(root)
    if there.identity["train"]["teacher"] != job.manifest.identity["train"]["teacher"]:
        return job  # theirs were learned from other answers
    stored = there.encodings
    identity = copy.deepcopy(job.manifest.identity)
    for level, ours in job.manifest.encodings.items():
        theirs = stored.get(level, Encoding())
        same_but_basis = theirs == replace(ours, basis_sha256=theirs.basis_sha256)
        if ours.kind == "lowrank" and same_but_basis and theirs != ours:
            bases[level] = read_basis(root, level, theirs)
            for split in identity.keys() - {"val"}:
                identity[split]["encoding"][level]["basis_sha256"] = theirs.basis_sha256
    manifest = replace(job.manifest, identity=identity)
    return replace(job, manifest=manifest, bases={**job.bases, **bases})
