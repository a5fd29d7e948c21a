"""Reads a settings file: small, plain YAML, one section per name, no name twice."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from types import NoneType

import yaml

from kdcache.config import Config
from kdcache.disk import MOST_TEXT_BYTES, UnfitFileError, read_text
from kdcache.errors import Phrase, SettingsError, describe, one_line, show_value

SECTIONS = {
    part.name: fields(part.default_factory)[0].name for part in fields(Config)
}  # and the first name in each
SWITCHES = {"yes": True, "on": True, "no": False, "off": False}  # words, but where none can stand
_NAMED = {NoneType: "empty", list: "a list", str: "text", bool: "true or false"}
_CURE = "mend it; configs/voc2012_seed.yaml shows every setting"


_MISTAKES = {
    r"character '\\t'": ("indented by a tab, not by spaces", False),
    r"expected ',' or '[]}]'": ("a bracket that is not closed", True),
    r"end of stream": ("a quote that is not closed", True),
    r"mapping values are not allowed": ("a value with a colon in it; put quotes around it", False),
    r"another document": ("a second document", False),
    r"unhashable key": ("a list or section in place of a name", False),
    r"expected <block end>": ("indented otherwise than the lines above", False),
    r"expected ':'": ("a name without a colon", False),
}
"""What PyYAML says -> what was written, and whether the line is the one where it begins."""


class OnceLoader(yaml.SafeLoader):
    """YAML without aliases, which can expand without end, without tags, which choose how a value is
    read, and without a name given twice.
    """

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """Refuse aliases and tags; else like PyYAML."""
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        odd = "an alias" if isinstance(event, yaml.AliasEvent) else tag and f"a tag, {tag[:60]}"
        if odd:
            raise yaml.MarkedYAMLError(problem=odd, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Refuse a name given twice; else like PyYAML."""
        names = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} twice", problem_mark=key.start_mark
                )
            names.add(key.value)
        return super().construct_mapping(node, deep=deep)


class PlainLoader(OnceLoader):
    """Like `OnceLoader`, with 1e-3 as a number."""


class PlainDumper(yaml.SafeDumper):
    """Puts quotes around text that either version of YAML takes for something else."""


_KINDS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}
"""What is no text, as YAML 1.2 has it: `no` and `on` are words, 010 is not 8, and 1:30 not 90."""
_POWER = r"[-+]?[0-9]+[eE][-+]?[0-9]+"  # without a point it stays as written in a grid's names
OnceLoader.yaml_implicit_resolvers = {}
for _name, (_form, _letters) in _KINDS.items():
    _tag = f"tag:yaml.org,2002:{_name}"
    OnceLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), _letters)
_form = re.compile(f"^(?:{_KINDS['float'][0]}|{_POWER})$")
for _kind in (PlainLoader, PlainDumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _form, _KINDS["float"][1])


def read_settings_file(path: Path) -> dict:
    """What the file says, as nested dicts; names and types are not checked here.

    Raises: SettingsError that names the file, and the line if there is one.
    """
    document = _parse(path, _read_text(path))
    if not isinstance(document, dict):
        raise _refuse(
            path,
            "content",
            _NAMED.get(type(document), "a number"),
            "sections of names, as in `train:` and below it `epochs: 3`",
        )
    for name in (name for name in SECTIONS if not isinstance(document.get(name, {}), dict)):
        example = f"`{name}:` and below it `{SECTIONS[name]}: ...`"
        raise _refuse(
            path, name, show_value(document[name], most=58), f"a section of names, as in {example}"
        )
    return document


def _read_text(path: Path) -> str:
    if not path.is_file():
        cure = "give --config an existing YAML file"
        found = Phrase("a folder" if path.is_dir() else "no file" if path.exists() else "missing")
        raise SettingsError(
            describe(path, field="settings file", found=found, expected=Phrase("a file"), cure=cure)
        )
    try:
        return read_text(path, most_bytes=MOST_TEXT_BYTES)
    except UnfitFileError as error:
        raise SettingsError(f"{path}: {error.strerror}; {_CURE}") from None
    except UnicodeDecodeError:
        raise _refuse(path, "text", "not UTF-8", "UTF-8") from None
    except OSError as error:
        raise SettingsError(
            f"{path}: settings file is unreadable ({error.strerror}); mend that"
        ) from None


def _parse(path: Path, text: str) -> object:
    try:
        return load_yaml(text)
    except yaml.MarkedYAMLError as error:
        raise _refuse(path, *find_mistake(error), "plain YAML") from None
    except yaml.YAMLError as error:
        control = isinstance(error, yaml.reader.ReaderError)
        found = "a text with control characters" if control else one_line(error)
        raise _refuse(path, "content", found, "plain YAML") from None


def load_yaml(text: str, loader: type[OnceLoader] = PlainLoader) -> object:
    """What a text says. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, loader)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except Exception as error:  # of odd numbers and dates: five kinds
        raise yaml.YAMLError(one_line(error)) from None


def read_word(word: object) -> object:
    """What a word of a command line says: `3` is a number, and what is no text stays what it is.

    1_000 is a number, 010 a text, since YAML's versions differ in what it is.
    """
    if not isinstance(word, str) or not word:
        return word
    try:
        whole = re.fullmatch(r"[+-]?(0|[1-9][0-9_]*)", word)
        return int(word) if whole else load_yaml(word)
    except (yaml.YAMLError, ValueError):
        return word


def dump_yaml(values: dict) -> str:
    """A document in the given order, which `load_yaml` reads as these values."""
    return yaml.dump(values, Dumper=PlainDumper, sort_keys=False)


def find_mistake(error: yaml.MarkedYAMLError) -> tuple[str, str]:
    """The line of a mistake in YAML, e.g. "line 2", and what is wrong there."""
    words = f"{error.problem} {error.context}"
    kind, begun = next(
        (said for form, said in _MISTAKES.items() if re.search(form, words)), ("", 0)
    )
    mark = error.context_mark if begun and error.context_mark else error.problem_mark
    line = f"line {mark.line + 1}" if mark else "content"
    return line, kind or one_line(error.problem)


def _refuse(path: Path, field: str, found: str, expected: str) -> SettingsError:
    return SettingsError(
        describe(path, field=field, found=Phrase(found), expected=Phrase(expected), cure=_CURE)
    )
