"""What a cache would weigh in other encodings: a few answers of the teacher, encoded and coded in each of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from kdcache.cache.answers import draw_view
from kdcache.cache.basis import BasisLearner
from kdcache.cache.codecs import choose_codec
from kdcache.cache.encoder import Encoder, choose_encodings
from kdcache.cache.layout import DTYPES, SplitLayout
from kdcache.cache.pipeline import Plan
from kdcache.cache.plan import plan_layouts
from kdcache.config import LEVELS, PRESETS, Config
from kdcache.forecast.estimate import add_shards
from kdcache.forecast.pictures import PICTURES, Sizes, measure_chunks
from kdcache.forecast.probe import pick_samples
from kdcache.report.progress import Progress

HEARD = 16  # samples whose answers are kept
CODECS = ("raw", "blosc-zstd")


@dataclass(frozen=True)
class Heard:
    """What the teacher said about some samples of a split.

    answers: name -> float16 [n, C, H, W] on the host. sample_s: seconds of the teacher alone.
    """

    answers: dict[str, torch.Tensor]
    sample_s: float


@dataclass(frozen=True)
class Variant:
    """One encoding and codec: bytes a training sample, and of all arrays of the cache."""

    encoding: str
    codec: str
    sample_bytes: float
    size_bytes: float


def hear_teacher(plan: Plan, split: str, *, least: int, progress: Progress) -> Heard:
    """Ask about `least` or more samples spread over a split, in batches as phase one makes them; of several batches the first
    warms up and is not timed."""
    config, samples = plan.config, plan.splits[split].samples
    size = min(config.teacher.batch_size, config.cache.shard_samples)
    num_batches = max(-(-least // size), min(least, 2))
    chosen = [samples[index] for index in pick_samples(len(samples), num_batches * size)]
    names, kept, room, times = plan.manifest.encodings if split == "train" else ("logits",), [], HEARD, []
    with progress.start(f"asking about {split}", total=len(chosen), unit="samples") as bar:
        for start in range(0, len(chosen), size):
            images = [draw_view(config, sample, split=split, view=0)[0] for sample in chosen[start : start + size]]
            answer, time_s = _ask(plan, np.stack(images))
            times.append(time_s / len(images))
            kept.append({name: answer[name][:room].half().cpu() for name in names})
            room = max(room - len(images), 0)
            bar.advance(len(images))
    answers = {name: torch.cat([part[name] for part in kept]) for name in names}
    return Heard(answers, float(np.mean(times[1:] or times)))


def measure_variants(plan: Plan, heard: Mapping[str, Heard], pictures: Sizes, *, progress: Progress) -> list[Variant]:
    """Every preset, raw and coded, but for what the settings ask for; bases that they do not ask for are learned from what was
    heard.

    Args:
        pictures: bytes of images and labels in each of CODECS.
    """
    levels, seen, variants = plan.teacher.probe_levels(), [plan.manifest.layouts["train"].arrays], []
    bases = _find_bases(plan, heard["train"])
    with progress.start("coding in other ways", total=len(PRESETS) * len(CODECS), unit="encodings") as bar:
        for preset in PRESETS:
            config = replace(plan.config, cache=replace(plan.config.cache, encoding=preset))
            encodings = choose_encodings(config.cache, bases)
            stored = {split: _encode(plan, encodings, bases, heard[split], split=split) for split in heard}
            for codec in CODECS:
                layouts = _plan_layouts(config, plan, levels=levels, encodings=encodings, codec=codec)
                if layouts["train"].arrays not in seen:
                    seen.append(layouts["train"].arrays)
                    sizes = {split: _measure(layouts[split], stored[split], pictures) for split in layouts}
                    variants.append(Variant(preset, codec, sizes["train"][0], sum(size for _, size in sizes.values())))
                bar.advance(1)
    return variants


def _ask(plan: Plan, image_NHWC: np.ndarray) -> tuple[dict[str, torch.Tensor], float]:
    """The answer and the seconds to its end, on a GPU without the way to the host."""
    began_s = time.monotonic()
    answer = plan.teacher(torch.from_numpy(image_NHWC))
    if plan.teacher.device.type == "cuda":
        torch.cuda.synchronize(plan.teacher.device)
    return answer, time.monotonic() - began_s


def _find_bases(plan: Plan, heard: Heard) -> dict[str, np.ndarray]:
    """Bases of all levels: the plan's, else learned here, of as many coefficients as the settings say and the level has."""
    learner, ranks = BasisLearner(), {}
    for level in (level for level in LEVELS if level in heard.answers and level not in plan.bases):
        ranks[level] = min(getattr(plan.config.cache.rank, level), heard.answers[level].shape[1])
        for values in heard.answers[level].split(4):
            learner.add(level, values.float())
    return {**learner.finish(ranks), **plan.bases}


def _encode(plan: Plan, encodings: Mapping, bases: Mapping, heard: Heard, *, split: str) -> dict[str, np.ndarray]:
    """Array -> what is stored of the samples heard."""
    encoder, parts = Encoder(encodings, bases, plan.teacher.device), []
    for start in range(0, len(heard.answers["logits"]), 4):
        answer = {
            name: values[start : start + 4].float().to(plan.teacher.device) for name, values in heard.answers.items()
        }
        parts.append(encoder.encode(answer, split=split))
    return {name: torch.cat([part[name] for part in parts]).cpu().contiguous().numpy() for name in parts[0]}


def _plan_layouts(
    config: Config, plan: Plan, *, levels: Mapping, encodings: Mapping, codec: str
) -> dict[str, SplitLayout]:
    num_samples = {split: layout.num_samples for split, layout in plan.manifest.layouts.items()}
    codecs = {dtype: choose_codec(codec, dtype) for dtype in DTYPES}
    return plan_layouts(config, num_samples=num_samples, levels=levels, encodings=encodings, codecs=codecs)


def _measure(layout: SplitLayout, stored: Mapping[str, np.ndarray], pictures: Sizes) -> tuple[float, float]:
    """Bytes of a sample and of all."""
    sample_bytes = sum(
        pictures[layout.split, spec] if spec.name in PICTURES else measure_chunks(spec, stored[spec.name])
        for spec in layout.arrays
    )
    return sample_bytes, add_shards(layout, sample_bytes)
