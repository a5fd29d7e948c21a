"""A trained student: read from the folder of its run, with the facts that an exported file states.

Letters: N images, H height, W width, K classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.config import Config
from kdcache.config.parser import make_config
from kdcache.errors import Phrase, SettingsError, TrainingError, describe, one_line
from kdcache.models.inputs import IMAGENET_MEAN, IMAGENET_STD, normalize_images
from kdcache.models.own_code import Trust
from kdcache.training.checkpoint import BEST, read_student
from kdcache.training.run_folder import SETTINGS, read_run_settings


@dataclass(frozen=True)
class TrainedStudent:
    """The best student of a run so far, on the CPU, in eval mode.

    Args:
        folder: the run's folder.
        config: the run's settings.
        module: normalised images [N, 3, H, W] -> logits [N, K, H, W].
        epoch: the best epoch, from 1.
        miou: mIoU on val after that epoch, 0 to 1.
        cache_identity: sha256 of the cache it was trained from.
    """

    folder: Path
    config: Config
    module: nn.Module
    epoch: int
    miou: float
    cache_identity: str

    @property
    def autocast(self) -> torch.dtype | None:
        """In what the student was scored on a CPU; None: float32."""
        return torch.bfloat16 if self.config.train.precision == "bfloat16" else None

    @torch.inference_mode()
    def ask(self, image_NHW3: np.ndarray, *, autocast: torch.dtype | None = None) -> Tensor:
        """Logits float32 [N, K, H, W] of uint8 RGB images, on the CPU.

        Args:
            autocast: what the student computes in; None: float32, as exported files do.

        Raises: TrainingError if the student fails on images of this size.
        """
        try:
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                return self.module(normalize_images(torch.from_numpy(image_NHW3)))
        except Exception as error:  # the user's code may raise anything, torch a bare RuntimeError
            height, width = image_NHW3.shape[1:3]
            raise TrainingError(
                f"{self.folder}: student fails on an image of {height}x{width} "
                f"({one_line(error, named=True)}); try another size"
            ) from None

    def describe(self) -> dict[str, str]:
        """What every exported file states: class names in order, origin, and mIoU on val, as
        text.
        """
        return {
            "class_names": json.dumps(self.config.dataset.names, ensure_ascii=False),
            "arch": self.config.student.arch,
            "cache_identity": self.cache_identity,
            "epoch": str(self.epoch),
            "miou": repr(self.miou),
            "val_size": json.dumps(self.config.dataset.val_hw),
            "kdcache": version("kdcache"),
        }


class ByteStudent(nn.Module):
    """A student with the normalisation inside, so that nobody can forget it or do it differently.

    Args:
        student: normalised images [N, 3, H, W] -> logits [N, K, H, W].
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN) * 255)
        self.register_buffer("std", torch.tensor(IMAGENET_STD) * 255)
        self.eval()

    def forward(self, image_NHW3: Tensor) -> Tensor:
        """Logits float32 [N, K, H, W] of uint8 RGB images; the arithmetic is
        `normalize_images`'.
        """
        return self.student(((image_NHW3.float() - self.mean) / self.std).permute(0, 3, 1, 2))


def load_student(run: Path, *, trust: Trust | None = None) -> TrainedStudent:
    """Read `config.yaml` and the best checkpoint of a run, which need not be finished.

    Args:
        trust: whether a student of the user's that the run names may be imported (default: no).

    Raises: SettingsError if `run` is no run's folder, has no finished epoch or names a student that
    may not be imported; TrainingError if its checkpoint is damaged or belongs to another student.
    """
    for name in (SETTINGS, BEST):
        if not (run / name).is_file():
            found = Phrase("no run" if run.is_dir() else "missing")
            expected = Phrase(f"a run with {name}")
            cure = "give the folder of a run whose first epoch is done"
            raise SettingsError(
                describe(run, field="folder", found=found, expected=expected, cure=cure)
            )
    config = make_config(read_run_settings(run))
    module, state = read_student(config, run / BEST, trust=trust)
    try:
        best = state["history"][-1]
        facts = int(best["epoch"]), float(best["miou"]), str(state["cache_identity"])
    except (TypeError, KeyError, IndexError, ValueError):
        raise TrainingError(
            f"{run / BEST}: checkpoint is unreadable (its history); give another run"
        ) from None
    return TrainedStudent(run, config, module, *facts)
