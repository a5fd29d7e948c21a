"""A student's weights as safetensors: tensors with names, which many programs and languages
read.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdcache import disk
from kdcache.deploy.student import TrainedStudent
from kdcache.errors import TrainingError
from kdcache.models.inputs import IMAGENET_MEAN, IMAGENET_STD


def write(student: TrainedStudent, path: Path) -> None:
    """Write the state dict under its own names, with the student's facts as metadata.

    Raises: TrainingError if the state holds something else than tensors.
    """
    facts = {
        **student.describe(),
        "input": "float32 [N, 3, H, W]: RGB / 255, minus mean, over std",
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
    }
    # clones: safetensors refuses tensors that share memory
    tensors = {name: value.clone().contiguous() for name, value in _tensors(student).items()}
    disk.write_file(path, [save(tensors, metadata=facts)])


def check(student: TrainedStudent, path: Path, images: list) -> str:
    """Compare every tensor bit for bit; `images` is not used. The result in words.

    Raises: TrainingError if a tensor differs.
    """
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
        raise TrainingError(
            f"{student.folder}: {bad} of the student's state is a {type(state[bad]).__name__}, "
            "expected a tensor; use the checkpoint instead"
        )
    return state


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(_bits(a), _bits(b))


def _bits(x: Tensor) -> Tensor:
    """The tensor's bytes, in which NaN equals itself and 0 differs from -0."""
    return x.contiguous().reshape(-1).view(torch.uint8)
