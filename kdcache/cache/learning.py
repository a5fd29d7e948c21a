"""Where the bases of lowrank levels come from: the cache that is there, else a few questions to the teacher."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch

from kdcache.cache.answers import draw_view
from kdcache.cache.basis import BasisLearner, choose_samples, read_basis
from kdcache.cache.layout import manifest_path
from kdcache.cache.manifest import read_manifest
from kdcache.config import Config
from kdcache.data.voc import Split
from kdcache.errors import CacheCorruptError
from kdcache.models.teacher import Teacher
from kdcache.report.progress import Progress


def find_bases(
    config: Config, ranks: dict[str, int], *, splits: dict[str, Split], teacher: Teacher, progress: Progress
) -> dict[str, np.ndarray]:
    """The bases of the lowrank levels: those of the cache that is there, else learned from the teacher.

    Another machine would learn others, by a last bit that turns a vector: so they are learned once, and kept.
    """
    root, stored = config.cache.path, {}
    if ranks and manifest_path(root).is_file():
        encodings = read_manifest(root).encodings
        stored = {
            level: encodings[level] for level in ranks if level in encodings and encodings[level].rank == ranks[level]
        }
    bases = {}
    for level, encoding in stored.items():
        with suppress(CacheCorruptError):  # learned anew; where that gives another one, the cache's identity says so
            bases[level] = read_basis(root, level, encoding)
    lost = {level: rank for level, rank in ranks.items() if level not in bases}
    if lost:
        bases |= learn_bases(config, lost, splits=splits, teacher=teacher, progress=progress)
    return {level: bases[level] for level in ranks}


def learn_bases(
    config: Config, ranks: dict[str, int], *, splits: dict[str, Split], teacher: Teacher, progress: Progress
) -> dict[str, np.ndarray]:
    """Ask the teacher about a few samples of view 0. Raises DataError, TeacherError."""
    samples, learner, size = splits["train"].samples, BasisLearner(), config.teacher.batch_size
    chosen = [samples[index] for index in choose_samples(len(samples))]
    with progress.start("learning bases", total=len(chosen), unit="samples") as bar:
        for start in range(0, len(chosen), size):
            images = [draw_view(config, sample, split="train", view=0)[0] for sample in chosen[start : start + size]]
            answer = teacher(torch.from_numpy(np.stack(images)))
            for level in ranks:
                learner.add(level, answer[level])
            bar.advance(len(images))
    return learner.finish(ranks)
