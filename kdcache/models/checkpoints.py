"""Checkpoints of others as they are found: which of their tensors are the model's, by what names.

Training scripts wrap a state dict in a dict, and wrappers of a module (DDP, torch.compile,
AveragedModel, Lightning) put a prefix before every name. Code in a file is never run.
"""

from __future__ import annotations

import argparse
import errno
import logging
import pathlib
import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from kdcache import seals
from kdcache.disk import open_stream
from kdcache.errors import Phrase, SettingsError, TeacherError, describe, find_cure, one_line
from kdcache.models.stored_state import TENSORS, load_tensors
from kdcache.schema import FieldError

USUAL = ("model_state_dict", "state_dict")  # what this project and most others write
WRAPPERS = (*USUAL, "model", "model_state", "model_ema", "ema", "net", "network", "teacher")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "teacher.", "backbone.")
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
PLAIN = (argparse.Namespace, pathlib.PosixPath)  # `args` of training scripts; they run nothing
MOST_WRAPPED = 3
log = logging.getLogger("kdcache")


_BEGINS = {b"version https://git-lfs": "it is a pointer of Git LFS", b"<": "it is a page of HTML"}


class WeightsAbsentError(TeacherError):
    """The weights are not on this machine and cannot be fetched."""


def read_checkpoint(path: Path, *, field: str, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a model in a checkpoint, by the names that they have in the bare module.

    What was taken of the file is said if it is not plain.

    Args:
        field: for messages. key: names of nested dicts, then of a prefix, with dots between.

    Raises: TeacherError if the file is missing, damaged, ambiguous, or holds something else.
    """
    taken, state = _take(path, _load(path, field=field), field=field, key=key)
    bare, prefix = strip_prefixes(state)
    if not set(taken) <= set(USUAL) or prefix:
        where = f" under {'.'.join(taken)!r}" if taken else ""
        without = f" without the prefix {prefix!r}" if prefix else ""
        log.warning("%s: %s are the tensors%s%s", path, field, where, without)
    return bare


def read_state_dict(path: Path, *, field: str) -> dict[str, Tensor]:
    """Like `read_checkpoint`, with the names of the file. Raises TeacherError."""
    return _take(path, _load(path, field=field), field=field, key=None)[1]


def strip_prefixes(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Tensors by names without the prefix that wrappers gave to all; and that prefix."""
    state = {name.replace("._orig_mod.", "."): value for name, value in state.items()}
    if len(state) > 1:
        state.pop(COUNTER, None)
    prefix = find_prefix(state)
    return {name.removeprefix(prefix): value for name, value in state.items()}, prefix


def find_prefix(names: Iterable[str]) -> str:
    """The longest chain of known prefixes that all names begin with, e.g. "module.model."."""
    names, prefix = list(names), ""
    while step := next((p for p in PREFIXES if all(n.startswith(prefix + p) for n in names)), ""):
        if not names:
            break
        prefix += step
    return prefix


def describe_state(names: Iterable[str]) -> str | None:
    """What model a state dict is of, as people call it; None if it is not known."""
    names = set(names)
    size = "101" if any(name.endswith("layer3.22.conv1.weight") for name in names) else "50"
    deep = any("layer3.0.conv3.weight" in name for name in names)
    backbone = f"a ResNet-{size}" if deep else "a ResNet"
    backbone = backbone if any("layer1." in name for name in names) else "a MobileNet"
    for marks, kind in _KINDS.items():
        if all(any(name.startswith(mark) for name in names) for mark in marks.split()):
            return kind.format(backbone=backbone)
    return None


_KINDS = {
    "backbone. classifier.0.convs. classifier.4.": "a DeepLabV3 over {backbone}",
    "backbone. classifier.cbr.": "an LR-ASPP",
    "backbone.layer1. classifier.0. classifier.4.": "an FCN over {backbone}",
    "encoder. decoder. segmentation_head.": "a model of segmentation_models_pytorch",
    "segformer. decode_head.": "a SegFormer of transformers",
    "backbone. decode_head.": "a model of MMSegmentation",
    "conv1. layer1. layer4.": "{backbone} alone, without a head for segmentation",
    "features. classifier.": "a classifier of images",
}
"""Beginnings of names that a model has -> what it is; the first that fits."""


def is_backbone(names: Iterable[str]) -> bool:
    """Whether a state dict is that of a ResNet alone, perhaps with its classifier of images."""
    return "alone" in (describe_state(names) or "")


def is_counter(name: str) -> bool:
    """Whether a tensor is a step counter of BatchNorm, which decides nothing once it is trained."""
    return name.endswith("num_batches_tracked")


def _take(
    path: Path, stored: object, *, field: str, key: str | None
) -> tuple[list[str], dict[str, Tensor]]:
    """Names of the dicts that were opened, and the state dict in the last one."""
    if key is not None:
        return key.split("."), _take_named(path, stored, key)
    taken: list[str] = []
    while len(taken) < MOST_WRAPPED:
        found = _find_wrapped(stored)
        if len(found) > 1 and set(found) != set(USUAL):
            names, keyed = " and ".join(found), field == "teacher.weights"
            cure = f"set teacher.weights_key {found[0]}, or another of them"
            cure = cure if keyed else "write one of them into a file of its own"
            raise TeacherError(
                describe(
                    path,
                    field=field,
                    found=Phrase(names),
                    expected=Phrase("one of them"),
                    cure=cure,
                )
            )
        if not found:
            break
        taken.append(found[0])
        stored = stored[found[0]]
    return taken, _check_state(path, stored, field=field)


def _take_named(path: Path, stored: object, key: str) -> dict[str, Tensor]:
    place, names = stored, key.split(".")
    while names and isinstance(place, dict) and isinstance(place.get(names[0]), dict):
        place = place[names.pop(0)]
    prefix = "".join(f"{name}." for name in names)
    table = place if isinstance(place, dict) else {}
    named = {str(name): value for name, value in table.items()}
    state = {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)}
    if not any(isinstance(value, Tensor) for value in state.values()):
        there = ", ".join(_find_wrapped(stored)) or "a state dict alone"
        cure = "set one of them, or leave it out"
        raise TeacherError(
            describe(
                path, field="teacher.weights_key", found=key, expected=Phrase(there), cure=cure
            )
        )
    return _check_state(path, state, field=f"teacher.weights_key {key}")


