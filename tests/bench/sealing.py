"""What the seal of a checkpoint costs: writing it as runs do, and as torch.save alone would."""

from __future__ import annotations

import io
import statistics
from pathlib import Path

import torch

from kdcache import disk
from kdcache.models.stored_state import load_tensors, save_tensors
from kdcache.models.student import LightweightSegmentationModel
from tests.bench.copying import time_s
from tests.bench.data import NUM_CLASSES
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.sizes import Bench

ROUNDS = 15


def measure(bench: Bench) -> list[Figure]:
    """Both, alternating, each flushed to disk; then both readings, from the page cache."""
    state, path = _make_state(), bench.folder / "checkpoint.pth"
    ways = {"sealed": lambda: save_tensors(path, state), "plain": lambda: _save(path, state)}
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            runs[name].append(time_s(way))
    plain_s = statistics.median(time_s(lambda: load_tensors(path)) for _ in range(ROUNDS))
    save_tensors(path, state)
    sealed_s = statistics.median(time_s(lambda: load_tensors(path)) for _ in range(ROUNDS))
    ratio = median_ratio(runs["sealed"], runs["plain"])
    seconds = {name: statistics.median(times_s) for name, times_s in runs.items()}
    details = {"size_mb": path.stat().st_size / 1e6, "read_ratio": sealed_s / plain_s}
    return [make_figure("checkpoint_seal", ratio, runs=runs, seconds=seconds, **details)]


def _save(path: Path, state: dict) -> None:
    """As version 0.1 did."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    disk.replace_file(path, buffer.getbuffer())


def _make_state() -> dict:
    """A student after a step: 34 MB, most of it moments of the optimiser."""
    student = LightweightSegmentationModel(num_classes=NUM_CLASSES, pretrained=False)
    optimizer = torch.optim.AdamW(student.parameters())
    student(torch.zeros(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    return {
        "model_state_dict": student.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
