"""A student that a cache or a run names is imported only if this command line names it, too: every
command, every place where one is stored.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import cache_teacher.cli
import train_student.cli
from kdcache.cache.lifecycle import add_information
from kdcache.cache.manifest import read_manifest
from kdcache.cache.pack import pack_cache
from kdcache.models.own_code import hash_file
from kdcache.models.stored_state import save_tensors
from kdcache.training.run_folder import (
    BEST,
    LAST,
    SETTINGS,
    read_result,
    write_result,
)

ARCH = "trap_student:build"
CODE = """from pathlib import Path
Path(__file__).with_name("executed").touch()
from own_student import plain


def build(num_classes, **options):
    return plain(num_classes)
"""
LOOKING = ("info", "view", "verify", "fidelity", "export")  # what packed files take, too
CHANGING = ("repair", "gc", "train")
OF_RUN = ("predict", "export", "report", "compare", "fidelity", "resume")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Iterator[Path]:
    """The current folder, with the module of a stranger in it and an image."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "trap_student.py").write_text(CODE)
    Image.new("RGB", (48, 48)).save(folder / "image.png")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("trap_student", None)


@pytest.fixture
def root(cache, here) -> Path:
    """A cache whose manifest names the module."""
    root = Path(cache.cache.path)
    settings = dict(read_manifest(root).information["settings"])
    settings["student"] = {**settings["student"], "arch": ARCH, "options": {}}
    settings["run"] = {**settings["run"], "dir": str(here / "elsewhere"), "track": "wandb"}
    add_information(root, {"settings": settings})
    return root


@pytest.fixture
def call(capsys) -> Callable[..., tuple[int, list[str]]]:
    """Run a command: its exit code, and the lines of stderr but for progress."""

    def run(program: Callable, *words: object) -> tuple[int, list[str]]:
        code = program([str(word) for word in words])
        lines = capsys.readouterr().err.splitlines()
        return code, [line for line in lines if line.startswith(("train_", "cache_", "warn"))]

    return run


def change_settings(run: Path, arch: str = ARCH) -> None:
    settings = yaml.safe_load((run / SETTINGS).read_text())
    settings["student"] |= {"arch": arch, "options": {}}
    (run / SETTINGS).write_text(yaml.safe_dump(settings))


def change_checkpoints(run: Path, source: str | None = None) -> None:
    for name in (BEST, LAST):
        state = torch.load(run / name, weights_only=True)
        facts = {**state["hyperparameters"], "student.arch": ARCH, "student.options": {}}
        state["hyperparameters"] = {**facts, **({"student.source": source} if source else {})}
        save_tensors(run / name, state)


def change_result(run: Path) -> None:
    result = read_result(run)
    result["hyperparameters"] |= {"student.arch": ARCH, "student.options": {}}
    write_result(run, result)


def change_all(run: Path) -> None:
    for change in (change_settings, change_checkpoints, change_result):
        change(run)


PLACES = {
    "config.yaml": change_settings,
    "torch.hub": lambda run: change_settings(run, "torch.hub:load"),
    "checkpoint": change_checkpoints,
    "result.json": change_result,
    "all": change_all,
}


def list_words(command: str, run: Path, built_root: Path) -> tuple:
    """The program and the words of a command on a run."""
    if command == "fidelity":
        return cache_teacher.cli.main, "fidelity", built_root, "--run", run, "--samples", 2
    if command == "resume":
        words = ("--cache.path", built_root, "--run.dir", run, "--run.resume", "--run.baseline")
        return train_student.cli.main, *words, "false", "--train.epochs", 2
    more = {
        "predict": [run.parent / "here" / "image.png"],
        "export": ["--to", "safetensors"],
        "report": ["--cache.path", built_root],
    }
    return train_student.cli.main, command, run, *more.get(command, [])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", OF_RUN)
def test_what_a_run_names_is_not_imported(command, place, run, here, built_root, call, monkeypatch):
    monkeypatch.setattr("torch.hub.load", lambda *a, **b: (here / "executed").touch())
    PLACES[place](run)
    code, lines = call(*list_words(command, run, built_root))
    assert not (here / "executed").exists() and "trap_student" not in sys.modules
    assert len(lines) <= 1
    if place == "all" and command not in ("compare", "resume"):
        assert code == 2 and f"add --student.arch {ARCH} or --trust-code" in lines[0], lines


