"""Command lines: options given at most once, settings as --SECTION.NAME VALUE, one-line errors.

argparse does the parsing. Types, defaults and help of settings come from the dataclasses of
`kdcache.config`, and values are checked alike in YAML files and on the command line (`parser`).
jsonargparse, which was used before, took longer to import and to inspect the dataclasses than
everything else `--help` does, and its errors had to be rewritten one by one.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin

from kdcache.config import Config, config_to_dict
from kdcache.config.names import expand_path
from kdcache.config.parser import (
    check_given,
    find_owner,
    flatten,
    read_flat,
    refuse_unknown,
    setting_types,
    unflatten,
)
from kdcache.errors import SettingsError, refuse

WIDTH = 100
_GIVEN = "given"  # in a namespace: the options that were given
_SETTINGS_USAGE = "[--config FILE] [--SECTION.NAME VALUE ...]"


class Parser(argparse.ArgumentParser):
    """The parser of one command: raises SettingsError for whatever it does not understand.

    Args:
        settings: also take --config FILE and every setting as --SECTION.NAME VALUE; `read_given`
            reads them.
    """

    def __init__(
        self, *, prog: str, description: str, epilog: str = "", settings: bool = False
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        self.settings = settings
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        if settings:
            self._add_settings()

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:
        """The options that `args` name. Raises SettingsError."""
        words = [word.partition("=")[0] for word in args if word.startswith("--") and word != "--"]
        for name in (word for word in words if word not in self._option_string_actions):
            if not self.settings or not find_owner(name[2:]):
                raise self._refuse_option(name)
            hidden = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
            self.add_argument(name, dest=name[2:], **hidden)  # --student.options.width
        found, rest = self.parse_known_args(args)
        if rest and self.settings:
            raise SettingsError(
                f"settings: {rest[0]!r} is no setting, expected --SECTION.NAME VALUE; "
                "--help lists all settings"
            )
        if rest:
            raise SettingsError(f"{rest[0]!r} is one word too many; --help explains the command")
        return found

    def error(self, message: str) -> NoReturn:
        """Raises SettingsError."""
        valueless = re.fullmatch(r"argument (\S+): expected (?:one|at least one) argument", message)
        if valueless:
            action = self._option_string_actions[valueless[1].partition("/")[0]]
            wanted = action.metavar or " or ".join(action.choices or ["one"])
            raise SettingsError(
                f"{valueless[1]} has no value, expected {wanted}; --help explains it"
            )
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        if missing:
            raise SettingsError(f"{self._describe_missing(missing[1])}; --help explains it")
        raise SettingsError(f"{_explain(message)}; --help explains it")

    def _describe_missing(self, names: str) -> str:
        """What the first missing argument is expected to be, in the words of its help."""
        first = names.split(", ")[0]
        for action in self._actions:
            if first in (action.metavar, action.dest, *action.option_strings):
                wanted = " or ".join(action.choices or []) or (action.help or "").partition(";")[0]
                if wanted:
                    return f"{first} is missing, expected {wanted}"
        return f"{names} is missing"

    def format_help(self) -> str:
        """The help; what the settings mean is read from the source of the dataclasses only here."""
        if self.settings:
            self.usage = self._build_usage()
            texts, defaults = _read_texts(Config), flatten(config_to_dict(Config()))
            for action in self._actions:
                if action.dest in texts:
                    shown = _show_default(defaults[action.dest])
                    action.help = f"{texts[action.dest]}{shown}".replace("%", "%%")
        return super().format_help()

    def _add_settings(self) -> None:
        self.add_argument(
            "--config", action="append", default=[], metavar="FILE", type=read_path,
            help="YAML file of settings, in sections as below; may be repeated: later files win, "
            "and options win over files",
        )  # fmt: skip
        groups = {part.name: self.add_argument_group(part.name) for part in fields(Config)}
        for name, kind in setting_types().items():
            switch = {"nargs": "?", "const": "true"} if kind is bool else {}
            groups[name.partition(".")[0]].add_argument(
                f"--{name}", dest=name, default=argparse.SUPPRESS, metavar=_name_value(kind),
                **switch,
            )  # fmt: skip

    def _build_usage(self) -> str:
        own = [
            action for action in self._actions if "." not in action.dest and action.dest != "config"
        ]
        formatter = self._get_formatter()
        formatter.add_usage(None, own, [])
        lines = formatter.format_help().removeprefix("usage: ").strip().splitlines()
        if len(lines[-1]) + len(_SETTINGS_USAGE) > WIDTH - 8:
            lines.append(" " * 7)
        return "\n".join([*lines[:-1], f"{lines[-1]} {_SETTINGS_USAGE}"]).replace("%", "%%")

    def _refuse_option(self, name: str) -> SettingsError:
        if self.settings and "." in name:
            return refuse_unknown(name[2:])
        known = [option for option in self._option_string_actions if "." not in option]
        near = difflib.get_close_matches(name, known, n=1)
        expected = f", expected {near[0]}" if near else ""
        return SettingsError(f"{name} is unknown{expected}; --help lists all options")


class _StoreOnce(argparse.Action):
    """Stores a value; a second one is a mistake, as nobody can say which of them was meant."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
        option_string: str | None = None,
    ) -> None:  # fmt: skip
        given = vars(namespace).setdefault(_GIVEN, set())
        if self.dest in given:
            raise SettingsError(f"{option_string} is given twice, expected once; leave one out")
        given.update([self.dest] if option_string else [])
        setattr(namespace, self.dest, values)


