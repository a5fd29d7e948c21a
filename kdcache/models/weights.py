"""Weights as files and as an identity: reads state dicts without running code, and hashes them.

It knows no architecture, so that phase two can compare the weights of a teacher without building
the teacher.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from kdcache.disk import open_stream
from kdcache.errors import Phrase, TeacherError, describe, one_line
from kdcache.models.stored_state import TENSORS, load_tensors
from kdcache.schema import FieldError

AUX_PREFIX = "aux_classifier."  # the training-only head; it gives no targets


class WeightsAbsentError(TeacherError):
    """The weights are not on this machine and cannot be fetched."""


def read_teacher_weights(arch: str, weights: str) -> dict[str, Tensor]:
    """The teacher's float32 state dict without its auxiliary head.

    Args:
        arch: torchvision model name.
        weights: torchvision weights name (downloaded, checked by sha256 prefix) or path of a
            checkpoint.

    Raises: TeacherError if the file is missing, damaged, holds code, or cannot be downloaded.
    """
    enum = find_weights_enum(arch, weights)
    state = (
        download_weights(enum) if enum else read_state_dict(Path(weights), field="teacher.weights")
    )
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in sorted(state.items())
        if not name.startswith(AUX_PREFIX)
    }


def find_teacher_file(arch: str, weights: str) -> Path | None:
    """The local file behind `weights`, or None if it is not on this machine."""
    enum = find_weights_enum(arch, weights)
    path = _download_path(enum) if enum else Path(weights)
    return path if path.is_file() else None


def hash_weights(state: dict[str, Tensor]) -> str:
    """The sha256 (hex) over names, shapes and float32 values, without the auxiliary head.

    Files with equal weights hash equally, whatever their container. The step counters of BatchNorm
    are not hashed.
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
    """The torchvision weights of that name for `arch`, or None if `weights` is a path."""
    return get_model_weights(arch).__members__.get(weights)


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


def read_state_dict(path: Path, *, field: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint: a state dict, or one under model_state_dict or state_dict.

    Code in it is never run.

    Raises: TeacherError if the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        cure = (
            f"set {field} to a checkpoint or to a torchvision weights name; "
            "`make demo` needs no network"
        )
        raise WeightsAbsentError(
            describe(
                path, field=field, found=Phrase("missing"), expected=Phrase("a file"), cure=cure
            )
        )
    stored = _load_tensors(path, field=field)
    for key in ("model_state_dict", "state_dict"):
        stored = stored.get(key, stored) if isinstance(stored, dict) else stored
    try:
        TENSORS(stored if isinstance(stored, dict) and stored else None)
    except FieldError as error:
        found = Phrase(f"a {type(stored).__name__} ({error})")
        expected = Phrase("a state dict of tensors")
        raise TeacherError(
            describe(path, field=field, found=found, expected=expected, cure="re-save it")
        ) from None
    return stored


def _load_tensors(path: Path, *, field: str) -> object:
    try:
        return load_tensors(path)
    # damaged bytes end in a dozen kinds: struct.error, IndexError, AssertionError, ...
    except Exception as error:
        reason = one_line(error)
        cure = "write it with torch.save or fetch it again"
        raise TeacherError(
            f"{path}: {field} is unreadable as plain tensors ({reason}); {cure}"
        ) from None


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
