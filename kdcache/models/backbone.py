"""Weights of a backbone from a file: which of its tensors are the backbone's, by a rule that is
said, for teachers that are fitted and for students.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcache.disk import open_stream
from kdcache.errors import Phrase, SettingsError, TeacherError, describe
from kdcache.models.checkpoints import find_prefix, is_counter, read_checkpoint
from kdcache.models.weights import check_finite

PARTS = ("backbone", "encoder")  # what networks call it, behind the word of a transformers model
MOST_NAMED = 3
PACKAGE = "package:"
Pairs = dict[str, str]
"""Name in the backbone -> name in the file."""


def find_backbone(module: nn.Module) -> str | None:
    """The name of the part of a module that is its backbone; None if it has none."""
    names = (getattr(module, "base_model_prefix", ""), *PARTS)
    parts = (name for name in names if isinstance(getattr(module, name or "?", None), nn.Module))
    return next(parts, None)


def demand_backbone(module: nn.Module, *, owner: str, field: str) -> str:
    """Like `find_backbone`, for a setting that is idle without one.

    Args:
        owner: what the module is called in messages. field: the setting.

    Raises: SettingsError if it has none.
    """
    name = find_backbone(module)
    if name is not None:
        return name
    found, expected = Phrase(f"set, and {owner} has no backbone"), Phrase("a part of that name")
    raise SettingsError(
        describe("settings", field=field, found=found, expected=expected, cure="leave it out")
    )


def load_backbone(part: nn.Module, given: str | Path, *, owner: str, field: str) -> str:
    """Give a backbone the weights in a file, all of them or none.

    By name: behind one prefix, as `features.`, the file has every tensor of the backbone in its
    shape. Else by order: the tensors in the file begin with those of the backbone, each with the
    shape and the last word of its name (as `bias`), and no name says otherwise. Step counters of
    BatchNorm are left as they are.

    Args:
        given: as in `find_file`. owner: what has the backbone, for messages. field: the setting
            that names the file.

    Returns: what was loaded, how, and what of the file was not.

    Raises: SettingsError, or TeacherError if the file is missing, damaged, or not that of this
        backbone.
    """
    path = find_file(given, field=field)
    found, where = _read(path, field=field), str(path)
    own = {name: x for name, x in part.state_dict().items() if not is_counter(name)}
    shown = find_prefix(own)  # that a wrapper gave to all names of the backbone
    bare = {name.removeprefix(shown): x for name, x in own.items()}
    prefix, pairs = _match_names(bare, found)
    how = f"by name, behind {prefix!r}" if prefix else "by name"
    if len(pairs) < len(bare):
        how, ordered = "by order and shape, since names differ", _match_order(bare, found)
        if ordered is None:
            raise _refuse(where, bare, found, prefix, pairs, cure=f"set {field} to one of {owner}")
        pairs = ordered
    with torch.no_grad():
        for name, there in pairs.items():
            own[f"{shown}{name}"].copy_(found[there])
    left = [name for name in found if name not in set(pairs.values())]
    rest = f"; not taken: {_list(left)}" if left else ""
    return f"{path}: all {len(pairs)} tensors of the backbone, {how}{rest}"


def hash_backbone(given: str | Path, *, field: str) -> str:
    """The sha256 (hex) of a file of weights.

    Args:
        given: as in `find_file`. field: the setting that names it, for messages.

    Raises: SettingsError, or TeacherError if there is no such file.
    """
    path = find_file(given, field=field)
    try:
        with open_stream(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TeacherError(
            f"{path}: {field} is unreadable ({error.strerror}); set it to a file of weights"
        ) from None


def find_file(given: str | Path, *, field: str) -> Path:
    """The file of weights that a setting names: a path, or `package:NAME` for the one .pth file in
    an installed package, which is not imported.

    Args:
        field: the setting, for messages.

    Raises: SettingsError if there is no such package, or not one file in it.
    """
    name = str(given).removeprefix(PACKAGE)
    if name == str(given):
        return Path(given)
    spec = importlib.util.find_spec(name) if re.fullmatch(r"[^\W\d]\w*", name) else None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [path for folder in folders for path in sorted(folder.rglob("*.pth"))]
    if len(files) == 1:
        return files[0]
    found = Phrase(f"{given}, in which are {len(files)} .pth files") if spec else Phrase(given)
    expected = Phrase("an installed package with one .pth file")
    cure = "set a file" if spec else f"`pip install {name.replace('_', '-')}`, or set a file"
    raise SettingsError(
        describe("settings", field=field, found=found, expected=expected, cure=cure)
    )


def _read(path: Path, *, field: str) -> dict[str, Tensor]:
    """The tensors in the order of the file, float32, without counters. Raises TeacherError."""
    state = read_checkpoint(path, field=field)
    state = {name: x for name, x in state.items() if not is_counter(name)}
    checked = check_finite(state, where=str(path))
    return {name: checked[name] for name in state}


def _match_names(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, Pairs]:
    """The prefix behind which most names of the backbone are, and those that fit."""
    prefixes = Counter(
        there.removesuffix(name)
        for name in own
        for there in found
        if there == name or there.endswith(f".{name}")
    )
    prefix = max(prefixes, key=lambda word: (prefixes[word], -len(word)), default="")
    fits = {name: f"{prefix}{name}" for name in own if f"{prefix}{name}" in found}
    return prefix, {name: x for name, x in fits.items() if found[x].shape == own[name].shape}


def _match_order(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Pairs | None:
    """Pairs by place; None if one of them differs in kind, or a name stands elsewhere."""
    pairs = dict(zip(own, found, strict=False))
    elsewhere = any(name in found and name != there for name, there in pairs.items())
    if len(found) < len(own) or elsewhere or _find_unlike(own, found):
        return None
    return pairs


def _find_unlike(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The first names in one place that differ in their last word, or in shape; None if none do."""
    for name, there in zip(own, found, strict=False):
        alike = name.rpartition(".")[2] == there.rpartition(".")[2]
        if not alike or own[name].shape != found[there].shape:
            return name, there
    return None


def _refuse(
    where: str,
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    prefix: str,
    pairs: Pairs,
    *,
    cure: str,
) -> TeacherError:
    """The error that names the first tensor that is missing or differs: by name, if the file has
    any of these names, else by order.
    """
    first = next(name for name in own if name not in pairs)
    there, unlike = f"{prefix}{first}", None if pairs else _find_unlike(own, found)
    shown = list(found[there].shape) if there in found else Phrase("missing")
    wanted, why = list(own[first].shape), f"{len(pairs)} of its {len(own)} tensors are there"
    if unlike is not None:
        (name, there), why = unlike, "by order, since the file has none of its names"
        shown, wanted = list(found[there].shape), Phrase(f"{list(own[name].shape)} of {name}")
    elif not pairs and len(found) < len(own):
        there, why = "count", "by order, since the file has none of its names"
        shown, wanted = len(found), len(own)
    facts = {"field": f"tensor {there}", "found": shown, "expected": wanted}
    return TeacherError(describe(where, **facts, cure=f"{cure} ({why})"))


def _list(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
