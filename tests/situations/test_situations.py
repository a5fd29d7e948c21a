"""The table of situations: each is made with real files, and ends as expected.

Expected is nothing that is said, or a pattern of the line. `make_world` makes what situations of
commands begin with: a small cache, and a run of it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from kdcache.command import A_BUG
from kdcache.config.parser import make_config
from kdcache.models.teacher import build_teacher
from tests.situations.data_table import DATA
from tests.situations.place import Situation, find_line, read_data, read_settings, write_data
from tests.situations.use_table import CHECKPOINTS, MOVED, SETTINGS, SHELL
from tests.support.odd_world import KINDS, make_world


def situations(table: list[Situation]):
    return pytest.mark.parametrize("situation", table, ids=lambda situation: situation.name)


def check(said: str, expected: str) -> None:
    """Nothing is said if it works, else a line that fits."""
    assert re.search(expected, said) if expected else not said, said or "nothing was said"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)


@situations(DATA)
def test_data(situation: Situation, caplog):
    write_data()
    given = situation.make()
    said = find_line(lambda: read_data(given if isinstance(given, dict) else None), caplog)
    check(said, situation.expected)


@situations(SETTINGS)
def test_settings(situation: Situation, caplog):
    given = situation.make()
    check(find_line(lambda: read_settings(given), caplog), situation.expected)


@situations(CHECKPOINTS)
def test_checkpoints(situation: Situation, caplog):
    config = make_config({"teacher": situation.make(), "dataset": {"num_classes": 3}}).teacher
    options = {"num_classes": 3, "levels": ["low"], "device": torch.device("cpu")}
    check(find_line(lambda: build_teacher(config, **options), caplog), situation.expected)
    assert not Path("trace").exists()


@pytest.fixture(scope="session")
def world(quick_data, tmp_path_factory) -> Path:
    """A cache, its data set, a finished run and a photograph; `given.yaml` has their settings."""
    return make_world(quick_data, tmp_path_factory.mktemp("world") / "world")


@situations([*MOVED, *SHELL])
def test_commands(situation: Situation, world, tmp_path, capsys, quick_teacher, monkeypatch):
    monkeypatch.setattr("kdcache.analysis.fidelity.FEW_SAMPLES", 1)
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    program, words = situation.make()
    try:
        code = KINDS[program](words)
    except SystemExit as end:  # --help
        code = end.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith(program)]
    assert A_BUG not in err and "Traceback" not in err, err
    said = "\n".join(lines) or (out if code else "")
    assert bool(said) == bool(code), (code, out, err)
    assert len(lines) <= 1, err
    check(said, situation.expected)


def test_the_table_is_as_long_as_it_is_meant_to_be():
    table = [*DATA, *SETTINGS, *CHECKPOINTS, *MOVED, *SHELL]
    assert len(table) >= 300 and len({situation.name for situation in table}) > len(table) - 9
