"""Every command that writes a file of its own: run twice at once there is never a mixture, a full
disk is one line with the bytes needed, and an interruption leaves nothing unfinished.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import BufferedWriter
from pathlib import Path

import pytest
import yaml

import cache_teacher.cli
import train_student.cli
from kdcache import disk
from kdcache.command import run_command
from kdcache.config.parser import make_config, merge
from kdcache.deploy.export import check_export, export_student
from kdcache.deploy.student import TrainedStudent, load_student
from kdcache.precompute.build import build_cache
from kdcache.training.distill import distill
from kdcache.training.run import TrainingEvents
from kdcache.training.run_folder import LAST, RESULT
from tests.faults import children
from tests.support import quick
from tests.support.effort import FULL, quick_and_full

GO_ON = "train --config given.yaml --run.dir half --run.resume"
# command -> another that writes the same files, None: it is refused; and these files
WRITERS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "report run": ("report run --panels 1", ("run/report.html",)),
    "compare run --csv t.csv --html t.html": (
        "compare second --csv t.csv --html t.html", ("t.csv", "t.html")
    ),
    "predict run a.png --out out": (
        "predict second a.png --out out",
        ("out/masks/a.png", "out/overlays/a.png", "out/index.html"),
    ),
    "export run": ("export second", ("run/student.safetensors",)),
    "view cache --out v.html": ("view cache --out v.html --split train", ("v.html",)),
    "fit --config given.yaml": (None, ("t.pth",)),
    GO_ON: (None, ("half/student_kd_last.pth", "half/metrics.jsonl", "half/result.json")),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(quick_data, tmp_path_factory) -> Path:
    """A cache, two runs of other seeds, one that was stopped after an epoch. Read only."""
    root = tmp_path_factory.mktemp("writers") / "world"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        quick.build_quick(quick_data, Path("cache"))
        given = merge(
            quick.quick_given(quick_data, Path("cache")),
            {
                "run": {"track": "none", "baseline": False, "dir": "run"},
                "fit": {"epochs": 1, "batch_size": 2, "out": "t.pth"},
                "teacher": {"weights": "t.pth"},
            },
        )
        Path("given.yaml").write_text(yaml.safe_dump(given))
        distill(given, root=Path("cache"))
        other = {"run": {"dir": "second"}, "train": {"seed": 1}}
        distill(merge(given, other), root=Path("cache"))
        with pytest.raises(KeyboardInterrupt):
            distill(merge(given, {"run": {"dir": "half"}}), root=Path("cache"), events=Stop())
        shutil.copy(next(quick_data.rglob("JPEGImages/*.jpg")), "a.png")
    assert (root / "half" / LAST).exists() and not (root / "half" / RESULT).exists()
    return root


class Stop(TrainingEvents):
    """Ends a run after its first epoch."""

    def epoch_finished(self, *args: object, **options: object) -> None:
        raise KeyboardInterrupt


def run(command: str) -> int:
    """The exit code of a command; `export STUDENT` writes that of another run into `run`."""
    words = command.split()
    if words[0] == "export":
        student = replace(load_student(Path(words[1])), folder=Path("run"))
        return run_command("export", lambda: export(student))
    if words[0] in ("view", "fit"):
        return cache_teacher.cli.main(words)
    return train_student.cli.main(words[1:] if words[0] == "train" else words)


def export(student: TrainedStudent) -> None:
    export_student(student, to="safetensors", find_images=list)


def list_files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.name != ".lock"}


def read(names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in names}


def meet_first(monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None]) -> None:
    """Call `act` when the first file is open for writing, before a byte is in it."""
    real, met = disk.open_new, []

    def open_new(path: Path) -> object:
        file = real(path)
        if not met:
            met.append(path)
            act(path)
        return file

    monkeypatch.setattr(disk, "open_new", open_new)


@pytest.mark.parametrize("command", WRITERS)
def test_run_twice_at_once_nothing_is_mixed(here, monkeypatch, capsys, command):
    other, names = WRITERS[command]
    wholes = []
    for alone in filter(None, (command, other)):
        shutil.copytree(here, "alone")
        with monkeypatch.context() as patch:
            patch.chdir("alone")
            assert run(alone) == 0
            wholes.append(read(names))
        shutil.rmtree("alone")
    assert other is None or wholes[0] != wholes[1]
    codes = []
    with monkeypatch.context() as patch:
        meet_first(patch, lambda path: codes.append(run(other or command)))
        assert run(command) == 0
    assert codes == [0] if other else codes in ([1], [2]), capsys.readouterr().err
    if command.startswith("export"):  # safetensors writes its facts in any order
        check_export(Path(names[0]))
        wholes = [read(names)]
    for name, data in read(names).items():
        assert other is None or data in [whole[name] for whole in wholes], name
    assert not list_unfinished()


class Full(BufferedWriter):
    """A file on a full disk."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Interrupted(BufferedWriter):
    """A file in whose middle somebody presses Ctrl-C."""

    def write(self, data: object) -> int:
        super().write(memoryview(data)[: len(data) // 2])
        self.flush()
        raise KeyboardInterrupt


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_is_one_line_with_the_bytes_needed(here, monkeypatch, capsys, command):
    before = list_files()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "BufferedWriter", Full)
        assert run(command) == (2 if command == GO_ON else 1)
    (line,) = find_lines(capsys)
    words = r"t?.*: .*No space left on device, it needs \d+ bytes, \d+ are free\W"
    assert re.search(words, line), line
    assert {name for name in list_files() - before if Path(name).is_file()} == set()
    assert run(command) == 0


@pytest.mark.parametrize("command", WRITERS)
def test_an_interruption_leaves_nothing_unfinished(here, monkeypatch, capsys, command):
    with monkeypatch.context() as patch:
        patch.setattr(disk, "BufferedWriter", Interrupted)
        assert run(command) == 130
    (line,) = find_lines(capsys)
    assert ": interrupted; " in line
    assert not list_unfinished()
    assert run(command) == 0


def find_lines(capsys: pytest.CaptureFixture) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if "s/s" not in line and not line.startswith("warning: ")]


