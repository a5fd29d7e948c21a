"""A few answers of the teacher before a cache is built: what they weigh in each encoding, and how
right they are.

Letters: N samples, C channels, K classes, H, W height and width (of the grid at hand).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.basis import BasisLearner, count_basis_bytes
from kdcache.cache.codecs import choose_codec
from kdcache.cache.encodings import LARGEST, Encoder
from kdcache.cache.layout import CRC_BYTES, DTYPES, SplitLayout
from kdcache.cache.settings import build_layouts
from kdcache.cache.writer import encode_samples
from kdcache.config import LEVELS, PRESETS, Config
from kdcache.data.pictures import Sample
from kdcache.forecast.costs import sum_shards
from kdcache.forecast.probe import Probe, pick_samples
from kdcache.metrics import compute_miou, count_confusion
from kdcache.models.inputs import resize_to
from kdcache.precompute.bases import choose_encodings
from kdcache.precompute.group import draw_view, refuse_answer
from kdcache.precompute.pipeline import Job
from kdcache.precompute.score import find_warning
from kdcache.progress import Progress

CODECS = ("raw", "blosc-zstd")
MOST_KEPT = 16  # samples whose answers are kept
MOST_KEPT_BYTES = 1 << 29  # of them as float32: 16 samples at 512x512 are 475 MB
ENCODED_AT_ONCE = 4  # samples


@dataclass(frozen=True)
class Asked:
    """Samples of a split and the teacher's answers about them.

    views: "image" [N, H, W, 3] and "label" [N, H, W], uint8. answers: name -> float32 [N, C, H, W]
    on the host. peaks: name -> largest magnitude, also of samples that were not kept.
    sample_s: seconds of the teacher alone.
    """

    views: dict[str, np.ndarray]
    answers: dict[str, Tensor]
    peaks: dict[str, float]
    sample_s: float


def ask_teacher(job: Job, split: str, *, least: int, progress: Progress) -> Asked:
    """Ask about `least` or more samples, in batches as phase one makes them.

    If there are several batches, the first warms up and is not timed. Raises DataError, and
    TeacherError naming a sample whose answer phase one could not store.
    """
    size = min(job.config.teacher.batch_size, job.config.cache.shard_samples)
    samples, num_batches = job.splits[split].samples, max(-(-least // size), min(least, 2))
    chosen = [samples[index] for index in pick_samples(len(samples), num_batches * size)]
    names = list(job.manifest.encodings) if split == "train" else ["logits"]
    views, times, peaks = [], [], dict.fromkeys(names, 0.0)
    answers: dict[str, list[Tensor]] = {name: [] for name in names}
    with progress.start(f"asking about {split}", total=len(chosen), unit="samples") as bar:
        for batch in (chosen[start : start + size] for start in range(0, len(chosen), size)):
            drawn = [draw_view(job.config, sample, split=split, view=0)[:2] for sample in batch]
            answer, time_s = _ask(job, np.stack([image for image, _ in drawn]))
            times.append(time_s / len(batch))
            room = max(_count_room(answer, names) - len(views), 0)
            views += drawn[:room]
            for name, values in answers.items():
                limit = job.encoder.find_limit(name, split=split)
                peaks[name] = max(peaks[name], _find_peak(name, answer[name], batch, limit))
                values.append(answer[name][:room].float().to("cpu", copy=True))
            bar.advance(len(batch))
    images, labels = (np.stack(arrays) for arrays in zip(*views, strict=True))
    kept = {name: torch.cat(values) for name, values in answers.items()}
    sample_s = float(np.mean(times[1:] or times))
    return Asked({"image": images, "label": labels}, kept, peaks, sample_s)


def _ask(job: Job, image_NHWC: np.ndarray) -> tuple[dict[str, Tensor], float]:
    """The answer and the seconds it took, on a GPU without the copy to the host."""
    began_s = time.monotonic()
    answer = job.teacher(torch.from_numpy(image_NHWC))
    if job.teacher.device.type == "cuda":
        torch.cuda.synchronize(job.teacher.device)
    return answer, time.monotonic() - began_s


def _count_room(answer: Mapping[str, Tensor], names: Sequence[str]) -> int:
    """How many samples are kept in all."""
    sample_bytes = sum(4 * answer[name][0].numel() for name in names)
    return min(MOST_KEPT, max(MOST_KEPT_BYTES // sample_bytes, 1))


def _find_peak(name: str, values_NCHW: Tensor, samples: Sequence[Sample], limit: float) -> float:
    """Largest magnitude. Raises TeacherError naming the sample that is over `limit`."""
    peaks_N = values_NCHW.abs().amax((1, 2, 3)).cpu()
    bad = (~(peaks_N <= limit)).nonzero()  # catches NaN, too
    if len(bad):
        row = int(bad[0])
        raise refuse_answer(samples[row].id, name, peak=peaks_N[row].item(), limit=limit)
    return peaks_N.max().item()


@dataclass(frozen=True)
class OtherEncoding:
    """One preset and codec: bytes a training sample, and of all arrays and bases of the cache."""

    encoding: str
    codec: str
    sample_bytes: float
    size_bytes: float


@dataclass(frozen=True)
class EncodingTable:
    """What the asked samples take in each encoding and codec.

    here_bytes: the cache as the settings are, measured on these samples. others: every preset, raw
    and coded, except the settings'. left_out: presets that the answers are too large for.
    num_samples: training samples that were encoded.
    """

    here_bytes: float
    others: list[OtherEncoding]
    left_out: list[str]
    num_samples: int


def weigh_encodings(job: Job, asked: Mapping[str, Asked], *, progress: Progress) -> EncodingTable:
    """Encode and code the asked samples of val and train in every way that can hold them.

    Bases that the settings do not ask for are learned from the same answers.
    """
    train, here = asked["train"], job.manifest.layouts
    _, here_bytes = _weigh(job, here, job.encoder, asked)
    bases, others, seen = _find_bases(job, train), [], [here["train"].arrays]
    fitting = [preset for preset in PRESETS if _fits(job.config, preset, train.peaks)]
    with progress.start("coding in other ways", total=len(fitting), unit="encodings") as bar:
        for preset in fitting:
            config = replace(job.config, cache=replace(job.config.cache, encoding=preset))
            encodings = choose_encodings(config.cache, bases)
            encoder = Encoder(encodings, bases, job.teacher.device)
            for codec in CODECS:
                layouts = build_layouts(
                    config,
                    num_samples={split: layout.num_samples for split, layout in here.items()},
                    targets=job.targets,
                    encodings=encodings,
                    codecs={dtype: choose_codec(codec, dtype) for dtype in DTYPES},
                )
                if layouts["train"].arrays not in seen:
                    seen.append(layouts["train"].arrays)
                    weight = _weigh(job, layouts, encoder, asked)
                    others.append(OtherEncoding(preset, codec, *weight))
            bar.advance(1)
    left_out = [preset for preset in PRESETS if preset not in fitting]
    return EncodingTable(here_bytes, others, left_out, len(train.views["image"]))


def _fits(config: Config, preset: str, peaks: Mapping[str, float]) -> bool:
    """Whether the preset's encodings can hold answers of these magnitudes."""
    kinds = replace(config.cache, encoding=preset).kinds
    return all(peaks[name] <= LARGEST[kind] for name, kind in kinds.items())