@pytest.fixture
def root_of_teacher(cache, here) -> Path:
    """A cache whose manifest names the module as its teacher."""
    root = Path(cache.cache.path)
    settings = dict(read_manifest(root).information["settings"])
    settings["teacher"] = {**settings["teacher"], "arch": ARCH, "weights": "as_built"}
    add_information(root, {"settings": settings})
    (root / "commits" / "train-v0000-g00000.json").unlink()
    return root


@pytest.mark.parametrize("command", [*LOOKING, *CHANGING])
def test_a_teacher_that_a_manifest_names_is_not_imported(
    command, root_of_teacher, here, tmp_path, call
):
    more = {"export": [tmp_path / "again.h5"], "fidelity": ["--samples", 2]}
    words = [command, root_of_teacher, *more.get(command, [])]
    program = cache_teacher.cli.main
    if command == "train":
        words, program = ["--cache.path", root_of_teacher], train_student.cli.main
    code, lines = call(program, *words)
    assert not (here / "executed").exists() and "trap_student" not in sys.modules
    if command in ("fidelity", "repair"):
        assert code == 2 and f"add --teacher.arch {ARCH} or --trust-code" in lines[0], lines
    if command == "repair":  # fidelity knows from the settings that it is another teacher
        call(program, *words, "--teacher.arch", ARCH)
        assert (here / "executed").exists()


@pytest.mark.parametrize("kind", ["folder", "packed"])
@pytest.mark.parametrize("command", [*LOOKING, *CHANGING])
def test_what_a_manifest_names_is_not_imported(command, kind, root, here, tmp_path, call):
    place = root
    if kind == "packed":
        place = tmp_path / "cache.h5"
        pack_cache(root, place)
    more = {"export": [tmp_path / "again.h5"], "fidelity": ["--samples", 2]}
    if command == "train":
        words = ["--cache.path", place, "--train.epochs", 1, "--run.baseline", "false"]
        own = ["--student.pretrained", "false", "--run.dir", tmp_path / "new"]
        code, lines = call(train_student.cli.main, *words, *own)
    else:
        code, lines = call(cache_teacher.cli.main, command, place, *more.get(command, []))
    assert not (here / "executed").exists() and not (here / "elsewhere").exists()
    assert code == 0 or kind == "packed" and command in CHANGING, lines


def test_fidelity_takes_no_code_from_a_file_of_settings(built_root, here, call):
    (here / "given.yaml").write_text(yaml.safe_dump({"student": {"arch": ARCH}}))
    words = ("fidelity", built_root, "--config", here / "given.yaml")
    code, lines = call(cache_teacher.cli.main, *words)
    assert code == 2 and f"--config: student.arch is {ARCH!r}" in lines[0]
    assert not (here / "executed").exists()


@pytest.fixture
def own_run(run, here) -> Path:
    """A run whose student is the module's, and that names its file."""
    change_settings(run)
    change_checkpoints(run, source=hash_file(here / "trap_student.py"))
    for name in (BEST, LAST):
        from own_student import plain

        state = torch.load(run / name, weights_only=True)
        save_tensors(run / name, {**state, "model_state_dict": plain(8).state_dict()})
    shutil.rmtree(run / "predictions", ignore_errors=True)
    return run


def test_it_is_imported_where_the_command_line_names_it(own_run, here, built_root, call):
    words = (*list_words("predict", own_run, built_root), "--student.arch")
    assert call(*words, "other:build")[0] == 2 and not (here / "executed").exists()
    assert call(*words, ARCH) == (0, []) and (here / "executed").exists()


@pytest.mark.parametrize("command", ["predict", "export", "report", "fidelity"])
def test_a_changed_file_is_not_imported(command, own_run, here, built_root, call):
    with (here / "trap_student.py").open("a") as file:
        file.write("# changed\n")
    words = list_words(command, own_run, built_root)
    code, lines = call(*words, "--student.arch", ARCH)
    if command == "fidelity":  # its other students are of that module, too: the user names it
        assert code == 2 and "add --trust-code to run it as it is now" in lines[-1]
        return
    assert code == 2 and len(lines) == 1 and f"file of student.arch {ARCH} is" in lines[0]
    assert not (here / "executed").exists()
    lines = call(*words, "--trust-code")[1]
    assert (here / "executed").exists() and "has changed since the run was trained" in lines[0]


def test_a_run_is_not_resumed_with_a_changed_file(own_run, here, built_root, call):
    words = (*list_words("resume", own_run, built_root), "--student.arch", ARCH)
    (own_run / "result.json").unlink()
    (here / "trap_student.py").write_text(f"{CODE}# changed\n")
    code, lines = call(*words)
    assert code == 1 and "student.source is" in lines[0] and not (here / "executed").exists()