class _Help(argparse.HelpFormatter):
    """Help of 100 columns that keeps the lines of a text that has some."""

    def __init__(self, prog: str, **options: object) -> None:
        super().__init__(prog, max_help_position=34, width=WIDTH, **options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(
            line if line.startswith(" ") else fill(line, width, indent)
            for line in text.splitlines()
        )


def read_path(text: str) -> Path:
    """For the `type` of an argument: a path, in which ~ and $HOME are put in."""
    try:
        return Path(expand_path("path", text))
    except SettingsError as error:
        reason = str(error).removeprefix("settings: path ").partition(";")[0]
        raise argparse.ArgumentTypeError(reason) from None


def read_given(args: argparse.Namespace) -> dict:
    """The settings that a command line and its YAML files name, as a nested dict.

    Raises: SettingsError for a wrong file, name or value.
    """
    given: dict[str, object] = {}
    for path in args.config:
        given |= read_flat(path)
    return unflatten(_overlay(given, find_words(args)))


def override(given: Mapping, words: Mapping[str, str]) -> dict:
    """Settings as a nested dict, with some by dotted name over them, written as on a command line.

    Raises: SettingsError.
    """
    return unflatten(_overlay(check_given(given), words))


def find_words(args: argparse.Namespace) -> dict[str, str]:
    """Dotted name -> value as written, of each setting on the command line, not in YAML files."""
    return {
        name: word
        for name, word in vars(args).items()
        if name in setting_types() or find_owner(name)
    }  # fmt: skip


def _overlay(given: Mapping[str, object], words: Mapping[str, str]) -> dict[str, object]:
    entries = {name: word for name, word in words.items() if find_owner(name)}
    whole = unflatten({name: word for name, word in words.items() if name not in entries})
    flat = {**given, **check_given(whole)}
    for name, own in check_given(unflatten(entries)).items():
        before = flat.get(name, {})
        if not isinstance(before, Mapping):  # the name of a table
            raise refuse(name, before, f"names with values, beside --{name}.{next(iter(own))}")
        flat[name] = {**before, **own}
    return flat


def _explain(message: str) -> str:
    """argparse's message in the words of the other errors."""
    choice = re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message)
    if choice:
        *others, last = choice[3].replace("'", "").split(", ")
        return f"{choice[1]} is {choice[2]}, expected {', '.join(others)} or {last}"
    settings = re.fullmatch(r"argument \S+: (settings: .*)", message)
    return settings[1] if settings else re.sub(r"^argument (\S+): ", r"\1 ", message)


def _read_texts(section: type, prefix: str = "") -> dict[str, str]:
    """Dotted name of each setting -> the text below it in the source."""
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(section))).body)
    texts = {}
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            texts[f"{prefix}{field.target.id}"] = ast.literal_eval(below.value)
    for part in fields(section):
        if is_dataclass(part.default_factory):
            texts |= _read_texts(part.default_factory, f"{prefix}{part.name}.")
    return texts


def _show_default(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        value = str(value).lower()
    return f" (default: {value})".replace("'", "")


def _name_value(kind: object) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    return {bool: "true|false", int: "N", float: "X", Path: "PATH"}.get(kind, "VALUE")
