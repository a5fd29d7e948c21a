"""Settings from nested dicts, YAML files and command lines: merged, flattened, converted to the
type of each setting, made a `Config`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from kdcache.config import Config, config_from_dict, config_to_dict
from kdcache.config.names import OF_CACHE, PATHS, REMOVED, check_removed, expand_path
from kdcache.config.yaml_file import SWITCHES, read_settings_file, read_word
from kdcache.errors import SettingsError, show_value
from kdcache.schema import MOST_WHOLE, is_writable

_NOTHING = object()  # a value that does not fit
_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path",
    list: "a list", dict: "names with values", NoneType: "null",
}  # fmt: skip
_LISTS = {
    (int,): "a list of whole numbers", (float,): "a list of numbers",
    (str,): "a list of names, as in [a, b]",
}  # fmt: skip


def make_config(*layers: Mapping) -> Config:
    """Defaults, overlaid by each layer in turn, as a checked `Config`."""
    merged = config_to_dict(Config())
    for layer in layers:
        merged = merge(merged, layer)
    return config_from_dict(merged)


def merge(base: Mapping, over: Mapping) -> dict:
    """Nested dicts, `over` winning."""
    both = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merge(both[key], value) if nested else value
    return both


def drop_unknown(values: Mapping, known: Mapping | None = None) -> dict:
    """Stored settings without names that this version lacks (another version wrote them)."""
    known = config_to_dict(Config()) if known is None else known
    return {
        name: drop_unknown(value, known[name])
        if isinstance(value, Mapping) and known[name] and isinstance(known[name], Mapping)
        else value
        for name, value in values.items()
        if name in known
    }


def flatten(values: Mapping, prefix: str = "") -> dict:
    """{"loss": {"beta": 1}} -> {"loss.beta": 1}."""
    flat = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(
            flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
        )
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """{"loss.beta": 1} -> {"loss": {"beta": 1}}.

    Raises: SettingsError if a name is a value and a section.
    """
    nested: dict = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise _refuse_section(section)
        inner[last] = value
    return nested


@cache
def setting_types(section: type = Config, prefix: str = "") -> dict[str, object]:
    """Dotted name of every setting, e.g. teacher.layers.low -> its type."""
    found: dict[str, object] = {}
    for name, kind in get_type_hints(section).items():
        nested = is_dataclass(kind)
        found |= setting_types(kind, f"{prefix}{name}.") if nested else {f"{prefix}{name}": kind}
    return found


def read_settings(path: Path) -> dict:
    """The settings of a YAML file as a nested dict, checked. Raises SettingsError."""
    return unflatten(read_flat(path))


def read_flat(path: Path) -> dict[str, object]:
    """The settings of a YAML file by dotted name, checked.

    Raises: SettingsError, which names the file, for a wrong file, name or type.
    """
    values = read_settings_file(path)
    try:
        return check_given(values)
    except SettingsError as error:
        raise SettingsError(f"{path}: {str(error).removeprefix('settings: ')}") from None


def read_stored(values: Mapping) -> dict:
    """Settings as a run has stored them, each in its type, without names unknown here.

    Raises: SettingsError for a value of another type.
    """
    return unflatten(check_values(drop_unknown(values)))


def read_stored_of_cache(values: Mapping) -> dict:
    """Settings as a cache has stored them: only the sections that say something about it.

    Whoever hands on a cache chooses neither student, nor code, nor folder of those who use it.

    Raises: SettingsError for a value of another type.
    """
    return read_stored({name: values[name] for name in OF_CACHE})


def check_given(given: Mapping) -> dict[str, object]:
    """Settings as a person gives them: checked as by `check_values`, and ~ and $HOME are put in.

    Raises: SettingsError.
    """
    checked = check_values(given)
    paths = [name for name in PATHS if isinstance(checked.get(name), str)]
    return checked | {name: expand_path(name, checked[name]) for name in paths}


def check_values(given: Mapping, prefix: str = "") -> dict[str, object]:
    """Settings as a nested dict -> dotted name of each -> its value in the setting's type.

    Paths stay text. Text that says a number, as words of a command line do, becomes one.

    Raises: SettingsError for an unknown name or a value of another type.
    """
    checked: dict[str, object] = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if name in setting_types():
            checked[name] = _check_value(name, value)
        elif name in REMOVED:
            check_removed({name: value})
        elif not any(known.startswith(f"{name}.") for known in setting_types()):
            raise refuse_unknown(_first_leaf(name, value))
        elif not isinstance(value, Mapping):
            raise _refuse_section(name)
        else:
            checked |= check_values(value, f"{name}.")
    return checked


def _refuse_section(name: str) -> SettingsError:
    return SettingsError(
        f"settings: {name} is a value, expected a section of names; write {name}.NAME"
    )


def find_owner(name: str) -> str | None:
    """The setting whose value has entries of any name: student.options of student.options.width.

    None for other names.
    """
    owner = name.rpartition(".")[0]
    return owner if _is_table(setting_types().get(owner)) else None


def _is_table(kind: object) -> bool:
    """Whether a setting is names with values, or one word of a few for such."""
    kinds = get_args(kind) if get_origin(kind) in (UnionType, Union) else [kind]
    return dict in map(get_origin, kinds) and str not in kinds


def refuse_unknown(name: str) -> SettingsError:
    """The error for a name that no setting has."""
    return SettingsError(
        f"settings: {name} is unknown, expected {_nearest(name)}; --help lists all settings"
    )


def describe_type(kind: object) -> str:
    """In words: `Literal["a", "b"]` -> "a or b"."""
    if get_origin(kind) is Literal:
        kinds = [str(choice) for choice in get_args(kind)]
    elif get_origin(kind) in (UnionType, Union):
        kinds = [describe_type(part) for part in get_args(kind)]
    elif get_args(kind) in _LISTS:
        kinds = [_LISTS[get_args(kind)]]
    else:
        kinds = [_NAMES[get_origin(kind) or kind]]
    return " or ".join([*([", ".join(kinds[:-1])] if kinds[:-1] else []), kinds[-1]])


def _check_value(name: str, value: object) -> object:
    kind = setting_types()[name]
    converted = _convert(value, kind)
    if converted is not _NOTHING:
        return converted
    expected = describe_type(kind)
    if isinstance(value, str) and re.fullmatch(r"[+-]?0[0-9]+", value):
        expected += f", {int(value)} without zeros before it"
    raise SettingsError(
        f"settings: {name} is {show_value(value)}, expected {expected}; change {name}"
    )


def _convert(value: object, kind: object) -> object:
    """The value as that type; _NOTHING if it does not fit."""
    too_large = type(value) is int and abs(value) > 2 * MOST_WHOLE + 1  # for any float or array
    if too_large or (isinstance(value, str) and not is_writable(value)):
        return _NOTHING
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        fits = [choice for choice in inner if type(choice) is type(value) and choice == value]
        return fits[0] if fits else _convert_text(value, kind)
    if origin in (UnionType, Union):
        return _convert_union(value, inner)
    if origin is list or kind is list:
        return _convert_list(value, kind, inner)
    if origin is dict:
        return _convert_dict(value, kind, inner[1])
    if kind is Path and isinstance(value, str):
        return str(Path(value))
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and abs(value) <= MOST_WHOLE and value.is_integer():
        return int(value)
    return value if type(value) is kind else _convert_text(value, kind)


def _convert_union(value: object, kinds: tuple) -> object:
    """Text is text only if it is nothing else; other values are what they are."""
    said = read_word(value)
    if type(said) in kinds:  # 3.0 is not 3, nor "no" a switch, where both may stand
        return said
    ordered = sorted(kinds, key=lambda kind: kind in (str, Path))
    found = (_convert(value if kind in (str, Path) else said, kind) for kind in ordered)
    return next((converted for converted in found if converted is not _NOTHING), _NOTHING)


def _convert_list(value: object, kind: object, inner: tuple) -> object:
    if not isinstance(value, list):
        return _convert_text(value, kind)
    items = [_convert(item, inner[0]) for item in value] if inner else value
    return _NOTHING if _NOTHING in items else items


def _convert_dict(value: object, kind: object, inner: object) -> object:
    if not isinstance(value, dict):
        return _convert_text(value, kind)
    if inner in (int, list):  # YAML takes 255 for a number, JSON for a name
        value = {str(key) if type(key) is int else key: item for key, item in value.items()}
    items = {key: _convert(item, inner) for key, item in value.items()}
    are_names = all(isinstance(key, str) for key in items)
    return items if are_names and _NOTHING not in items.values() else _NOTHING


def _convert_text(value: object, kind: object) -> object:
    """Text that says a value of another type, as a word of a command line does."""
    if not isinstance(value, str) or kind is str:
        return _NOTHING
    if kind is bool and value.lower() in SWITCHES:
        return SWITCHES[value.lower()]
    said = read_word(value)
    return _NOTHING if isinstance(said, str) else _convert(said, kind)


def _first_leaf(name: str, value: object) -> str:
    """An unknown section is told by the first name in it."""
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
        name = f"{name}.{key}"
    return name


def _nearest(name: str) -> str:
    if name in REMOVED:
        return "to be left out, as it was removed in 0.2.0"
    close = difflib.get_close_matches(name, list(setting_types()), n=1, cutoff=0.5)
    if close:
        return close[0]
    sections = [part.name for part in fields(Config)]
    section = difflib.get_close_matches(name.split(".")[0], sections, n=1, cutoff=0.5)
    return f"a name in section {section[0]}" if section else "a known section.name"
