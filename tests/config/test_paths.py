"""~ and $HOME are put in wherever a person gives a path: settings, arguments, Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

import kdcache
import kdcache.config.options as options
from kdcache.api import _read
from kdcache.cache.reader import open_split
from kdcache.command import build_cache_parser, read_new_path
from kdcache.config.names import PATHS, expand_path
from kdcache.config.options import Parser, read_given, read_path
from kdcache.config.parser import read_stored, setting_types
from kdcache.errors import KdcacheError, SettingsError
from kdcache.storage import open_given
from kdcache.training.grid import read_grid
from tests.support.helpers import check_one_line
from train_student.cli import main as train_student

ROOT = Path(__file__).parents[2]
NOBODY = ("~nobody_of_that_name/x", "$NOT_SET/x", "${NOT_SET}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> Path:
    """A home of this test alone, which is not the current folder."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path / "home"


def read(*argv: str, text: str | None = None) -> dict:
    """Settings as the programs read them from words and a file."""
    words = list(argv)
    if text is not None:
        Path("my.yaml").write_text(text)
        words = ["--config", "my.yaml", *words]
    return read_given(Parser(prog="program", description="", settings=True).parse_args(words))


def ways(name: str, value: str) -> list:
    """What reads a setting that a person gives."""
    section, key = name.split(".")
    return [
        lambda: read(text=f"{section}:\n  {key}: '{value}'\n"),
        lambda: read(f"--{name}", value),
        lambda: read(f"--{name}={value}"),
        lambda: options.override({}, {name: value}),
        lambda: options.override({section: {key: value}}, {}),
        lambda: _read({name: value}, None),
        lambda: _read({}, {section: {key: value}}),
    ]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("written", ["~/my data", "$HOME/my data", "${HOME}/my data"])
def test_home_is_put_in_however_a_setting_is_given(home: Path, name: str, written: str):
    prefix = "transformers:" if name == "teacher.arch" else ""
    section, key = name.split(".")
    for way in ways(name, prefix + written):
        assert way() == {section: {key: f"{prefix}{home}/my data"}}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("word", NOBODY)
def test_home_of_nobody_is_refused_and_makes_no_folder_of_that_name(name: str, word: str):
    prefix = "transformers:" if name == "teacher.arch" else ""
    for way in ways(name, prefix + word):
        with pytest.raises(SettingsError) as error:
            way()
        check_one_line(error, f"{name} is {prefix + word!r}", "./", f"change {name}")
    assert [entry.name for entry in Path().iterdir()] in ([], ["my.yaml"])


def test_every_setting_that_takes_a_path_is_in_the_list():
    paths = {name for name, kind in setting_types().items() if Path in (kind, *get_args(kind))}
    assert paths <= set(PATHS) <= set(setting_types())


@pytest.mark.parametrize(
    "word", ["./~/x", "a/~", "x~", "a$HOME/b", "~x", "$HOME.d", "s3://b/~", ""]
)
def test_nothing_else_in_a_path_is_changed(word: str):
    assert expand_path("run.dir", word) == word


def test_stored_settings_are_not_expanded_again():
    stored = {"dataset": {"root": "~/x"}, "cache": {"path": "$HOME/x"}}
    assert read_stored(stored) == stored


@pytest.mark.parametrize("word", ["~", "$HOME", "~/", "${HOME}/"])
def test_home_itself_is_a_path(home: Path, word: str):
    assert read_path(word) == home


def test_arguments_of_commands(home: Path):
    parser = build_cache_parser("program", "", example="")
    assert str(parser.parse_args(["~/cache"]).path) == str(home / "cache")
    assert read_new_path("$HOME/page.html") == home / "page.html"
    for word in NOBODY:
        with pytest.raises(SettingsError) as error:
            parser.parse_args([word])
        check_one_line(error, f"is {word!r}", "./")


def test_no_argument_of_a_program_is_a_path_without_that():
    files = [
        file for name in ("cache_teacher", "train_student") for file in ROOT.glob(f"{name}/*.py")
    ]
    assert len(files) > 6
    for file in [*files, ROOT / "kdcache/command.py"]:
        text = file.read_text()
        assert not re.search(r"type=Path\b|Path\((text|word)\)", text), file


def test_a_grid_and_a_file_of_settings_in_the_home(home: Path):
    (home / "grid.yaml").write_text("loss.beta: [0, 1]\n")
    assert read_grid(["~/grid.yaml"], None).values == {"loss.beta": ("0", "1")}
    (home / "my.yaml").write_text("loss: {beta: 2}\n")
    assert read("--config", "~/my.yaml") == {"loss": {"beta": 2.0}}


@pytest.mark.parametrize(
    "ask",
    [
        kdcache.compare,
        kdcache.load_student,
        kdcache.open_cache,
        kdcache.build_cache,
        kdcache.distill,
        lambda path: open_split(path, "val"),
    ],
)
def test_functions_look_in_the_home(home: Path, ask):
    for written in ("~/none", "$HOME/none"):
        with pytest.raises(KdcacheError) as error:
            ask(written)
        check_one_line(error, f"{home}/none")


def test_a_cache_in_the_home_is_opened(home: Path, built_root: Path):
    (home / "cache").symlink_to(built_root)
    assert str(open_given("~/cache")) == str(home / "cache")
    assert kdcache.open_cache("~/cache").train.num_samples == 10


def test_report_takes_a_cache_in_the_home(capsys, home: Path, run: Path):
    assert train_student(["report", str(run), "--cache.path", "~/none"]) == 1
    assert f"{home}/none" in capsys.readouterr().err
