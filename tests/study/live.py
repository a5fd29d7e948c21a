"""The teacher in the loop: what distillation without a cache does, for comparison only. Letters: B
batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kdcache.cache.reader import CacheReader
from kdcache.config import Config
from kdcache.models.teacher import Teacher, build_teacher
from kdcache.progress import Progress, Say
from kdcache.report.training import format_epoch
from kdcache.storage.lock import hold_folder
from kdcache.training.batches import Augmentation, Batch, BatchReader, make_augmentation
from kdcache.training.checkpoint import LAST, read_checkpoint, restore, save_checkpoint
from kdcache.training.learner import build_learner, choose_arithmetic, find_teacher_channels
from kdcache.training.loop import Learner, run_epoch
from kdcache.training.run_folder import (
    RESULT,
    read_result,
    seal_files,
    write_history,
    write_result,
    write_settings,
)
from kdcache.training.run_identity import check_folder, find_origin
from kdcache.training.samples import Data


def ask_teacher(teacher: Teacher, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Image and label of each batch as they are, the teacher's float32 answers in place of all
    stored ones.
    """
    for batch in batches:
        kept = {name: batch.arrays[name] for name in ("image", "label") if name in batch.arrays}
        answer = {
            name: value.clone() for name, value in teacher(batch.arrays["image"]).items()
        }  # no inference tensors
        yield Batch({**kept, **answer}, batch.sample_ids)


@dataclass(frozen=True)
class LiveReader:
    """Reads as a BatchReader does: stored images and labels, moved as `train.flip` and `train.crop`
    say, and what the teacher
    says of them then: a cached answer is moved instead."""

    teacher: Teacher
    stored: BatchReader
    augmentation: Augmentation | None
    epoch: int

    @property
    def reader(self) -> CacheReader:
        """Of the stored images and labels."""
        return self.stored.reader

    @property
    def wait_s(self) -> float:
        """Seconds of waiting for those; the teacher's are part of each step."""
        return self.stored.wait_s

    def read(self, batches: list) -> Iterator[Batch]:
        """Batches in the order of `batches`."""
        stored = self.stored.read(batches)
        moved = (
            (self.augmentation.apply(batch, epoch=self.epoch) for batch in stored)
            if self.augmentation
            else stored
        )
        return ask_teacher(self.teacher, moved)


def train_live(config: Config, data: Data, *, folder: Path, progress: Progress, say: Say) -> dict:
    """The run of kdcache.training.run.train_run with the teacher present: same student, images,
    order and dropout.

    Goes on with an interrupted run after its last epoch; a finished one gives its result.

    Returns: the contents of result.json. Raises: KdcacheError.
    """
    check_folder(config, data.manifest, folder, resume=True)
    if (folder / RESULT).is_file():
        return read_result(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with hold_folder(folder):
        write_settings(folder, config)
        teacher = _build_teacher(
            config
        )  # first: the weights it begins with are drawn from dropout's generator
        learner = build_learner(config, teacher_channels=find_teacher_channels(data.train))
        history = _restore_history(learner, folder)
        stored, val = _make_readers(config, data, device=learner.device)
        for epoch in range(len(history) + 1, config.train.epochs + 1):
            train = LiveReader(teacher, stored, make_augmentation(config), epoch)
            entry, _ = run_epoch(config, learner, train, val, epoch=epoch, progress=progress)
            history.append(entry)
            save_checkpoint(folder / LAST, learner, facts=_facts(config, data, history))
            write_history(folder, history)
            say(
                format_epoch(history[-1], config, best_miou=max(entry["miou"] for entry in history))
            )
        result = _make_result(config, data, history)
        write_result(folder, result)
    return result


def _restore_history(learner: Learner, folder: Path) -> list[dict]:
    if not (folder / LAST).is_file():
        return []
    state = read_checkpoint(folder / LAST)
    restore(learner, state, where=folder)
    write_history(folder, state["history"])  # the run may have ended between the two
    return state["history"]


def _build_teacher(config: Config) -> Teacher:
    device, _ = choose_arithmetic(config)
    classes, levels = config.dataset.num_classes, config.cache.levels
    return build_teacher(config.teacher, num_classes=classes, levels=levels, device=device)[0]


def _make_readers(
    config: Config, data: Data, *, device: torch.device
) -> tuple[BatchReader, BatchReader]:
    """Images and labels of both splits."""
    train, val = (
        BatchReader(
            reader, arrays=["image", "label"], batch_size=config.train.batch_size, device=device
        )
        for reader in (data.train, data.val)
    )
    return train, val


def _facts(config: Config, data: Data, history: list[dict]) -> dict:
    return {
        "epoch": len(history),
        "miou": history[-1]["miou"],
        "history": history,
        **find_origin(config, data.manifest),
    }


def _make_result(config: Config, data: Data, history: list[dict]) -> dict:
    best = max(history, key=lambda entry: entry["miou"])
    return {"miou": best["miou"], "best_epoch": best["epoch"], "last_miou": history[-1]["miou"],
            "epochs": len(history), "seconds": sum(entry["time_s"] for entry in history),
            **find_origin(config, data.manifest), "sealed": seal_files(history)}  # fmt: skip
