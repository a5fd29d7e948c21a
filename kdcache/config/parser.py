"""Reads settings: a YAML file, then dotted overrides, typed and checked.

jsonargparse does the parsing: unlike tyro it merges YAML files and dotted overrides itself, and takes types, defaults and
help from the dataclasses of `kdcache.config`.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from kdcache.config import Config, config_from_dict, config_to_dict
from kdcache.config.yaml_file import check_settings_file
from kdcache.errors import SettingsError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def build_parser(*, prog: str, description: str, epilog: str = "") -> ArgumentParser:
    """A parser of every section of `Config` plus --config FILE."""
    parser = ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
        formatter_class=_SettingsHelp,
        usage="%(prog)s [--config FILE] [--SECTION.NAME VALUE ...]",
    )
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="YAML file of settings, sections as below"
    )
    parser.add_class_arguments(Config, None)
    return parser


def read_given(parser: ArgumentParser, argv: list[str]) -> dict:
    """The settings that argv and its YAML files name, nothing else, as a nested dict. Raises SettingsError."""
    for path in _find_files(argv):
        check_settings_file(path)
    try:
        given = parser.parse_args(_files_first(_spell_out_flags(argv)), defaults=False)
    except (argparse.ArgumentError, RecursionError) as error:
        raise SettingsError(_explain(str(error))) from None
    given.pop("config", None)
    values = to_plain(given.as_dict())
    known = config_to_dict(Config())
    for name in _scalar_sections(values, known):
        raise SettingsError(
            f"settings: {name} is a value, expected a section of names; write {name}.NAME"
        )
    for name, value in flatten(values).items():
        if value is None and flatten(known).get(name) is not None:
            raise SettingsError(f"settings: {name} is null, expected a value; change {name}")
    return values


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
    """Stored settings without names that this version does not have (another version of kdcache wrote them)."""
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


def setting_names(section: type = Config, prefix: str = "") -> list[str]:
    """All dotted names, e.g. teacher.layers.low."""
    names = []
    for f in fields(section):
        factory = f.default_factory
        nested = is_dataclass(factory)
        names += setting_names(factory, f"{prefix}{f.name}.") if nested else [f"{prefix}{f.name}"]
    return names


def to_plain(value: object) -> object:
    """Nested dicts with paths as text: what YAML and JSON can hold."""
    if isinstance(value, dict):
        return {key: to_plain(inner) for key, inner in value.items()}
    return value if isinstance(value, (int, float, bool, list, type(None))) else str(value)


def _scalar_sections(values: dict, known: dict, prefix: str = "") -> list[str]:
    """Names of sections that were given a bare value."""
    found = []
    for key, value in values.items():
        if isinstance(known.get(key), dict):
            name = f"{prefix}{key}"
            found += (
                _scalar_sections(value, known[key], f"{name}.")
                if isinstance(value, dict)
                else [name]
            )
    return found


_FLAGS = {"--run.resume", "--run.baseline", "--dataset.download", "--student.pretrained"}


def _spell_out_flags(argv: list[str]) -> list[str]:
    """A switch without a value means true: `--run.resume`."""
    spelled = []
    for place, word in enumerate(argv):
        spelled.append(word)
        if word in _FLAGS and (place + 1 == len(argv) or argv[place + 1].startswith("--")):
            spelled.append("true")
    return spelled


def _files_first(argv: list[str]) -> list[str]:
    """YAML files, then overrides, wherever --config stands."""
    files, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            files += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            (files if word.startswith("--config=") else rest).append(word)
    return files + rest


def _find_files(argv: list[str]) -> list[Path]:
    files = [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    return [
        Path(name)
        for name in files + [value for word, value in pairwise(argv) if word == "--config"]
    ]


def _explain(message: str) -> str:
    """jsonargparse's message in one line, with the nearest known name for an unknown one."""
    line = " ".join(message.replace("'", '"').split())
    bad_value = re.search(r'Parser key "([\w.]+)": (Expected .*?)\.? Got value: (.*)', line)
    if bad_value:
        name, expected, found = bad_value.groups()
        return f"settings: {name} is {found!r}, {_plain_type(expected)}; change {name}"
    other = re.search(r'Parser key "([\w.]+)": (?:Does not validate|Not of type)', line)
    if other:
        given = re.search(r"Given value: (.*)$", line)
        found = repr(given.group(1)) if given else "of another type"
        return f"settings: {other.group(1)} is {found}, expected {_type_name(other.group(1))}; change {other.group(1)}"
    stray = re.search(r"unrecognized arguments: ([^-\s].*)", line, re.IGNORECASE)
    if stray:
        return f"settings: {stray.group(1)!r} is no setting, expected --SECTION.NAME VALUE; --help lists all settings"
    unknown = (
        re.search(r"unrecognized arguments: --([\w.-]+)", line, re.IGNORECASE)
        or re.search(r'Option "([\w.-]+)" is not accepted', line)
        or _unknown_in_group(line)
    )
    if not unknown:
        return f"settings: {line}"
    name = unknown if isinstance(unknown, str) else unknown.group(1)
    return f"settings: {name} is unknown, expected {_nearest(name)}; --help lists all settings"


def _type_name(name: str) -> str:
    """The annotation of a setting, e.g. `int | list[int]`."""
    section = Config
    for part in name.split("."):
        found = {f.name: f for f in fields(section)}[part]
        section = found.default_factory if is_dataclass(found.default_factory) else section
    return _list_choices(str(found.type))


def _list_choices(type_name: str) -> str:
    """`Literal["a", "b"]` -> `a or b`."""
    return re.sub(
        r"Literal\[(.*?)\]",
        lambda found: re.sub(r'["\']', "", found[1]).replace(", ", " or "),
        type_name,
    )


def _plain_type(expected: str) -> str:
    """`Expected a <class "float">` -> `expected float`."""
    expected = _list_choices(re.sub(r'<class "(\w+)">', r"\1", expected).replace("typing.", ""))
    return re.sub(r"^Expected (a |an )?", "expected ", expected)


def _unknown_in_group(line: str) -> str | None:
    found = re.search(r'Group "([\w.]+)" does not accept (?:nested key|option) "([\w.-]+)"', line)
    return f"{found.group(1)}.{found.group(2)}" if found else None


def _nearest(name: str) -> str:
    names = setting_names()
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"{close[0]}"
    section = difflib.get_close_matches(
        name.split(".")[0], [f.name for f in fields(Config)], n=1, cutoff=0.5
    )
    return f"a name in section {section[0]}" if section else "a known section.name"


class _SettingsHelp(DefaultHelpFormatter):
    """Help with room for dotted names, one line each where it fits."""

    def __init__(self, prog: str, **kwargs: object) -> None:
        super().__init__(prog, max_help_position=40, width=118)
