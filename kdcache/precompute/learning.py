"""Where the bases of lowrank levels come from: the cache that is there, else a few questions to the teacher."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kdcache.cache.basis import BasisLearner, choose_samples, read_any_basis, read_basis
from kdcache.cache.encodings import Encoding
from kdcache.cache.layout import manifest_path
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import list_records
from kdcache.config import Config
from kdcache.data.voc import Split
from kdcache.errors import CacheCorruptError, TeacherError
from kdcache.models.teacher import Teacher
from kdcache.precompute.answers import draw_view
from kdcache.precompute.pipeline import Plan
from kdcache.progress import Progress


def find_bases(
    config: Config,
    ranks: dict[str, int],
    *,
    there: Manifest | None,
    levels: dict[str, tuple[int, int]],
    splits: dict[str, Split],
    teacher: Teacher,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """The bases of the lowrank levels: those of the cache that is there, else learned from the teacher.

    Another machine would learn others, by a last bit that turns a vector: so they are learned once, and kept.

    Args:
        ranks: level -> coefficients. levels: level -> (channels, stride).
        there: manifest of the cache that is there, if there is one.
    """
    shapes = {level: (levels[level][0], rank) for level, rank in ranks.items()}
    bases = _read_stored(config.cache.path, shapes, there)
    lost = [level for level in ranks if level not in bases]
    if lost:
        bases |= learn_bases(
            config,
            {level: ranks[level] for level in lost},
            splits=splits,
            teacher=teacher,
            progress=progress,
        )
    return {level: bases[level] for level in ranks}


def _read_stored(
    root: Path, shapes: dict[str, tuple[int, int]], there: Manifest | None
) -> dict[str, np.ndarray]:
    """Sound bases of these shapes; without a manifest those beside commit records, which say whose they are."""
    bases = {}
    if there:
        encodings = there.encodings
        for level, shape in shapes.items():
            encoding = encodings.get(level, Encoding())
            if (encoding.channels, encoding.rank) == shape:
                with suppress(
                    CacheCorruptError
                ):  # learned anew; where that gives another one, the identity says so
                    bases[level] = read_basis(root, level, encoding)
    elif shapes and root.is_dir() and list_records(root):
        for level, shape in shapes.items():
            with suppress(CacheCorruptError):
                bases[level] = read_any_basis(root, level, shape)
    return bases


def adopt_bases(plan: Plan) -> Plan:
    """The plan with the bases of the cache that another process has begun meanwhile.

    Raises: CacheCorruptError where those are damaged.
    """
    root, bases = plan.config.cache.path, {}
    if not (plan.bases and manifest_path(root).is_file()):
        return plan
    encodings = read_manifest(root).encodings
    for level, encoding in plan.manifest.encodings.items():
        theirs = encodings.get(level, Encoding())
        if (
            encoding.kind == "lowrank"
            and theirs == replace(encoding, basis_sha256=theirs.basis_sha256) != encoding
        ):
            bases[level] = read_basis(root, level, theirs)
    identity = copy.deepcopy(plan.manifest.identity)
    for level in bases:
        identity["train"]["encoding"][level]["basis_sha256"] = encodings[level].basis_sha256
    return replace(
        plan, manifest=replace(plan.manifest, identity=identity), bases={**plan.bases, **bases}
    )


def learn_bases(
    config: Config,
    ranks: dict[str, int],
    *,
    splits: dict[str, Split],
    teacher: Teacher,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Ask the teacher about a few samples of view 0, one at a time: what it says of one depends, in the last bits, on how many
    are asked about together. Raises DataError, TeacherError.
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
                        f"sample {sample.id!r}: teacher's {level} is not finite, expected finite values; "
                        "check the weights, teacher.precision and teacher.layers"
                    )
                learner.add(level, answer[level])
            bar.advance(1)
    return learner.finish(ranks)
