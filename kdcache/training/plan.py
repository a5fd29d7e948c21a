"""What a run is before it begins, and which runs can be trained from the same batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.config import Config
from kdcache.training.folder import RESULT, read_result


@dataclass(frozen=True)
class Plan:
    """A run to be made.

    Args:
        config: resolved settings.
        folder: of the run.
        resume: continue an interrupted run; a finished one gives its result.
        wait: for another process that trains in this folder, and take its result; else FolderInUseError.
        baseline: folder of the run it is compared with, if there is one.
    """

    config: Config
    folder: Path
    resume: bool
    wait: bool = False
    baseline: Path | None = None

    def find_baseline_miou(self) -> float | None:
        """Of the baseline, where it is finished. Raises TrainingError where its result is damaged."""
        there = self.baseline is not None and (self.baseline / RESULT).is_file()
        return read_result(self.baseline)["miou"] if there else None


def sharing_key(config: Config) -> tuple:
    """Equal for runs whose batches are the same, in memory too."""
    train, cache = config.train, config.cache
    batches = (
        train.seed,
        train.batch_size,
        train.views,
        config.augment.views,
        train.flip,
        train.crop_hw,
    )
    return (*batches, train.device, train.residency, cache.check, cache.stage_dir, cache.stage_gb)
