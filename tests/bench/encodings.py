"""What each encoding keeps of a real teacher, what it weighs, and what a training step on it costs.

Needs a real teacher and real images: `python -m tests.bench --only encodings --real CONFIG`,
    settings as both programs take them.
"""

from __future__ import annotations

import statistics
from itertools import cycle, islice
from pathlib import Path

from kdcache.analysis.fidelity import TRAINED, measure_fidelity
from kdcache.cache.layout import commit_key, shard_key
from kdcache.cache.reader import CacheReader, open_split
from kdcache.config import PRESETS, Config, config_to_dict
from kdcache.config.parser import make_config, merge
from kdcache.data.voc import VOC_DIR
from kdcache.precompute.build import build_cache
from kdcache.training.batches import BatchReader
from kdcache.training.learner import build_learner, find_teacher_channels, list_arrays, open_targets
from kdcache.training.order import plan_epoch
from tests.bench import adapter
from tests.bench.copying import time_s
from tests.bench.figures import SPECS, Figure, make_figure, median_ratio, skip_figure
from tests.bench.sizes import Bench

FULL_PX = 512 * 512  # of a sample whose bytes the figures speak of


def measure(bench: Bench) -> list[Figure]:
    """One cache of the same samples by each preset."""
    if bench.real is None:
        reason = "needs a real teacher and real images (--real CONFIG)"
        return [skip_figure(spec.key, reason) for spec in SPECS if spec.part == "encodings"]
    configs = {preset: _configure(bench, preset) for preset in PRESETS}
    for config in configs.values():
        build_cache(config)
    asked = {preset: _ask(bench, config) for preset, config in configs.items()}
    sizes = {preset: _measure_sample(config) for preset, config in configs.items()}
    return [
        *_fidelity_figures(asked),
        *_size_figures(sizes, configs["exact"]),
        _measure_step(bench, configs),
    ]


def _configure(bench: Bench, preset: str) -> Config:
    """The settings given, with a few samples of their lists in two views."""
    given = merge(
        bench.real, {"cache": {"path": str(bench.folder / f"real-{preset}"), "encoding": preset}}
    )
    few = {"dataset": {"root": str(_shorten(bench)), "download": False}, "augment": {"views": 2}}
    return make_config(merge(given, merge(few, {"student": {"pretrained": False}})))


def _shorten(bench: Bench) -> Path:
    """The data set by links, its lists cut short; made once."""
    dataset, short = make_config(bench.real).dataset, bench.folder / "real-data"
    source, target = dataset.root.absolute() / VOC_DIR, short / VOC_DIR
    lists = {dataset.train_split: bench.sizes.real_train, dataset.val_split: bench.sizes.real_val}
    if not target.exists():
        (target / "ImageSets/Segmentation").mkdir(parents=True)
        for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug"):
            if (source / name).is_dir():
                (target / name).symlink_to(source / name)
        for name, count in lists.items():
            ids = (source / f"ImageSets/Segmentation/{name}.txt").read_text().split()
            spread = (
                [ids[index * len(ids) // count] for index in range(count)]
                if count < len(ids)
                else ids
            )
            (target / f"ImageSets/Segmentation/{name}.txt").write_text(
                "".join(f"{id}\n" for id in spread)
            )
    return short


def _ask(bench: Bench, config: Config) -> dict:
    """Of the student after some steps: losses and gradients from cached and from live answers."""
    given = {
        "student": config_to_dict(config)["student"],
        "train": {"batch_size": bench.sizes.batch_size},
    }
    return measure_fidelity(config.cache.path, given, num_samples=bench.sizes.real_asked)[
        "students"
    ]


def _fidelity_figures(asked: dict[str, dict]) -> list[Figure]:
    felt = {preset: students[TRAINED] for preset, students in asked.items()}
    both = [felt["exact"][term] for term in ("kd", "feature")]
    figures = [
        make_figure(
            "fidelity_loss_rel",
            max(f["loss_rel"] for f in both),
            runs={"terms": [f["loss_rel"] for f in both]},
        ),
        make_figure(
            "fidelity_grad_cos",
            min(f["grad_cos"] for f in both),
            runs={"terms": [f["grad_cos"] for f in both]},
        ),
    ]
    for preset in ("half", "compact"):
        for term in ("kd", "feature"):
            cosine = felt[preset][term]["grad_cos"]
            figures.append(
                make_figure(
                    f"{preset}_{term}_cos", cosine, runs={"least": [cosine]}, students=asked[preset]
                )
            )
    return figures


def _measure_sample(config: Config) -> float:
    """Bytes of a training sample on the disk: chunks, checksums, indices, its share of the commit
    records.
    """
    reader = open_split(config.cache.path, "train")
    groups = list(reader.layout.groups())
    paths = [
        (config.cache.path / shard_key(spec, group))
        for spec in reader.layout.arrays
        for group in groups
    ]
    paths += [(config.cache.path / commit_key(group)) for group in groups]
    return sum(path.stat().st_size for path in paths) / (
        reader.num_views * reader.layout.num_samples
    )


def _size_figures(sizes: dict[str, float], config: Config) -> list[Figure]:
    """At 512x512: by area, where the settings have another size."""
    height, width = config.dataset.size_hw
    scale = FULL_PX / (height * width)
    facts = {
        "size_hw": [height, width],
        "scaled_by": scale,
        "mb": {name: size * scale / 1e6 for name, size in sizes.items()},
    }
    half, compact = sizes["half"] / sizes["exact"], sizes["compact"] * scale / 1e6
    return [
        make_figure("half_bytes", half, runs={"share": [half]}, **facts),
        make_figure(
            "compact_mb",
            compact,
            runs={"mb": [compact]},
            share_of_exact=sizes["compact"] / sizes["exact"],
            **facts,
        ),
    ]


def _measure_step(bench: Bench, configs: dict[str, Config]) -> Figure:
    """Steps of three terms, every sample read from its file each time, caches alternating."""
    steps = {preset: _make_steps(bench, configs[preset]) for preset in ("exact", "compact")}
    num_steps, runs = bench.sizes.train_steps, {preset: [] for preset in steps}
    for run in steps.values():
        run(2)
    for _ in range(bench.sizes.tax_rounds):
        for preset, run in steps.items():
            runs[preset].append(time_s(lambda run=run: run(num_steps)) / num_steps)
    seconds = {preset: statistics.median(times) for preset, times in runs.items()}
    return make_figure(
        "compact_step", median_ratio(runs["compact"], runs["exact"]), runs=runs, step_s=seconds
    )


def _make_steps(bench: Bench, config: Config):
    """Trains so many steps."""
    reader: CacheReader = open_split(config.cache.path, "train", check="first")
    learner = build_learner(config, teacher_channels=find_teacher_channels(reader))
    learner.targets = open_targets(reader, learner.device)
    learner.student.train()
    size, num_samples = bench.sizes.batch_size, reader.layout.num_samples
    batches = BatchReader(
        reader,
        arrays=list_arrays(learner),
        batch_size=size,
        device=learner.device,
        residency="disk",
    )
    plan = plan_epoch(num_samples=num_samples, num_views=2, batch_size=size, seed=0, epoch=0)

    def run(num_steps: int) -> None:
        for batch in batches.read(list(islice(cycle(plan), num_steps))):
            adapter.step(learner, batch)
        if bench.gpu:
            adapter.synchronize()

    return run
