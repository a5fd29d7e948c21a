"""A folder in which every kind of file stands, and commands that read them: for tests that change
these files, and want an end in one line.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

import cache_teacher.cli
import train_student.cli
from kdcache.command import A_BUG
from kdcache.models.fit import FittedTeacher
from kdcache.training.run_folder import METRICS, RESULT
from tests.support import quick

KINDS = {"cache_teacher": cache_teacher.cli.main, "train_student": train_student.cli.main}
LOOKING = ("info cache", "info cache --json", "verify cache", "view cache --out page.html")


def make_world(quick_data: Path, root: Path) -> Path:
    """A cache, also packed, with its data set; a finished and a half run; a fit that was stopped;
    two photographs. `given.yaml` has the settings of all, with relative paths.
    """
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        shutil.copytree(quick_data, "data")
        quick.build_quick(Path("data"), Path("cache"))
        given = quick.quick_given(Path("data"), Path("cache"))
        given["fit"] = {"epochs": 2, "batch_size": 2, "out": "fit/t.pth"}
        given["teacher"] |= {"weights": "fit/t.pth"}
        given["run"] = {"track": "none", "baseline": False}
        given["train"] |= {"epochs": 2}
        Path("grid.yaml").write_text("loss.beta: [0, 1]\ntrain.lr: [1e-3, 1e-4]\n")
        Path("given.yaml").write_text(yaml.safe_dump(given))
        assert KINDS["train_student"](["--config", "given.yaml", "--run.dir", "run/kd"]) == 0
        shutil.copytree("run", "half")
        Path("half/kd", RESULT).unlink()
        photo = next(Path("data").rglob("JPEGImages/*.jpg"))
        shutil.copy(photo, "photo.jpg")
        with Image.open(photo) as image:
            image.save("photo.png")
        patch.setattr("kdcache.models.fit.STATE_EVERY_S", 0.0)
        fitted = FittedTeacher(Path("fit/t.pth"), 0.0, 1, 2)
        patch.setattr("kdcache.models.fit._finish", lambda fitting: fitted)  # its state stays
        assert KINDS["cache_teacher"](["fit", "--config", "given.yaml"]) == 0
        assert KINDS["cache_teacher"](["export", "cache", "packed.h5"]) == 0
    return root


def run_words(command: str) -> tuple[str, list[str]]:
    """The program and the words of a command, some of which have a short name here."""
    settings = ["--config", "given.yaml"]
    short = {
        "train": ("train_student", [*settings, "--run.dir", "new", "--train.epochs", "1"]),
        "resume": ("train_student", [*settings, "--run.dir", "run/kd", "--run.resume"]),
        "go on": ("train_student", [*settings, "--run.dir", "half/kd", "--run.resume"]),
        "build": ("cache_teacher", settings),
        "grid": ("train_student", [*settings, "--grid", "grid.yaml", "--dry-run"]),
        "fit": ("cache_teacher", ["fit", *settings]),
    }
    if command in short:
        return short[command]
    words = command.split()
    of_student = words[0] in ("compare", "report", "predict")
    return "train_student" if of_student else "cache_teacher", words


def check_command(command: str, capsys: pytest.CaptureFixture) -> int:
    """Run it: it ends well, or in one line of a known error; returns the code."""
    program, words = run_words(command)
    code = KINDS[program](words)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith(program)]
    assert A_BUG not in err and "Traceback" not in err, err
    assert len(lines) == (0 if code == 0 else 1) or words[0] == "verify", err
    assert all(letter.isprintable() or letter == "\n" for letter in out + err)
    pages = [page.read_text() for page in Path.cwd().rglob("*.html")]
    assert not [page for page in pages if "<b onclick" in page]
    return code


def to_json(document: object) -> str:
    """With NaN, and infinity as a number that is too large."""
    return json.dumps(document, indent=1).replace("Infinity", "1e999")


def seal(document: dict) -> bytes:
    """Any JSON as docs/format.md wants it: its own sha256 as the last field."""
    text = to_json({name: value for name, value in document.items() if name != "sha256"})
    head = text.rstrip().removesuffix("}").rstrip().encode() + b',\n "sha256": "'
    tail = b'"\n}\n'
    return head + hashlib.sha256(head + b"0" * 64 + tail).hexdigest().encode() + tail


def seal_text(text: bytes) -> bytes:
    """Any bytes of a document, without its seal or with another one, sealed anew."""
    head, _, _ = text.rpartition(b'"sha256"')
    head = (head or text.rstrip().removesuffix(b"}")).rstrip().removesuffix(b",").rstrip()
    head, tail = head + b',\n "sha256": "', b'"\n}\n'
    return head + hashlib.sha256(head + b"0" * 64 + tail).hexdigest().encode() + tail


def seal_metrics(run: Path) -> None:
    """Let the result say that metrics.jsonl is what it is now."""
    found = hashlib.sha256((run / METRICS).read_bytes()).hexdigest()
    result = json.loads((run / RESULT).read_bytes())
    (run / RESULT).write_bytes(seal(result | {"sealed": {METRICS: found}}))
