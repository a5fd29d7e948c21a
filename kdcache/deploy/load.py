"""The best student of a run, from its folder alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from kdcache.config import Config
from kdcache.config.names import BUILT_IN_STUDENT
from kdcache.config.parser import drop_unknown, make_config
from kdcache.config.yaml_file import check_settings_file
from kdcache.errors import Phrase, SettingsError, TrainingError, describe, one_line
from kdcache.models.arch import hash_source
from kdcache.models.inputs import normalize_images
from kdcache.training.checkpoint import BEST, read_student
from kdcache.training.folder import SETTINGS

log = logging.getLogger("kdcache")
_NO_RUN = "give the folder of a run whose first epoch is done"


@dataclass(frozen=True)
class TrainedStudent:
    """The best student of a run so far, on the CPU, in eval mode.

    Args:
        folder: of the run. config: its settings.
        module: normalised images [N, 3, H, W] -> logits [N, K, H, W].
        epoch: the best one, from 1. miou: of that epoch on val, 0 to 1.
        cache_identity: sha256 of what it was trained on.
    """

    folder: Path
    config: Config
    module: nn.Module
    epoch: int
    miou: float
    cache_identity: str

    @torch.inference_mode()
    def ask(self, image_NHW3: np.ndarray) -> Tensor:
        """Logits float32 [N, K, H, W] of uint8 RGB images, as in validation on a CPU. Raises TrainingError where it fails."""
        try:
            return self.module(normalize_images(torch.from_numpy(image_NHW3)))
        except Exception as error:  # whatever code of the user's meets; of a CPU's memory torch has no error of its own
            height, width = image_NHW3.shape[1:3]
            reason = one_line(error, named=True)
            raise TrainingError(
                f"{self.folder}: student fails at an image of {height}x{width} ({reason}); try another size"
            ) from None


def load_student(run: Path) -> TrainedStudent:
    """Read `config.yaml` and the best checkpoint of a run; it need not be finished.

    Raises: SettingsError where `run` is none, TrainingError where its checkpoint is damaged or of another student.
    """
    for name in (SETTINGS, BEST):
        if not (run / name).is_file():
            found, expected = (
                Phrase("no run" if run.is_dir() else "missing"),
                Phrase(f"a run with {name}"),
            )
            raise SettingsError(
                describe(run, field="folder", found=found, expected=expected, cure=_NO_RUN)
            )
    config = _read_config(run / SETTINGS)
    module, state = read_student(config, run / BEST)
    _warn_of_other_source(config, state)
    try:
        best = state["history"][-1]
        facts = int(best["epoch"]), float(best["miou"]), str(state["cache_identity"])
    except (TypeError, KeyError, IndexError, ValueError):
        raise TrainingError(
            f"{run / BEST}: checkpoint is unreadable (its history); give another run"
        ) from None
    return TrainedStudent(run, config, module, *facts)


def _read_config(path: Path) -> Config:
    check_settings_file(path)
    try:
        return make_config(drop_unknown(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # edited by hand
        reason = one_line(error)
        raise SettingsError(
            f"{path}: settings are unreadable ({reason}); restore the file"
        ) from None


def _warn_of_other_source(config: Config, state: dict) -> None:
    arch = config.student.arch
    trained = (
        state["hyperparameters"].get("student.source")
        if isinstance(state["hyperparameters"], dict)
        else None
    )
    if arch != BUILT_IN_STUDENT and trained != hash_source(arch):
        log.warning("the file of student.arch %s has changed since the run was trained", arch)