def _find_wrapped(stored: object) -> list[str]:
    """Known names in a dict under which there are tensors, perhaps under such a name again."""
    if not isinstance(stored, dict):
        return []
    inner = {name: stored[name] for name in WRAPPERS if isinstance(stored.get(name), dict)}
    return [name for name, value in inner.items() if _holds_tensors(value)]


def _holds_tensors(stored: dict, depth: int = MOST_WRAPPED) -> bool:
    inner = [stored[name] for name in WRAPPERS if isinstance(stored.get(name), dict)]
    own = any(isinstance(value, Tensor) for value in stored.values())
    return own or depth > 0 and any(_holds_tensors(value, depth - 1) for value in inner)


def _check_state(path: Path, stored: object, *, field: str) -> dict[str, Tensor]:
    try:
        TENSORS(stored if isinstance(stored, dict) and stored else None)
    except FieldError as error:
        kind = f"a {type(stored).__name__}"
        found = Phrase(f"{kind} ({error})" if isinstance(stored, dict) and stored else kind)
        expected = Phrase("a state dict of tensors")
        raise TeacherError(
            describe(path, field=field, found=found, expected=expected, cure="re-save it")
        ) from None
    return stored


def _load(path: Path, *, field: str) -> object:
    if not path.is_file():
        names = " or to a torchvision weights name" if field == "teacher.weights" else ""
        cure = f"set {field} to a checkpoint{names}; `make demo` needs no network"
        found = Phrase("a folder" if path.is_dir() else "missing")
        raise WeightsAbsentError(
            describe(path, field=field, found=found, expected=Phrase("a file"), cure=cure)
        )
    if path.suffix == ".safetensors":
        parse = _import_safetensors(path, field)
    try:
        if path.suffix == ".safetensors":
            with open_stream(path) as file:
                return parse(file.read())
        stored, is_sealed = load_tensors(path, allow=PLAIN)
    # damaged bytes end in a dozen kinds: struct.error, IndexError, AssertionError, ...
    except Exception as error:
        reason = _find_reason(path, error)
        sealed = isinstance(error, seals.SealError)
        again = "restore it from a copy, or fit it again" if sealed else "fetch it again"
        cure = find_cure(error, again if sealed else f"write it with torch.save or {again}")
        raise TeacherError(
            f"{path}: {field} is unreadable as plain tensors ({reason}); {cure}"
        ) from None
    if not is_sealed and isinstance(stored, dict) and {"fit", "class_names"} <= stored.keys():
        seals.tell_unsealed(path)  # a teacher of our `fit`; those of others have no seals
    return stored


def _find_reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in words of who fetched or wrote it, where they can be found."""
    if isinstance(error, seals.SealError):
        return one_line(error)
    with suppress(OSError), open_stream(path) as file:
        head = file.read(64).strip()
        known = (said for begin, said in _BEGINS.items() if head.startswith(begin))
        if not head or (said := next(known, None)):
            return said if head else "the file is empty"
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return f"it holds {named[1]}, which is code, and code is not run"
    if isinstance(error, pickle.UnpicklingError) or getattr(error, "errno", 0) == errno.EINVAL:
        return "it is damaged, cut off, or not of torch.save"
    return one_line(error)


def _import_safetensors(path: Path, field: str) -> object:
    try:
        from safetensors.torch import load
    except ModuleNotFoundError:
        cure = "`pip install 'kdcache[safetensors]'`"
        expected = Phrase("safetensors to be installed")
        found = Phrase("a .safetensors file")
        raise SettingsError(
            describe(path, field=field, found=found, expected=expected, cure=cure)
        ) from None
    return load