def _find_bases(job: Job, asked: Asked) -> dict[str, np.ndarray]:
    """Bases of all levels: the job's, else learned here, of no more coefficients than channels."""
    learner, ranks = BasisLearner(), {}
    for level in (level for level in LEVELS if level in asked.answers and level not in job.bases):
        ranks[level] = min(getattr(job.config.cache.rank, level), asked.answers[level].shape[1])
        for values in asked.answers[level].split(ENCODED_AT_ONCE):
            learner.add(level, values)
    return {**learner.finish(ranks), **job.bases}


def _weigh(
    job: Job, layouts: Mapping[str, SplitLayout], encoder: Encoder, asked: Mapping[str, Asked]
) -> tuple[float, float]:
    """Bytes of a training sample, and of all arrays and bases."""
    device = job.teacher.device
    sample_bytes = {  # unlabelled images weigh as those of train, without label
        split: _measure_sample(layout, encoder, asked.get(split, asked["train"]), device=device)
        for split, layout in layouts.items()
    }
    arrays = sum(sum_shards(layouts[split], size) for split, size in sample_bytes.items())
    return sample_bytes["train"], arrays + sum(count_basis_bytes(encoder.encodings).values())


def _measure_sample(
    layout: SplitLayout, encoder: Encoder, asked: Asked, *, device: torch.device
) -> float:
    """Mean bytes of a sample's chunks and checksums over all arrays."""
    total, count = 0, len(asked.views["image"])
    for start in range(0, count, ENCODED_AT_ONCE):
        rows = slice(start, start + ENCODED_AT_ONCE)
        answer = {name: values[rows].to(device) for name, values in asked.answers.items()}
        arrays = {
            name: values.cpu().contiguous().numpy()
            for name, values in encoder.encode(answer, split=layout.split).items()
        }
        arrays |= {name: values[rows] for name, values in asked.views.items()}
        for spec in layout.arrays:
            chunks = encode_samples(spec, arrays[spec.name])
            total += sum(chunk.size + CRC_BYTES for chunk in chunks)
    return total / count


def estimate_score(config: Config, probe: Probe, train: Asked) -> dict:
    """mIoU (0 to 1) on the probe's val samples and on training views, and the warning they earn.

    Args:
        train: what was asked about training views.

    Returns: JSON values; "warning" is None if phase one would have none.
    """
    labels_NHW, num_classes = torch.from_numpy(train.views["label"]), config.dataset.num_classes
    confusion_KK = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for logits, label_HW in zip(train.answers["logits"], labels_NHW, strict=True):
        classes = resize_to(logits[None], label_HW.shape).argmax(1)
        confusion_KK += count_confusion(classes, label_HW[None], num_classes=num_classes)
    val_miou, train_miou = compute_miou(probe.val_confusion_KK), compute_miou(confusion_KK)
    warning = find_warning(val_miou, train_miou, config=config, val_scale=probe.val_scale)
    counts = {"val": probe.num_samples["val"], "train": len(labels_NHW)}
    return {
        "val_miou": val_miou,
        "train_miou": train_miou,
        "num_samples": counts,
        "warning": warning,
    }
