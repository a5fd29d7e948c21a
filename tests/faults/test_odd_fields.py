"""Every field of every document in turn is something odd: each command that reads the document
succeeds, or says in one line what is wrong. What nobody has foreseen ends in another line, that of
a bug, and must never be met here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from kdcache.seals import SealedArchive
from kdcache.training.run_folder import BEST, LAST, METRICS, RESULT, SETTINGS
from tests.support.effort import FULL, quick_and_full
from tests.support.odd_world import (
    LOOKING,
    check_command,
    make_world,
    seal,
    seal_metrics,
    to_json,
)

TAGS = '<b onclick="x()">\x1b[2J\n'
ODD = [
    None, float("nan"), float("inf"), -1, 10**400, TAGS, [], {"a": [1]}, True, 0, 1e300, "a\0b",
    "a\ud800b", "a" * 90_000,
]  # fmt: skip
MOST_OF_A_KIND = 2  # entries of a long list, or of a table of tensors, that are changed


@dataclass(frozen=True)
class Document:
    """One file of the world, how it is read and written, and the commands that read it."""

    key: str
    read: Callable[[bytes], object]
    write: Callable[[object], bytes]
    commands: tuple[str, ...]
    every: int = 1  # in `make test` only each of so many places is changed


def to_lines(entries: list) -> bytes:
    return "".join(to_json(entry).replace("\n", "") + "\n" for entry in entries).encode()


def read_lines(data: bytes) -> list:
    return [json.loads(line) for line in data.splitlines()]


def to_checkpoint(state: object) -> bytes:
    """Sealed, with `sealed` among the fields that are changed."""
    archive = SealedArchive()
    torch.save(state, archive)
    return b"".join(archive.finish())


def read_state(data: bytes) -> dict:
    import io

    return torch.load(io.BytesIO(data), weights_only=True)


RUN = "--config given.yaml --run.dir run/kd"
DOCUMENTS = {
    "manifest": Document(
        "cache/manifest.json", json.loads, seal,
        (*LOOKING, "gc cache --dry-run", "repair cache --dry-run", "train", "build"), every=11,
    ),
    "record of train": Document(
        "cache/commits/train-v0000-g00000.json", json.loads, seal,
        (*LOOKING, "view cache --out page.html --split train", "export cache new.h5"), every=5,
    ),
    "record of val": Document(
        "cache/commits/val-v0000-g00000.json", json.loads, seal, (*LOOKING, "train"), every=5,
    ),
    "result": Document(
        f"run/kd/{RESULT}", json.loads, seal,
        ("compare run --csv t.csv --html t.html", "report run/kd", "resume"), every=3,
    ),
    "metrics": Document(
        f"run/kd/{METRICS}", read_lines, to_lines, ("compare run", "report run/kd"), every=3,
    ),
    "settings": Document(
        f"run/kd/{SETTINGS}", yaml.safe_load,
        lambda value: yaml.safe_dump(value, sort_keys=False).encode(),
        ("compare run", "report run/kd", "predict run/kd photo.png --out out"), every=7,
    ),
    "best checkpoint": Document(
        f"run/kd/{BEST}", read_state, to_checkpoint,
        ("report run/kd", "predict run/kd photo.png --out out"), every=11,
    ),
    "last checkpoint": Document(f"half/kd/{LAST}", read_state, to_checkpoint, ("go on",), every=9),
    "state of a fit": Document("fit/t.pth.state", read_state, to_checkpoint, ("fit",), every=4),
}  # fmt: skip


def find_places(value: object) -> Iterator[tuple[dict | list, object]]:
    """Every (container, key), of what is alike the first ones."""
    if isinstance(value, dict):
        tensors = [key for key in value if isinstance(value[key], torch.Tensor)]
        keys = [key for key in value if key not in tensors[MOST_OF_A_KIND:]]
        keys = keys if len(keys) < 200 else keys[:MOST_OF_A_KIND]
        if keys and all(isinstance(key, int) for key in keys):  # moments of an optimiser
            keys = keys[:MOST_OF_A_KIND]
    elif isinstance(value, list):
        keys = range(min(len(value), MOST_OF_A_KIND))
    else:
        return
    for key in keys:
        yield value, key
        yield from find_places(value[key])


@pytest.fixture(scope="module")
def world(quick_data, tmp_path_factory) -> Path:
    """Read only."""
    return make_world(quick_data, tmp_path_factory.mktemp("odd") / "world")


def choose_cases(document: Document, places: int, effort: str) -> Iterator[tuple[int, object]]:
    """(number of the place, odd value): all of them, or each value in turn over some places."""
    if effort == FULL:
        yield from ((place, value) for place in range(places) for value in ODD)
        return
    chosen = range(0, places, document.every)
    yield from ((place, ODD[turn % len(ODD)]) for turn, place in enumerate(chosen))


@quick_and_full
@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_odd_field_is_read_or_one_line(world, tmp_path, monkeypatch, capsys, name, effort):
    document, here = DOCUMENTS[name], tmp_path / "here"
    contents = document.read((world / document.key).read_bytes())
    count = sum(1 for _ in find_places(contents))
    codes, failed = set(), []
    for place, odd in choose_cases(document, count, effort):
        changed = deepcopy(contents)
        container, key = list(find_places(changed))[place]
        container[key] = odd
        shutil.copytree(world, here)
        monkeypatch.chdir(here)
        for command in document.commands:  # those that change something stand last
            (here / document.key).write_bytes(document.write(changed))
            if name == "metrics":
                seal_metrics(here / "run/kd")
            try:
                codes.add(check_command(command, capsys))
            except AssertionError as error:
                failed.append(f"{key!r} was {str(odd)[:20]!r}, {command}: {str(error)[:400]}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(here)
    assert not failed, "\n".join(failed)
    assert codes & {1, 2}
