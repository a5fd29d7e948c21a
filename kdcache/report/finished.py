"""A finished run, as its folder tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.errors import TrainingError
from kdcache.training.checkpoint import BEST, read_checkpoint
from kdcache.training.folder import RESULT, read_history, read_result

NEEDED = ("baseline_miou", "teacher_miou", "improvement_points", "improvement_percent", "per_class_iou", "params",
          "epochs", "best_epoch", "seconds")  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """What a run left.

    result: contents of result.json.
    history: an entry an epoch, from epoch 1 on.
    confusion_KK: of the best epoch on val, int64 [K, K], row: label, column: prediction; None where the best checkpoint is gone.
    """

    folder: Path
    result: dict
    history: list[dict]
    confusion_KK: np.ndarray | None

    @property
    def ious(self) -> list[float | None]:
        """IoU of each class at the best epoch, 0 to 1; None for a class that does not occur."""
        return list(self.result["per_class_iou"].values())


def read_finished(folder: Path) -> Finished:
    """Raises TrainingError where a file of the run is missing or damaged; its best checkpoint may be missing."""
    result = read_result(folder)
    missing = [name for name in NEEDED if name not in result]
    if missing:
        raise TrainingError(
            f"{folder / RESULT}: result is unreadable (it has no {missing[0]}); delete the run folder and start again"
        )
    return Finished(folder, result, read_history(folder), _read_confusion(folder / BEST))


def _read_confusion(checkpoint: Path) -> np.ndarray | None:
    return read_checkpoint(checkpoint)["confusion"].numpy() if checkpoint.is_file() else None
