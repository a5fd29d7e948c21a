"""Phase one against the teacher's bare forward time, with the commit protocol and without."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.reader import open_split
from kdcache.config import Config
from kdcache.config.parser import make_config
from kdcache.data.sample_set import CLASS_NAMES, write_sample_set
from kdcache.models.teacher import Teacher, build_fcn, build_teacher
from kdcache.precompute.build import build_cache
from kdcache.report.cache_text import describe_cache
from tests.bench.adapter import time_writing
from tests.bench.copying import time_s
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.sizes import Bench, BuildSizes
from tests.bench.trust import measure_build, measure_verify, without_protocol


def measure(bench: Bench) -> list[Figure]:
    """Bare forward, phase one without protocol, phase one, as many views again: alternating."""
    config = make_config(prepare_build(bench, bench.build, batch_size=bench.sizes.batch_size))
    _, size_bytes = measure_build(config)
    teacher, batches = _make_bare(bench, config)
    _ask_all(teacher, batches)
    runs: dict[str, list[float]] = {
        "forward": [],
        "phase_one": [],
        "without_protocol": [],
        "added": [],
    }
    more = replace(config, augment=replace(config.augment, views=2 * config.augment.views))
    for _ in range(bench.sizes.build_rounds):
        runs["forward"].append(time_s(lambda: _ask_all(teacher, batches)))
        with without_protocol(), time_writing() as times_s:
            measure_build(config)
        runs["without_protocol"] += times_s
        with time_writing() as times_s:
            measure_build(config)
        runs["phase_one"] += times_s
        before_bytes = _sum_train_bytes(config)
        with time_writing() as times_s:
            build_cache(more)
        runs["added"] += times_s
    added = _make_added(bench, runs, grown=_sum_train_bytes(config) / before_bytes)
    return [*_make_figures(bench, config, runs, size_bytes=size_bytes), added]


def _make_figures(
    bench: Bench, config: Config, runs: dict[str, list[float]], *, size_bytes: int
) -> list[Figure]:
    build, num_samples = bench.build, bench.build.num_samples
    phase_one_s = statistics.median(runs["phase_one"])
    overlap = median_ratio(runs["phase_one"], runs["forward"])
    verified = [
        measure_verify(config.cache.path, data=True) for _ in range(bench.sizes.build_rounds)
    ]
    rates = [num_bytes / took_s / 1e9 for took_s, num_bytes in verified]
    facts = {
        "num_samples": num_samples,
        "px": build.px,
        "views": build.views,
        "gb_s": size_bytes / phase_one_s / 1e9,
    }
    two = ("phase_one", "forward"), ("phase_one", "without_protocol")
    return [
        make_figure(
            "phase_one_overlap",
            overlap,
            gpu=bench.gpu,
            runs={name: runs[name] for name in two[0]},
            **facts,
        ),
        make_figure("phase_one_rate", num_samples / phase_one_s, **facts),
        make_figure(
            "trust_cost",
            median_ratio(*(runs[name] for name in two[1])),
            runs={name: runs[name] for name in two[1]},
        ),
        make_figure("verify_rate", statistics.median(rates), runs={"gb_s": rates}),
    ]


def _make_added(bench: Bench, runs: dict[str, list[float]], *, grown: float) -> Figure:
    build = bench.build
    a_sample = {"added": build.train * build.views, "phase_one": build.num_samples}
    times = {name: [took_s / count for took_s in runs[name]] for name, count in a_sample.items()}
    return make_figure(
        "views_added",
        median_ratio(times["added"], times["phase_one"]),
        runs=times,
        bytes_grown=grown,
    )


def _sum_train_bytes(config: Config) -> int:
    return sum(
        array["bytes"]
        for array in describe_cache(config.cache.path)["splits"]["train"]["arrays"].values()
    )


def prepare_build(bench: Bench, build: BuildSizes, *, batch_size: int) -> dict:
    """Data set, a checkpoint with random weights; returns settings of a cache with a shard group a
    batch.
    """
    data, weights = bench.folder / "pictures", bench.folder / "teacher.pth"
    write_sample_set(data, num_train=build.train, num_val=build.val, size_px=build.px)
    torch.manual_seed(0)
    torch.save(
        build_fcn("fcn_resnet50", num_classes=len(CLASS_NAMES), aux_head=False).state_dict(),
        weights,
    )
    shutil.rmtree(bench.folder / "built", ignore_errors=True)
    return {
        "dataset": {
            "root": str(data),
            "num_classes": len(CLASS_NAMES),
            "class_names": list(CLASS_NAMES),
            "size": build.px,
            "download": False,
        },
        "augment": {"views": build.views},
        "teacher": {"weights": str(weights), "batch_size": batch_size},
        "cache": {"path": str(bench.folder / "built"), "shard_samples": batch_size},
    }


def _make_bare(bench: Bench, config: Config) -> tuple[Teacher, list[Tensor]]:
    """The teacher, and the images of the cache in the batches that phase one asks about."""
    teacher, _ = build_teacher(
        config.teacher,
        num_classes=config.dataset.num_classes,
        levels=config.cache.levels,
        device=bench.device,
    )
    return teacher, [batch for split in ("val", "train") for batch in read_images(config, split)]


def read_images(config: Config, split: str) -> list[Tensor]:
    """The images of all views of a split, batch by batch; as in phase one, no batch holds two
    views.
    """
    reader = open_split(Path(config.cache.path), split)
    shape = (reader.num_views, reader.layout.num_samples, *reader.layout.array("image").item_shape)
    images = torch.empty(shape, dtype=torch.uint8)
    for view, sample in np.ndindex(shape[:2]):
        reader.read_into(images[view, sample].numpy(), array="image", view=view, sample=sample)
    return [batch for view in images for batch in view.split(config.teacher.batch_size)]


def _ask_all(teacher: Teacher, batches: list[Tensor]) -> None:
    for batch in batches:
        teacher(batch)
    if teacher.device.type == "cuda":
        torch.cuda.synchronize()