def list_unfinished() -> list[str]:
    return [name for name in list_files() if name.endswith((".partial", ".lock"))]


def test_a_build_that_is_interrupted_leaves_nothing_unfinished(here, monkeypatch, quick_data):
    given = quick.quick_given(quick_data, Path("new"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(disk, "BufferedWriter", Interrupted)
        build_cache(make_config(given))
    assert not list_unfinished()
    build_cache(make_config(given))


def _train_with_limit(most_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    with Path("error").open("w") as file:
        sys.stderr = file
        code = run(GO_ON)
    os._exit(code)


def _go_to(folder: Path, target: Callable, *args: object) -> None:
    os.chdir(folder)
    target(*args)


def test_a_limit_on_the_size_of_files_ends_a_run_cleanly(here):
    before = Path("half", LAST).read_bytes()
    assert children.run(_go_to, here, _train_with_limit, 200_000) == 1
    line = Path("error").read_text().splitlines()[-1]
    size = r"File too large, it needs \d{6,} bytes, \d+ are free; make room and run it again"
    assert re.search(rf"train_student: half/student_kd_\w+.pth: {size}", line), line
    assert Path("half", LAST).read_bytes() == before and not list_unfinished()
    assert run(GO_ON) == 0


def _wait_and_ask(moment_s: float) -> tuple[int, str]:
    command = [sys.executable, "-m", "train_student", "predict", "run", "a.png", "--out", "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            child.wait(moment_s)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
        err = child.communicate(timeout=60)[1]
    return child.returncode, err


@quick_and_full
def test_predict_interrupted_at_any_moment_ends_in_one_line(here, monkeypatch, effort):
    root = Path(train_student.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))
    began_s = time.monotonic()
    assert _wait_and_ask(60)[0] == 0
    took_s, shares = time.monotonic() - began_s, range(1, 20, 1 if effort == FULL else 6)
    for share in shares:
        code, err = _wait_and_ask(0.1 + took_s * share / 20)
        if code == 0:  # it was faster
            continue
        lines = [line for line in err.splitlines() if "s/s" not in line]
        # CPython ends by the signal itself, a shell's 130, if it came in an `exec` of text
        assert code in (130, -signal.SIGINT), (share, code, err)
        assert len(lines) == 1 and "interrupted; " in lines[0], (share, code, err)
        assert not list_unfinished()
