"""A grid of settings: the names that vary, their values, and the seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from kdcache.config.names import expand_path
from kdcache.config.parser import flatten
from kdcache.config.yaml_file import OnceLoader, find_mistake, load_yaml
from kdcache.disk import MOST_TEXT_BYTES, read_text
from kdcache.errors import Phrase, SettingsError, describe, one_line, show_value
from kdcache.schema import FieldError, plain

# settings that can vary with one cache
VARIED = ("student.", "loss.", "train.", "augment.views", "cache.levels")
FIXED = ("run", "cache", "dataset", "augment", "teacher", "fit")
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Grid:
    """Settings to combine.

    values: dotted name -> values as written on the command line. seeds: each point runs with each.
    """

    values: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]

    def points(self) -> list[dict[str, str]]:
        """Every combination, the last name varying fastest."""
        return [
            dict(zip(self.values, words, strict=True))
            for words in itertools.product(*self.values.values())
        ]


def read_grid(words: Sequence[str], seeds: str | None) -> Grid:
    """The grid of a command line. Names and values are checked later, with the other settings.

    Args:
        words: settings such as `loss.beta=0,0.5`, or names of YAML files such as
            {loss.beta: [0, 0.5], seeds: [0, 1, 2]}.
        seeds: such as "0,1,2"; None takes the seeds of the file, else SEEDS.

    Raises: SettingsError if a word, a file or a seed is not valid, or a name is given twice.
    """
    values: dict[str, tuple[str, ...]] = {}
    for word in words:
        for name, own in (_read_word(word) if "=" in word else _read_file(word)).items():
            if name in values:
                raise _refuse(name, "given twice", "each name once")
            values[name] = own
    stored = values.pop("seeds", None)
    for name, own in values.items():
        _check_name(name)
        _check_values(name, own)
    return Grid(values, _read_seeds(stored if seeds is None else tuple(split_list(seeds))))


def split_list(text: str) -> list[str]:
    """Split at commas outside brackets: "[low],[low,high]" has two parts."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _read_word(word: str) -> dict[str, tuple[str, ...]]:
    name, _, text = word.partition("=")
    return {name: tuple(split_list(text))}


def _read_file(word: str) -> dict[str, tuple[str, ...]]:
    path = Path(expand_path("--grid", word))
    if path.suffix not in (".yaml", ".yml"):
        raise _refuse(str(path), "no grid", "NAME=VALUE,VALUE or a YAML file")
    try:
        document = dict(load_yaml(read_text(path, most_bytes=MOST_TEXT_BYTES), OnceLoader))
    except OSError as error:
        raise _refuse(
            str(path), f"unreadable ({error.strerror})", "a YAML file that is there"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        marked = isinstance(error, yaml.MarkedYAMLError)
        reason = " is ".join(find_mistake(error)) if marked else one_line(error)
        raise _refuse(
            str(path), f"no grid ({reason})", "lists of values by name, as in `loss.beta: [0, 0.5]`"
        ) from None
    content: dict[str, object] = {}
    for part in (flatten({key: value}) for key, value in document.items()):
        for name in content.keys() & part.keys():  # `loss: {beta: ...}` beside `loss.beta: ...`
            raise _refuse(name, f"given twice in {path}", "each name once")
        content |= part
    for name, own in content.items():
        if not isinstance(own, list):
            raise SettingsError(
                describe(
                    path,
                    field=name,
                    found=own,
                    expected=Phrase("a list of values"),
                    cure=f"write [{show_value(own)}]",
                )
            )
    return {name: tuple(_as_word(name, value) for value in own) for name, own in content.items()}


def _as_word(name: str, value: object) -> str:
    try:
        plain(value)
    except FieldError as error:
        raise _refuse(name, f"no value ({error})", "numbers, texts, lists of them") from None
    return value if isinstance(value, str) else json.dumps(value)


def _check_name(name: str) -> None:
    if name == "train.seed":
        raise _refuse(name, "part of the grid", "--seeds")
    if not name.startswith(VARIED) and name.partition(".")[0] in FIXED:
        raise _refuse(
            name,
            "part of the grid",
            "what one cache can vary: student, loss, train, augment.views, cache.levels",
        )


def _check_values(name: str, values: tuple[str, ...]) -> None:
    if not all(values):
        raise _refuse(name, "empty", "NAME=VALUE,VALUE")
    if len(set(values)) < len(values):
        raise _refuse(name, ",".join(values), "each value once")


def _read_seeds(words: tuple[str, ...] | None) -> tuple[int, ...]:
    if words is None:
        return SEEDS
    if not all(word.isdecimal() and int(word) < 2**63 for word in words) or len(set(words)) < len(
        words
    ):
        found, expected = (
            Phrase(",".join(words)),
            Phrase("different whole numbers from 0, with commas between them"),
        )
        cure = "as in `--seeds 0,1,2`"
        raise SettingsError(
            describe("command line", field="--seeds", found=found, expected=expected, cure=cure)
        )
    return tuple(int(word) for word in words)


def _refuse(name: str, found: str, expected: str) -> SettingsError:
    cure = "change --grid, as in `--grid loss.beta=0,0.5 loss.gamma=0,0.3`"
    return SettingsError(
        describe("--grid", field=name, found=Phrase(found), expected=Phrase(expected), cure=cure)
    )
