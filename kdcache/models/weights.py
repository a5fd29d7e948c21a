"""Weights as files and as an identity: reads state dicts without running code, hashes what they say.

Knows no architecture, so that phase two can compare a teacher's weights without building the teacher.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from kdcache.errors import Phrase, TeacherError, describe

AUX_PREFIX = "aux_classifier."  # the training-only head; it gives no targets


def read_teacher_weights(arch: str, weights: str) -> dict[str, Tensor]:
    """The teacher's float32 state dict without its auxiliary head.

    Args:
        arch: torchvision model name.
        weights: torchvision weights name (downloaded, checked by sha256 prefix) or a checkpoint's path.

    Raises: TeacherError where the file is missing, damaged, holds code, or cannot be downloaded.
    """
    enum = find_weights_enum(arch, weights)
    state = download_weights(enum) if enum else read_state_dict(Path(weights), field="teacher.weights")
    return {name: value.float() if value.is_floating_point() else value for name, value in sorted(state.items())
            if not name.startswith(AUX_PREFIX)}  # fmt: skip


def find_teacher_file(arch: str, weights: str) -> Path | None:
    """The local file behind `weights`, or None where it is not on this machine."""
    enum = find_weights_enum(arch, weights)
    path = _download_path(enum) if enum else Path(weights)
    return path if path.is_file() else None


def hash_weights(state: dict[str, Tensor]) -> str:
    """sha256 (hex) over names, shapes and float32 values of a state dict without its auxiliary head.

    Two files with equal weights hash equally, whatever their container; BatchNorm's step counters do not count.
    """
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        if name.startswith(AUX_PREFIX) or name.endswith("num_batches_tracked"):
            continue
        array = value.detach().cpu().float().contiguous().numpy()
        total.update(f"{name}{tuple(array.shape)}".encode())
        total.update(array.astype("<f4", copy=False).tobytes())
    return total.hexdigest()


def find_weights_enum(arch: str, weights: str) -> WeightsEnum | None:
    """The torchvision weights of that name for `arch`, or None where `weights` is a path."""
    return get_model_weights(arch).__members__.get(weights)


def download_weights(enum: WeightsEnum) -> dict[str, Tensor]:
    """torchvision weights from its cache folder or the network, sha256 prefix checked. Raises TeacherError."""
    try:
        return enum.get_state_dict(progress=True, check_hash=True, map_location="cpu")
    except (URLError, OSError, RuntimeError) as error:
        path = _download_path(enum)
        reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
        cure = f"fetch it from {enum.url} and put it there by hand ({reason}); `make demo` needs no network"
        raise TeacherError(
            describe(
                path, field=f"weights {enum.name}", found=Phrase("unreachable"), expected=Phrase("a file"), cure=cure
            )
        ) from None


def read_state_dict(path: Path, *, field: str) -> dict[str, Tensor]:
    """A checkpoint's tensors: a bare state dict, or one under model_state_dict or state_dict. Never runs code in it."""
    if not path.is_file():
        cure = f"set {field} to a checkpoint or to a torchvision weights name; `make demo` needs no network"
        raise TeacherError(describe(path, field=field, found=Phrase("missing"), expected=Phrase("a file"), cure=cure))
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:80]
        raise TeacherError(
            f"{path}: {field} is unreadable as plain tensors ({reason}); write it with torch.save"
        ) from None
    for key in ("model_state_dict", "state_dict"):
        stored = stored.get(key, stored) if isinstance(stored, dict) else stored
    if not isinstance(stored, dict) or not stored or not all(isinstance(v, Tensor) for v in stored.values()):
        found = Phrase(f"a {type(stored).__name__}")
        raise TeacherError(
            describe(path, field=field, found=found, expected=Phrase("a state dict of tensors"), cure="re-save it")
        )
    return stored


def _download_path(enum: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / enum.url.rsplit("/", 1)[-1]
