"""What is measured: one line of the table each, with its goal and what exactly it means."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spec:
    """A figure before it is measured.

    part: who measures it. goal: of what is measured on the CPU; gpu_goal: of what is measured on a
        GPU; None: it is only
    reported. at_least: else at most.
    """

    key: str
    part: str
    unit: str
    definition: str
    goal: float | None = None
    gpu_goal: float | None = None
    at_least: bool = True


SPECS = (
    Spec(
        "read_ratio",
        "reading",
        "ratio",
        goal=0.90,
        definition="random whole samples through BatchReader (check never, residency ram, warm "
        "page cache) over a pure memory "
        "copy of as many bytes into slots of the same shapes by as many threads; median of the "
        "rounds' ratios",
    ),
    Spec(
        "read_ratio_crc",
        "reading",
        "ratio",
        goal=0.50,
        definition="read_ratio with a checksum of every chunk (check always)",
    ),
    Spec(
        "read_ratio_first_pass",
        "reading",
        "ratio",
        definition="read_ratio of the first reading in a fresh reader (check first), slots warm",
    ),
    Spec(
        "read_cold",
        "reading",
        "ratio",
        definition="one pass of random batches by position (check never) over a plain sequential "
        "read of the same files, "
        "both after fsync and posix_fadvise(DONTNEED) on each file; details have mapped reading, "
        "too",
    ),
    Spec(
        "read_rate", "reading", "GB/s", definition="rate behind read_ratio; details have samples/s"
    ),
    Spec(
        "read_vs_dataloader",
        "rivals",
        "times",
        definition="rate of BatchReader (check never) over torch DataLoader (2 workers, "
        "persistent, prefetch 2) on zarr-python, "
        "the same store, order and batches; the goal is 20 where a memory copy reaches that "
        "(details)",
    ),
    Spec(
        "rivals",
        "rivals",
        "times",
        definition="rate of BatchReader (check never) over the fastest library of the table; "
        "details have the table in GB/s",
    ),
    Spec(
        "read_lz4",
        "coded",
        "times",
        definition="rate of BatchReader (check never, residency ram) on a store coded by blosc-lz4 "
        "over the faster of "
        "TensorStore and zarr-python on it; half of its numbers are zeros; details have GB/s and "
        "the share of raw bytes",
    ),
    Spec("read_zstd", "coded", "times", definition="the same with blosc-zstd"),
    Spec(
        "staged_epoch",
        "staging",
        "ratio",
        goal=1.05,
        at_least=False,
        definition="time of the second epoch from a bucket through cache.stage_dir over the second "
        "epoch from the cache in a "
        "folder (check first, residency ram), fresh readers of both in each round, median of the "
        "rounds' ratios; a real S3 "
        "server on this machine; details have the first epochs, that of the first round with the "
        "fetching",
    ),
    Spec(
        "read_h5",
        "packing",
        "ratio",
        goal=0.80,
        definition="read_ratio of the same cache packed into one HDF5 file; details have the rate "
        "over that of the folder",
    ),
    Spec(
        "export_mb_s",
        "packing",
        "MB/s",
        goal=500,
        definition="size of that file over the time to pack it from the page cache by two threads: "
        "chunks checked, file flushed "
        "and all of it read back; details have unpacking, and the process's peak memory (VmHWM) "
        "with and before it",
    ),
    Spec(
        "loss_pixels",
        "loss",
        "times",
        definition="time of cross-entropy + divergence with their gradient as defined "
        "(kdcache.losses.terms, autograd) over "
        "ours in one pass, batch 8, 256x256 (GPU 512x512); details have seconds",
    ),
    Spec(
        "loss_recipe",
        "loss",
        "times",
        definition="time of cross-entropy (2 of 8 images have labels, the others the teacher's "
        "class) + divergence at T = 1 with their gradient over cross-entropy with 8 labels alone, "
        "in one pass; details have seconds, those with a threshold, too",
        at_least=False,
    ),
    Spec(
        "recipe_tax",
        "loss",
        "ratio",
        goal=1.15,
        at_least=False,
        definition="time of a step with the terms of loss_recipe over one with cross-entropy "
        "alone, both from tensors already on the device; same student and compile setting, "
        "alternating",
    ),
    Spec(
        "loss_features", "loss", "times", definition="the same for the feature term of all levels"
    ),
    Spec(
        "kd_tax",
        "training",
        "ratio",
        goal=1.15,
        gpu_goal=1.05,
        at_least=False,
        definition="time a step with all three terms from the cache (residency ram, page cache "
        "warm) over time a step with "
        "cross-entropy alone from tensors already on the device; same student, loss code and "
        "compile setting, alternating; of "
        "each six steps (GPU: 20) the first waits for its batch",
    ),
    Spec(
        "online_speedup",
        "training",
        "times",
        goal=3,
        definition="time a step with the teacher in the loop over time a cached step, batch 8; on "
        "a CPU the goal is at "
        "least 3 and 0.95 of the bound (teacher's forward + cached step) / cached step, on a GPU "
        "it is only reported",
    ),
    Spec(
        "online_speedup_batch32",
        "training_batch32",
        "times",
        definition="online_speedup at batch 32 (GPU only)",
    ),
    Spec(
        "train_rate",
        "training",
        "samples/s",
        definition="samples a second of the cached step; details have GB/s",
    ),
    Spec(
        "residency_gpu",
        "training",
        "times",
        definition="time a cached step with residency ram over one with residency gpu, all samples "
        "in its memory before, alternating",
    ),
    Spec(
        "gpu_busy",
        "gpu",
        "share",
        gpu_goal=0.95,
        definition="share of phase two's wall time in which kernels run (torch.profiler, union of "
        "intervals, copies left "
        "out), residency ram, page cache warm",
    ),
    Spec(
        "registered_shards",
        "gpu",
        "ratio",
        definition="random whole samples to the GPU: rate of one copy a chunk, straight from "
        "mapped shards that "
        "cudaHostRegister has locked, over rate of BatchReader (check never, residency ram, pinned "
        "slots), the same batches, "
        "both warm; details have the seconds of locking",
    ),
    Spec(
        "teacher_tf32",
        "gpu",
        "times",
        definition="images a second of the teacher with teacher.precision tf32 over float32, the "
        "same batches, alternating; details have bfloat16, float16 and teacher.cudnn_benchmark, "
        "too, and how far the answers of each are from those of float32 (largest difference over "
        "largest value)",
    ),
    Spec(
        "benchmark_step",
        "kernels",
        "times",
        definition="time a cached step over one with train.cudnn_benchmark, neither compiled, "
        "alternating, cuDNN's trials done before",
    ),
    Spec(
        "deterministic_step",
        "kernels",
        "times",
        definition="time a cached step with train.deterministic over one without, neither "
        "compiled, alternating; measured with CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment",
    ),
    Spec(
        "phase_one_overlap",
        "phase_one",
        "ratio",
        goal=1.10,
        gpu_goal=1.15,
        at_least=False,
        definition="wall time of phase one from its first batch to its last commit over the "
        "teacher's bare forward time for "
        "the same images in the same batches, uint8 tensors ready in memory; details have number "
        "and size of samples",
    ),
    Spec(
        "phase_one_rate",
        "phase_one",
        "samples/s",
        definition="samples a second of phase one, first batch to last commit",
    ),
    Spec(
        "trust_cost",
        "phase_one",
        "ratio",
        definition="time of that part of phase one over the same without flushes, reading back and "
        "hashes "
        "(tests.bench.trust has the whole of it)",
    ),
    Spec(
        "views_added",
        "phase_one",
        "ratio",
        goal=1.1,
        at_least=False,
        definition="time a sample of adding as many views again to that cache, over time a sample "
        "of building it, first batch "
        "to last commit; details have its training bytes afterwards over those before",
    ),
    Spec(
        "phase_one_scaling",
        "scaling",
        "times",
        goal=1.85,
        definition="time of phase one by one process over that by two, one thread each "
        "(OMP_NUM_THREADS=1; the goal is for two "
        "cores), from when all have their plan to the last commit, new caches of the same samples "
        "in turn; median of ratios",
    ),
    Spec(
        "verify_rate",
        "phase_one",
        "GB/s",
        definition="verify --data of that cache from the page cache",
    ),
    Spec(
        "fidelity_loss_rel",
        "encodings",
        "share",
        goal=1e-5,
        at_least=False,
        definition="relative change of the loss from cached float16 against live float32 answers, "
        "a student after 40 steps, the "
        "larger of both terms; a real teacher's, as all of the encodings' figures (--real CONFIG)",
    ),
    Spec(
        "fidelity_grad_cos",
        "encodings",
        "cosine",
        goal=0.999999,
        definition="cosine of the gradients that the student receives from both, over all its "
        "parameters, dropout off; the "
        "lowest of both terms and all batches of 8",
    ),
    Spec(
        "half_kd_cos",
        "encodings",
        "cosine",
        goal=0.9999,
        definition="the same of the divergence, encoding half",
    ),
    Spec(
        "half_feature_cos",
        "encodings",
        "cosine",
        goal=0.9999,
        definition="the same of the feature term, encoding half",
    ),
    Spec(
        "compact_kd_cos",
        "encodings",
        "cosine",
        goal=0.9999,
        definition="the same of the divergence, encoding compact",
    ),
    Spec(
        "compact_feature_cos",
        "encodings",
        "cosine",
        goal=0.995,
        definition="the same of the feature term, encoding compact",
    ),
    Spec(
        "half_bytes",
        "encodings",
        "share",
        goal=0.55,
        at_least=False,
        definition="bytes of a training sample of half over exact, everything included",
    ),
    Spec(
        "compact_mb",
        "encodings",
        "MB",
        goal=1.6,
        at_least=False,
        definition="megabytes of a compact 512x512 training sample, image, label, checksums, "
        "indices, commit records included; "
        "by area where the settings have another size (details)",
    ),
    Spec(
        "compact_step",
        "encodings",
        "ratio",
        goal=1.0,
        at_least=False,
        definition="time of a training step on compact over one on exact, batch 8, residency disk, "
        "page cache warm",
    ),
    Spec(
        "open_s",
        "opening",
        "s",
        goal=1.0,
        at_least=False,
        definition="open_split of 10,000 samples x 8 views, 16 a shard group, page cache warm; "
        "median of 3 fresh readers",
    ),
    Spec(
        "checkpoint_seal",
        "sealing",
        "ratio",
        goal=1.1,
        at_least=False,
        definition="time to write a checkpoint with its sha256 (34 MB: a student and the moments "
        "of AdamW) over torch.save into memory and writing that, both flushed and renamed, "
        "alternating; details have the ratio of reading",
    ),
    Spec(
        "rss_growth",
        "growth",
        "ratio",
        goal=1.05,
        at_least=False,
        definition="peak resident memory (VmHWM of a child process) at 10,000 samples of 32x32 "
        "over that at 1,000; the larger "
        "ratio of both phases, one epoch each, residency disk",
    ),
    Spec(
        "cost_growth",
        "growth",
        "ratio",
        goal=1.05,
        at_least=False,
        definition="time a sample at 10,000 over that at 1,000 in the same children (median of ten "
        "windows behind the first "
        "tenth, residency disk, each size's median run); the larger ratio of both phases",
    ),
)


@dataclass
class Figure:
    """A measured figure, or the reason why there is none."""

    spec: Spec
    value: float | None
    goal: float | None
    runs: dict[str, list[float]] = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """met, missed, reported (no goal) or skipped (no value)."""
        if self.value is None:
            return "skipped"
        if self.goal is None:
            return "reported"
        return (
            "met"
            if (self.value >= self.goal if self.spec.at_least else self.value <= self.goal)
            else "missed"
        )

    def to_dict(self) -> dict:
        """As bench.json holds it."""
        spec = self.spec
        facts = {
            "value": self.value,
            "unit": spec.unit,
            "goal": self.goal,
            "goal_is": "least" if spec.at_least else "most",
        }
        facts |= {"verdict": self.verdict, "reason": self.reason, "definition": spec.definition}
        return {**facts, "runs": self.runs, "details": self.details}


def find_spec(key: str) -> Spec:
    """The spec of that key."""
    return next(spec for spec in SPECS if spec.key == key)


def find_parts(only: str | None) -> list[str]:
    """The parts that measure what is named (parts or figures, commas between; None: all), in the
    table's order.
    """
    parts = list(dict.fromkeys(spec.part for spec in SPECS))
    part_of = {spec.key: spec.part for spec in SPECS} | {part: part for part in parts}
    names = list(part_of) if only is None else only.split(",")
    unknown = [name for name in names if name not in part_of]
    if unknown:
        raise SystemExit(
            f"--only: {unknown[0]!r} is unknown, expected some of {', '.join(part_of)}"
        )
    wanted = {part_of[name] for name in names}
    return [part for part in parts if part in wanted]


def make_figure(
    key: str,
    value: float,
    *,
    gpu: bool = False,
    goal: float | None = None,
    runs: dict | None = None,
    **details: object,
) -> Figure:
    """A measured figure.

    gpu: whether the GPU was measured. goal: replaces the table's where it depends on what was
        measured.
    """
    spec = find_spec(key)
    if not math.isfinite(value):
        raise ValueError(f"{key} is {value}, expected a finite number")
    usual = spec.gpu_goal if gpu else spec.goal
    return Figure(spec, value, goal if goal is not None else usual, runs or {}, dict(details))


def skip_figure(key: str, reason: str) -> Figure:
    """A figure that this run has not."""
    return Figure(find_spec(key), None, None, reason=reason)


def median_ratio(over: list[float], under: list[float]) -> float:
    """Median of the rounds' ratios: both sides of a round met the same load on the machine."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
