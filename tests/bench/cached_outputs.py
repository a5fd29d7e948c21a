"""torchdistill's own cache of a teacher's answers, read by its own loader, where it is installed.

Its last release with one is 1.1.4 (`cache_output` of a loader): `pip install --no-deps
torchdistill==1.1.4`.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from tests.bench.adapter import LEVELS

NEEDED = "torchvision.datasets"
Place = tuple[int, int]


class _Pictures(Dataset):
    """Image and label of each sample, from memory."""

    def __init__(self, source: dict[str, np.ndarray]) -> None:
        self.image, self.label = (
            torch.from_numpy(source[name].copy()) for name in ("image", "label")
        )

    def __getitem__(self, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image[sample], self.label[sample]

    def __len__(self) -> int:
        return len(self.image)


class _Order(Sampler):
    """An order that can be exchanged: the workers stay."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


def load_by_torchdistill(
    folder: Path, source: dict[str, np.ndarray], *, batch_size: int, num_workers: int
) -> dict[str, Callable[[list[list[Place]]], None]]:
    """Its name -> reads batches; empty where it is missing or caches nothing."""
    # its modules need these to be imported already, in each worker, too
    importlib.import_module(NEEDED)
    multiprocessing.set_forkserver_preload([NEEDED])
    try:
        from torchdistill.datasets.util import build_data_loader
        from torchdistill.datasets.wrapper import default_idx2subpath
    except ImportError:
        return {}
    for sample in range(len(source["image"])):
        _keep(folder / f"{default_idx2subpath(sample)}.pt", source, sample)
    order, workers = _Order(), {"num_workers": num_workers}
    if num_workers:
        workers |= {"multiprocessing_context": "forkserver", "persistent_workers": True}
    config = {
        "cache_output": str(folder),
        "sampler": {"class_or_func": lambda dataset: order},
        "kwargs": {"batch_size": batch_size, **workers},
    }
    loader = build_data_loader(_Pictures(source), config, distributed=False)

    def read(batches: list[list[Place]]) -> None:
        order.samples = [sample for batch in batches for _, sample in batch]
        for _, _, more in loader:
            assert len(more["cached_data"]["teacher_outputs"])  # no file was missing

    return {f"torchdistill {_find_version()}, cached outputs, {num_workers} workers": read}


def _keep(path: Path, source: dict[str, np.ndarray], sample: int) -> None:
    """As its `DistillationBox` keeps an answer: float32, the outputs of modules by path."""
    kept = {
        name: torch.from_numpy(source[name][sample].astype(np.float32))
        for name in ("logits", *LEVELS)
    }
    modules = {f"backbone.{name}": {"output": kept[name]} for name in LEVELS}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"teacher_outputs": kept["logits"], "extracted_outputs": modules}, path)


def _find_version() -> str:
    try:
        return version("torchdistill")
    except PackageNotFoundError:
        return "(version unknown)"
