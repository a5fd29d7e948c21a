"""Writes a student in another format; the file takes its name once it was compared with the student."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from kdcache import durable
from kdcache.deploy.load import TrainedStudent
from kdcache.errors import Phrase, SettingsError, describe, one_line
from kdcache.progress import Say

FILES = {"onnx": "student.onnx", "safetensors": "student.safetensors", "executorch": "student.pte"}


def import_format(name: str) -> ModuleType:
    """The module that writes a format. Raises SettingsError where its extra is not installed."""
    try:
        return importlib.import_module(f"kdcache.deploy.{name}")
    except ImportError as error:  # missing, or of a version that does not fit
        found, expected = (
            Phrase(f"{name} ({one_line(error)})"),
            Phrase("a format that is installed"),
        )
        cure = f"`pip install 'kdcache[{name}]'`"
        raise SettingsError(
            describe("export", field="--to", found=found, expected=expected, cure=cure)
        ) from None


def export_student(
    student: TrainedStudent,
    *,
    to: str,
    find_images: Callable[[], list[np.ndarray]],
    say: Say = lambda text: None,
) -> Path:
    """Write the student into its run's folder, compare, and give the file its name.

    Args:
        to: one of FILES.
        find_images: gives real images for the comparison, uint8 RGB [H, W, 3] of validation's size, one at least.
        say: called with each text a person should read.

    Raises: SettingsError, TrainingError where it cannot be exported or differs; then nothing is left of it.
    """
    module, path = import_format(to), student.folder / FILES[to]
    partial = durable.partial_path(path)
    whose = f"the student of epoch {student.epoch}, mIoU {student.miou:.4f} on val"
    say(f"{student.folder}: {whose}; export to {to} takes a while")
    images = [] if to == "safetensors" else find_images()  # before the long wait
    try:
        module.write(student, partial)
        result = module.check(student, partial, images)
        durable.rename(partial, path)
        durable.sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {result}")
    return path
