"""Weights as files and as an identity: reads state dicts without running code, and hashes them.

It knows no architecture, so that phase two can compare the weights of a teacher without building
the teacher.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from kdcache.config.names import TORCHVISION, TRANSFORMERS
from kdcache.disk import open_stream
from kdcache.errors import Phrase, TeacherError, describe, one_line
from kdcache.models.checkpoints import (
    WeightsAbsentError,
    is_counter,
    read_checkpoint,
    read_state_dict,
    strip_prefixes,
)

AUX_PREFIX = "aux_classifier."  # of torchvision's training-only head, which gives no targets


def read_teacher_weights(arch: str, weights: str, *, key: str | None = None) -> dict[str, Tensor]:
    """The teacher's float32 state dict, of torchvision's networks without their auxiliary head.

    Names are without the prefixes that wrappers of a module give to all of them.

    Args:
        arch: teacher.arch.
        weights: torchvision weights name (downloaded, checked by sha256 prefix) or path of a
            checkpoint.
        key: where in the file they are, as teacher.weights_key; None: where they can only be.

    Raises: TeacherError if the file is missing, damaged, holds code, cannot be downloaded or is
        ambiguous, or a number in it is not finite.
    """
    enum = find_weights_enum(arch, weights)
    if enum:
        state = download_weights(enum)
    else:
        state = read_checkpoint(Path(weights), field="teacher.weights", key=key)
    if arch in TORCHVISION:
        state = {name: x for name, x in state.items() if not name.startswith(AUX_PREFIX)}
    return check_finite(state, where=weights)


def take_weights(module: nn.Module, *, where: str) -> dict[str, Tensor]:
    """The state dict of a module that comes with weights, as `read_teacher_weights` gives it.

    Args:
        where: for messages.

    Raises: TeacherError if a number in it is not finite.
    """
    tensors = {name: x for name, x in module.state_dict().items() if isinstance(x, Tensor)}
    return check_finite(strip_prefixes(tensors)[0], where=where)


def check_finite(state: dict[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The sorted state dict in float32.

    Args:
        state: tensors by name. where: for messages.

    Raises: TeacherError if a number is not finite.
    """
    kept = dict(sorted(state.items()))
    for name, value in kept.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            found, expected = Phrase("not finite"), Phrase("numbers")
            cure = "the training that wrote it went astray; give another checkpoint"
            raise TeacherError(
                describe(where, field=f"tensor {name}", found=found, expected=expected, cure=cure)
            )
    return {name: v.float() if v.is_floating_point() else v for name, v in kept.items()}


def find_teacher_file(arch: str, weights: str) -> Path | None:
    """The local file behind `weights`, or None if it is not on this machine.

    None for transformers, too: only the network tells by which names its weights are hashed.
    """
    if arch.startswith(TRANSFORMERS):
        return None
    enum = find_weights_enum(arch, weights)
    path = _download_path(enum) if enum else Path(weights)
    return path if path.is_file() else None


def hash_weights(state: dict[str, Tensor]) -> str:
    """The sha256 (hex) over names, shapes and float32 values.

    Files with equal weights hash equally, whatever their container. The step counters of BatchNorm
    are not hashed.
    """
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        if is_counter(name):
            continue
        array = value.detach().cpu().float().contiguous().numpy()
        total.update(f"{name}{tuple(array.shape)}".encode())
        total.update(array.astype("<f4", copy=False).tobytes())
    return total.hexdigest()


def find_weights_enum(arch: str, weights: str) -> WeightsEnum | None:
    """The torchvision weights of that name for `arch`, or None if `weights` is a path."""
    return get_model_weights(arch).__members__.get(weights) if arch in TORCHVISION else None


def download_weights(enum: WeightsEnum) -> dict[str, Tensor]:
    """torchvision weights from its cache folder or the network, checked by sha256 prefix.

    A file that is already there, perhaps put there by hand, is also checked; code in it is never
    run.

    Raises: TeacherError if they cannot be downloaded or read.
    """
    path = _download_path(enum)
    if not path.is_file():
        _download(enum, path)
    _check_prefix(enum, path)
    return read_state_dict(path, field=f"weights {enum.name}")


def _download(enum: WeightsEnum, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(enum.url, str(path), hash_prefix=_hash_prefix(path))
    except (URLError, OSError, RuntimeError) as error:
        reason = one_line(getattr(error, "reason", error))
        cure = (
            f"fetch it from {enum.url} and put it there by hand ({reason}); "
            "`make demo` needs no network"
        )
        field, expected = f"weights {enum.name}", Phrase("a file")
        raise WeightsAbsentError(
            describe(path, field=field, found=Phrase("unreachable"), expected=expected, cure=cure)
        ) from None


def _check_prefix(enum: WeightsEnum, path: Path) -> None:
    """torchvision names its files after the first digits of their sha256."""
    with open_stream(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = _hash_prefix(path)
    if not found.startswith(expected):
        cure = f"delete it and fetch it again from {enum.url}"
        raise TeacherError(
            describe(path, field="sha256", found=found[:8], expected=expected, cure=cure)
        )


def _hash_prefix(path: Path) -> str:
    return path.stem.rsplit("-", 1)[-1]


def _download_path(enum: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / enum.url.rsplit("/", 1)[-1]
