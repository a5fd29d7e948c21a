"""A student's weights as safetensors: plain numbers with names, which many programs and languages read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdcache import durable
from kdcache.deploy.facts import name_student
from kdcache.deploy.load import TrainedStudent
from kdcache.errors import TrainingError
from kdcache.models.inputs import IMAGENET_MEAN, IMAGENET_STD


def write(student: TrainedStudent, path: Path) -> None:
    """Write the state dict under its own names, each tensor by itself, and the student's facts."""
    facts = {
        **name_student(student),
        "input": "float32 [N, 3, H, W]: RGB / 255, minus mean, over std",
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
    }
    tensors = {
        name: value.clone().contiguous() for name, value in _tensors(student).items()
    }  # none shares another's bytes
    durable.write_file(path, [save(tensors, metadata=facts)])


def check(student: TrainedStudent, path: Path, images: list) -> str:
    """What was found: all tensors are those of the student, bit for bit; no image is asked for. Raises TrainingError."""
    expected, found = _tensors(student), load_file(path)
    bad = [name for name in {**expected, **found} if not _same(expected.get(name), found.get(name))]
    if bad:
        raise TrainingError(
            f"{path}: tensor {bad[0]} differs from the checkpoint's; export it again"
        )
    return f"{len(found)} tensors, equal bit for bit to the checkpoint's"


def _tensors(student: TrainedStudent) -> dict[str, Tensor]:
    state = student.module.state_dict()
    bad = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if bad:
        where = f"{student.folder}: {bad} of the student's state"
        raise TrainingError(
            f"{where} is a {type(state[bad]).__name__}, expected a tensor; use the checkpoint instead"
        )
    return state


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(_bits(a), _bits(b))


def _bits(x: Tensor) -> Tensor:
    """Its bytes: NaN equals itself, and 0 is not -0."""
    return x.contiguous().reshape(-1).view(torch.uint8)
