"""Tensors and optimisers in files of torch.save: how they are read, what of them may be used, and
how training goes on from it.

No code in such a file is run, it takes no more memory than it has bytes, and no value is in it so
often that looking at all takes ages. It can still hold tensors that take no bytes but promise many
(sparse, meta, expanded ones), or settings of any kind.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

import torch
from torch import Tensor
from torch.serialization import safe_globals

from kdcache import disk, seals
from kdcache.disk import open_stream
from kdcache.errors import one_line, show_value
from kdcache.schema import (
    MOST_DEPTH,
    FieldError,
    Kind,
    fields,
    list_of,
    number,
    table_of,
)

MOST_VALUES = 1_000_000  # in a file, beside the numbers in its tensors
_OLD_PICKLES = 4  # in a file of before torch 1.6: two numbers, facts of that machine, the contents


def save_tensors(path: Path, contents: dict) -> None:
    """Replace a file by one of torch.save, with its seal. Raises OSError.

    Args:
        contents: tensors, numbers and texts; the file says in the field `sealed`, too, that it is.
    """
    archive = seals.SealedArchive()
    torch.save({**to_host(contents), seals.FIELD: "sha256"}, archive)
    disk.replace_file(path, *archive.finish())


def to_host(value: object) -> object:
    """Nested dicts and lists with every tensor on the CPU: the file then names no device, and a
    machine without that GPU reads it. What is there already is not copied.
    """
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = {key: to_host(inner) for key, inner in value.items()}
        return value if all(moved[key] is value[key] for key in value) else moved
    if isinstance(value, list | tuple):
        moved = [to_host(inner) for inner in value]
        same = all(a is b for a, b in zip(moved, value, strict=True))
        return value if same else type(value)(moved)
    return value


def load_tensors(
    path: Path, *, follow: bool = True, allow: Sequence[type] = ()
) -> tuple[object, bool]:
    """What a file of torch.save holds, on the CPU: plain tensors, numbers and texts.

    Args:
        follow: take a link for the file that it names; False for files of a run.
        allow: classes that hold values and run nothing, which the file may use, too.

    Returns: the contents, and whether they were compared with a seal.

    Raises: OSError; SealError for damage that a seal tells; else whatever damaged bytes end in: a
        dozen kinds, as struct.error and IndexError.
    """
    with open_stream(path, follow=follow) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about old pickles before it refuses them
        is_sealed = seals.check_archive(file)
        _check_archive(file)
        with safe_globals(list(allow)):
            contents = torch.load(file, map_location="cpu", weights_only=True)
    _check_amount(contents)
    seals.check_contents(contents, is_sealed=is_sealed)
    return contents, is_sealed


def _check_archive(file: BinaryIO) -> None:
    """Raise ValueError for an archive that would unpack to more than it has."""
    if zipfile.is_zipfile(file):
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise ValueError("its archive is compressed, expected one as torch.save writes it")
        if sum(one.file_size for one in members) > file.seek(0, 2):
            raise ValueError("its archive says that it has more bytes than there are")
        for one in members:
            if one.filename.endswith(".pkl"):
                _check_tuples(archive.open(one))
    else:
        file.seek(0)
        for _ in range(_OLD_PICKLES):
            _check_tuples(file)
    file.seek(0)


def _check_tuples(pickled: BinaryIO) -> None:
    """Raise ValueError for tuples that hold one tuple again and again: to hash one takes ages.

    It counts the values below each tuple, and adds them up as often as the tuple is used again.
    """
    below: list[int] = []  # as the unpickler's stack, a count for each value
    marks, kept, total = [], {}, 0
    try:
        for code, place, _ in pickletools.genops(pickled):
            if code.name == "MARK":
                marks.append(len(below))
            elif "PUT" in code.name:
                kept[place] = below[-1]
            elif "GET" in code.name:
                below.append(kept[place])
                total += kept[place]
            else:
                before, marked = code.stack_before, pickletools.markobject in code.stack_before
                plain = before.index(pickletools.markobject) if marked else len(before)
                start = (marks.pop() if marked else len(below)) - plain
                count = 1 + sum(below[start:]) if code.name.startswith("TUPLE") else 1
                below[start:] = [count] * len(code.stack_after)
            if total > MOST_VALUES:
                break
        else:
            return
    except (ValueError, LookupError) as error:  # damaged bytes, in the words of whoever met them
        raise UnpicklingError(one_line(error)) from None
    raise ValueError("one value is in it too often")


def _check_amount(contents: object) -> None:
    """Raise ValueError for more values than anybody stores, counted as often as they are met."""
    pending, count = [(contents, 0)], 1
    while pending:
        one, depth = pending.pop()
        inner = list(one.values()) if isinstance(one, dict) else one
        if not isinstance(inner, list | tuple):
            continue
        count += len(inner)
        if count > MOST_VALUES or depth > MOST_DEPTH:
            raise ValueError("one value is in it too often, or too deep")
        pending += [(x, depth + 1) for x in inner if isinstance(x, dict | list | tuple)]


_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip


def tensor(dtype: torch.dtype | None = None, *, sides: int | None = None) -> Kind:
    """A plain tensor in memory, of real numbers.

    Args:
        dtype: None: any. sides: how many dimensions it has; None: any.
    """

    def check(value: object) -> None:
        if not isinstance(value, Tensor):
            raise FieldError(f"is {show_value(value)}, expected a tensor")
        odd = _find_oddity(value)
        if odd:
            raise FieldError(f"is a tensor that is {odd}, expected a plain one")
        if dtype not in (None, value.dtype) or sides not in (None, value.ndim):
            expected = f"{dtype or 'any numbers'}{'' if sides is None else f' of {sides} sides'}"
            raise FieldError(f"is {_describe(value)}, expected {expected}")

    return check


TENSORS: Kind = table_of(tensor())
"""A state dict of a model of ours."""
STATE_DICT: Kind = table_of(lambda value: tensor()(value) if isinstance(value, Tensor) else None)
"""A state dict of anybody's module, which may keep other things beside tensors."""
OPTIMIZER: Kind = fields(
    {"state": lambda value: None, "param_groups": list_of(fields({"lr": number(0)}), least=1)}
)
"""What is read of an optimiser's state dict; `restore_optimizer` looks at its tensors."""


def restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict) -> None:
    """Give an optimiser the numbers and moments of a state dict; its switches stay its own.

    Args:
        stored: checked by OPTIMIZER.

    Raises: FieldError if a moment is not one of these weights, or a group is missing.
    """
    own = optimizer.state_dict()
    groups = stored["param_groups"]
    if len(groups) != len(own["param_groups"]):
        what = f"has {len(groups)} groups, expected {len(own['param_groups'])}"
        raise FieldError(what, "param_groups")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    _check_moments(stored["state"], weights)
    pairs = zip(own["param_groups"], groups, strict=True)
    chosen = [{**mine, **_choose_numbers(mine, group)} for mine, group in pairs]
    optimizer.load_state_dict({"state": stored["state"], "param_groups": chosen})


def _choose_numbers(own: dict, group: dict) -> dict:
    """Learning rate, betas and the like, which a schedule moves. Raises FieldError."""
    kinds = (int, float, list, tuple)
    names = [name for name in own if type(own[name]) in kinds and name in group]
    chosen = {name: group[name] for name in names if name != "params"}
    check_alike(chosen, own)
    return chosen


def restore_scheduler(scheduler: torch.optim.lr_scheduler.LRScheduler, stored: object) -> None:
    """Give a schedule the state of a state dict. Raises FieldError if that is another's."""
    own = scheduler.state_dict()
    check_alike(stored, own)
    scheduler.load_state_dict({name: stored[name] for name in own if name in stored})


def check_alike(value: object, own: object) -> None:
    """Check that a stored value has the form of our own: kinds, lengths, names where it has them.

    Raises: FieldError.
    """
    if isinstance(own, dict):
        if not isinstance(value, dict):
            raise FieldError(f"is {show_value(value)}, expected names with values")
        _check_parts({name: (value[name], own[name]) for name in own if name in value})
    elif isinstance(own, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(own):
            raise FieldError(f"is {show_value(value)}, expected {len(own)} values")
        _check_parts(
            {f"[{place}]": pair for place, pair in enumerate(zip(value, own, strict=True))}
        )
    elif type(own) in (int, float):
        number()(value)
    elif type(value) is not type(own):
        raise FieldError(f"is {show_value(value)}, expected {show_value(own)}")


def _check_parts(pairs: dict[str, tuple[object, object]]) -> None:
    for place, pair in pairs.items():
        try:
            check_alike(*pair)
        except FieldError as error:
            raise error.inside(place) from None


def _check_moments(state: object, weights: list[Tensor]) -> None:
    """Check that each weight has none or all of Adam's moments, in its own shape."""
    if not isinstance(state, dict) or not set(state) <= set(range(len(weights))):
        raise FieldError(f"is {show_value(state)}, expected moments by number", "state")
    shapes = {"step": (), "exp_avg": None, "exp_avg_sq": None}
    for place, moments in state.items():
        try:
            fields(dict.fromkeys(shapes, tensor(torch.float32)))(moments)
            for name, shape in shapes.items():
                expected = tuple(weights[place].shape) if shape is None else shape
                if tuple(moments[name].shape) != expected:
                    raise FieldError(f"is {_describe(moments[name])}, expected {expected}", name)
        except FieldError as error:
            raise error.inside(f"state[{place}]") from None


def _find_oddity(value: Tensor) -> str:
    """Why a tensor is not plain; "" if it is."""
    if value.layout is not torch.strided or value.is_nested:
        return "sparse or nested"
    if value.device.type == "meta":
        return "without bytes"
    if value.is_quantized or value.dtype not in _DTYPES:
        return f"of {value.dtype}"
    promised = value.numel() * value.element_size()
    return "" if promised <= value.untyped_storage().nbytes() else "expanded from fewer bytes"


def _describe(value: Tensor) -> str:
    return f"{value.dtype} of {list(value.shape)}"
