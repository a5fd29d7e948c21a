"""What a cache would weigh in other encodings: a few answers of the teacher, encoded and coded in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from kdcache.cache.basis import BasisLearner, count_basis_bytes
from kdcache.cache.codecs import choose_codec
from kdcache.cache.layout import DTYPES, ArraySpec, SplitLayout
from kdcache.cache.settings import build_layouts
from kdcache.config import LEVELS, PRESETS, Config
from kdcache.forecast.asking import Asked
from kdcache.forecast.estimate import add_shards, expect_chunk
from kdcache.forecast.views import DRAWN, ViewBytes, measure_chunks
from kdcache.precompute.bases import choose_encodings
from kdcache.precompute.group import LARGEST, Encoder
from kdcache.precompute.pipeline import Job
from kdcache.progress import Progress

CODECS = ("raw", "blosc-zstd")
ENCODED_AT_ONCE = 4  # samples: what is encoded of them is not kept


@dataclass(frozen=True)
class Variant:
    """One encoding and codec: bytes a training sample, and of all arrays and bases of the cache."""

    encoding: str
    codec: str
    sample_bytes: float
    size_bytes: float


@dataclass(frozen=True)
class Variants:
    """The same samples in other ways.

    here_bytes: of all arrays and bases of the cache as the settings are, from these samples: what others are to be compared with.
    others: every preset, raw and coded, but for what the settings ask for. left_out: presets that the answers are too large for.
    num_samples: training samples that were encoded.
    """

    here_bytes: float
    others: list[Variant]
    left_out: list[str]
    num_samples: int


def measure_variants(
    job: Job, asked: Mapping[str, Asked], views: ViewBytes, *, progress: Progress
) -> Variants:
    """Weigh what the teacher said about a few samples of both splits; bases that the settings do not ask for are learned from
    that.

    Args:
        views: bytes of images and labels in each of CODECS.
    """
    here, seen, others = job.manifest.layouts, [job.manifest.layouts["train"].arrays], []
    _, here_bytes = _weigh(job, [here], job.encoder, asked=asked, views=views)[0]
    bases, fitting = _find_bases(job, asked["train"]), _find_fitting(job.config, asked["train"])
    with progress.start("coding in other ways", total=len(fitting), unit="encodings") as bar:
        for preset in fitting:
            config = replace(job.config, cache=replace(job.config.cache, encoding=preset))
            encodings = choose_encodings(config.cache, bases)
            grids = {
                codec: _plan_layouts(config, job, encodings=encodings, codec=codec)
                for codec in CODECS
            }
            grids = {
                codec: layouts
                for codec, layouts in grids.items()
                if layouts["train"].arrays not in seen
            }
            seen += [layouts["train"].arrays for layouts in grids.values()]
            encoder = Encoder(encodings, bases, job.teacher.device)
            weights = _weigh(job, list(grids.values()), encoder, asked=asked, views=views)
            others += [
                Variant(preset, codec, *weight)
                for codec, weight in zip(grids, weights, strict=True)
            ]
            bar.advance(1)
    left_out = [preset for preset in PRESETS if preset not in fitting]
    return Variants(here_bytes, others, left_out, len(asked["train"].image_NHWC))


def _find_fitting(config: Config, asked: Asked) -> list[str]:
    """Presets whose encodings can hold the answers."""
    fitting = []
    for preset in PRESETS:
        kinds = replace(config.cache, encoding=preset).kinds
        if all(asked.peaks[name] <= LARGEST[kind] for name, kind in kinds.items()):
            fitting.append(preset)
    return fitting


def _find_bases(job: Job, asked: Asked) -> dict[str, np.ndarray]:
    """Bases of all levels: the plan's, else learned here, of as many coefficients as the settings say and the level has."""
    learner, ranks = BasisLearner(), {}
    for level in (level for level in LEVELS if level in asked.answers and level not in job.bases):
        ranks[level] = min(getattr(job.config.cache.rank, level), asked.answers[level].shape[1])
        for values in asked.answers[level].split(ENCODED_AT_ONCE):
            learner.add(level, values)
    return {**learner.finish(ranks), **job.bases}


def _plan_layouts(
    config: Config, job: Job, *, encodings: Mapping, codec: str
) -> dict[str, SplitLayout]:
    num_samples = {split: layout.num_samples for split, layout in job.manifest.layouts.items()}
    codecs = {dtype: choose_codec(codec, dtype) for dtype in DTYPES}
    levels = job.teacher.probe_levels()
    return build_layouts(
        config, num_samples=num_samples, levels=levels, encodings=encodings, codecs=codecs
    )


def _weigh(
    job: Job,
    grids: list[dict[str, SplitLayout]],
    encoder: Encoder,
    *,
    asked: Mapping[str, Asked],
    views: ViewBytes,
) -> list[tuple[float, float]]:
    """Bytes of a training sample and of all arrays and bases, in each of the layouts of one encoding."""
    weights = [{} for _ in grids]
    for split, answered in asked.items():
        specs = {
            spec for layouts in grids for spec in layouts[split].arrays if spec.name not in DRAWN
        }
        found = _encode_and_code(job, encoder, answered, specs, split=split)
        for sample_bytes, layouts in zip(weights, grids, strict=True):
            sample_bytes[split] = _add_chunks(layouts[split], found, answered, views)
    bases = sum(count_basis_bytes(encoder.encodings).values())
    return [
        (
            sizes["train"],
            bases + sum(add_shards(layouts[split], size) for split, size in sizes.items()),
        )
        for sizes, layouts in zip(weights, grids, strict=True)
    ]


def _encode_and_code(
    job: Job, encoder: Encoder, asked: Asked, specs: set[ArraySpec], *, split: str
) -> dict[ArraySpec, np.ndarray]:
    """array -> bytes of the chunk of each sample."""
    found = {spec: [] for spec in specs}
    for start in range(0, len(asked.image_NHWC), ENCODED_AT_ONCE):
        rows = slice(start, start + ENCODED_AT_ONCE)
        answer = {
            name: values[rows].to(job.teacher.device) for name, values in asked.answers.items()
        }
        arrays = encoder.encode(answer, split=split)
        for spec in specs:
            found[spec].append(measure_chunks(spec, arrays[spec.name].cpu().contiguous().numpy()))
    return {spec: np.concatenate(parts) for spec, parts in found.items()}


def _add_chunks(
    layout: SplitLayout, found: Mapping[ArraySpec, np.ndarray], asked: Asked, views: ViewBytes
) -> float:
    """Expected bytes of a sample over all arrays."""
    image = layout.array("image")
    images, image_mean = (
        measure_chunks(image, asked.image_NHWC),
        views.chunk_bytes[layout.split, image],
    )
    return sum(
        views.chunk_bytes[layout.split, spec]
        if spec.name in DRAWN
        else expect_chunk(spec, found[spec], images=images, image_mean=image_mean)
        for spec in layout.arrays
    )
