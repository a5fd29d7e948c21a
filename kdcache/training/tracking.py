"""Trackers of a run: TensorBoard and Weights & Biases.

metrics.jsonl is always written, and has all numbers that they show. A tracker never ends a run: its
first error is logged, and the run goes on without it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from kdcache import disk
from kdcache.config.names import TERMS
from kdcache.disk import read_text
from kdcache.errors import Phrase, SettingsError, describe

log = logging.getLogger("kdcache")
MOST_ID_BYTES = 100
TIMES = {
    "step_s": "time/step_s",
    "data_wait_s": "time/data_wait_s",
    "validation_s": "time/validation_s",
    "time_s": "time/epoch_s",
}
NAMES = {
    "miou": "val/miou",
    "lr": "lr",
    **{term: f"loss/{term}" for term in ("total", *TERMS)},
    **TIMES,
}


class Tracker(Protocol):
    """Receives the numbers of each epoch."""

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of an epoch, which counts from 1, by names such as `val/miou`."""

    def close(self) -> None:
        """Write everything that is still buffered."""


class TensorBoard(Tracker):
    """Event files in the run's folder: `tensorboard --logdir runs` finds them.

    Args:
        folder: of the run.
        first: first epoch to log; entries of it and of later epochs by a killed run are hidden.
    """

    def __init__(self, folder: Path, *, first: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports
            from torch.utils.tensorboard import SummaryWriter
        disk.check_way(folder / "tensorboard", below=folder)
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, resumed under the same id.

    WANDB_MODE, WANDB_PROJECT and its other variables have their usual meaning.

    Args:
        folder: of the run; keeps the id. first: first epoch to log. facts: hyperparameters.
    """

    def __init__(self, folder: Path, *, first: int, facts: Mapping[str, object]) -> None:
        import wandb

        file = folder / "wandb_id"
        disk.check_way(folder / "wandb", below=folder)
        # a new run gets a new id, even in the folder of an older one
        if first == 1 or not file.is_file():
            disk.replace_file(file, uuid.uuid4().hex[:16].encode())
        own_id = read_text(file, most_bytes=MOST_ID_BYTES, follow=False)
        options = {"dir": str(folder), "name": folder.name, "id": own_id}
        options |= {"resume": "allow", "reinit": "create_new"}
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kdcache"), config=dict(facts), **options
        )

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=epoch)

    def close(self) -> None:
        self.run.finish()


class Guarded(Tracker):
    """A tracker that logs its first failure and is silent afterwards.

    Args:
        make: builds the tracker, at the first epoch. name: for the log.
    """

    def __init__(self, make: Callable[[], Tracker], name: str) -> None:
        self.make, self.name = make, name
        self.tracker: Tracker | None = None
        self.failed = False

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self._try(lambda: self._open().log(epoch, numbers))

    def close(self) -> None:
        if self.tracker is not None:
            self._try(lambda: self.tracker.close())

    def _open(self) -> Tracker:
        self.tracker = self.tracker or self.make()
        return self.tracker

    def _try(self, act: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            act()
        except Exception as error:  # whatever a tracker meets: its network, its disk, its service
            self.failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            log.warning(
                "%s: not possible here (%s); the run goes on without, "
                "metrics.jsonl has all numbers",
                self.name,
                reason,
            )


def choose_tracker(
    kind: str, folder: Path, *, first: int, facts: Mapping[str, object]
) -> Guarded | None:
    """The tracker that `run.track` asks for, None if it asks for none.

    Args:
        first: first epoch to log, from 1. facts: hyperparameters of the run.
    """
    if kind == "wandb":
        return Guarded(lambda: WandB(folder, first=first, facts=facts), "W&B")
    if kind == "tensorboard" or (kind == "auto" and is_installed("tensorboard")):
        return Guarded(lambda: TensorBoard(folder, first=first), "TensorBoard")
    return None


def check_tracker(kind: str) -> None:
    """Raise SettingsError if `run.track` names a package that is not installed."""
    if kind in ("tensorboard", "wandb") and not is_installed(kind):
        expected, cure = (
            Phrase(f"{kind} to be installed"),
            f"`pip install 'kdcache[{kind}]'` or set run.track none",
        )
        raise SettingsError(
            describe("settings", field="run.track", found=kind, expected=expected, cure=cure)
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def list_numbers(entry: Mapping[str, object], class_names: list[str]) -> dict[str, float]:
    """The numbers of an epoch that trackers show, by name.

    Args:
        entry: a line of metrics.jsonl.
    """
    numbers = {NAMES[name]: value for name, value in entry.items() if name in NAMES}
    ious = zip(class_names, entry["per_class_iou"], strict=True)
    return numbers | {f"val_iou/{name}": iou for name, iou in ious if iou is not None}
