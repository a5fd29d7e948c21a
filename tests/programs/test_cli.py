"""The command lines: exit codes, one line on stderr, nothing else. Run in this process, without
starting Python anew.
"""

import ast
import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import cache_teacher.cli
import train_student.cli
from kdcache.command import A_BUG, run_command
from kdcache.errors import SettingsError
from kdcache.progress import Console, join_lines, print_text
from tests.architecture import PACKAGES

PROGRAMS = {"cache_teacher": cache_teacher.cli.main, "train_student": train_student.cli.main}


def fails(capsys, program: str, *argv: str) -> tuple[int, str]:
    """Exit code and the one line of an error."""
    code = PROGRAMS[program](list(argv))
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "samples/s" not in line and not line.startswith("warning")
    ]
    assert len(lines) == 1 and lines[0].startswith(program), lines
    return code, lines[0]


@pytest.fixture
def config_file(given, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(given))
    return str(path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_settings_end_with_code_2(capsys, program, config_file, cache):
    cases = {
        "--loss.bta 1": "loss.bta is unknown, expected loss.beta",
        "--train.epochs 0": "train.epochs is 0, expected 1 to",
        "--dataset.size 50": "dataset.size is 50, expected multiples of 16",
        "--teacher.precision float64": "teacher.precision is 'float64'",
    }
    for argv, message in cases.items():
        code, line = fails(capsys, program, "--config", config_file, *argv.split())
        assert code == 2 and message in line


COMMANDS = [
    *(
        ("cache_teacher", [*words])
        for words in [(), *((name,) for name in cache_teacher.cli.COMMANDS)]
    ),
    *(
        ("train_student", [*words])
        for words in [(), *((name,) for name in train_student.cli.COMMANDS)]
    ),
]


@pytest.mark.parametrize(("program", "words"), COMMANDS)
def test_help_of_every_command_fits_100_columns_and_ends_with_an_example(capsys, program, words):
    with pytest.raises(SystemExit) as stopped:
        PROGRAMS[program]([*words, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and max(map(len, text.splitlines())) <= 100
    example = " ".join(text.rstrip().rsplit("\n\n", 1)[1].split())
    assert example.startswith(f"for example: python -m {' '.join([program, *words])} ")


@pytest.mark.parametrize(
    ("program", "argv", "words"),
    [
        ("cache_teacher", "fidelity x --run", "--run has no value, expected RUN"),
        ("cache_teacher", "fidelity x --run --json", "--run has no value, expected RUN"),
        ("cache_teacher", "fidelity x --samples 0", "--samples is '0', expected a whole number, 1"),
        ("cache_teacher", "fidelity --json", "PATH is missing"),
        ("cache_teacher", "repair --dryrun x", "--dryrun is unknown, expected --dry-run"),
        ("cache_teacher", "repair x y", "'y' is no setting, expected --SECTION.NAME VALUE"),
        ("cache_teacher", "verify --dta", "--dta is unknown, expected --data"),
        ("cache_teacher", "verify x y", "'y' is one word too many"),
        ("cache_teacher", "plan --workers 1 --workers 2", "--workers is given twice"),
        ("cache_teacher", "--engine rey", "--engine is 'rey', expected processes or ray"),
        ("cache_teacher", "info s3:/b/k", "cache.path is 's3:/b/k', expected s3://BUCKET/KEY"),
        ("train_student", "--loss.beta 1 --loss.beta 2", "--loss.beta is given twice"),
        (
            "train_student",
            "--loss.beta 1 --grid loss.beta=1,2",
            "--loss.beta is given beside --grid",
        ),
        ("train_student", "--train.seed 1 --seeds 1,2", "--train.seed is given beside a grid"),
        ("train_student", "export x --to", "--to has no value, expected onnx or safetensors or"),
        ("train_student", "report", "RUN is missing"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_says_what_is_expected(capsys, program, argv, words):
    code, line = fails(capsys, program, *argv.split())
    assert code == 2 and words in line, line


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_explains_every_setting(capsys, program):
    with pytest.raises(SystemExit) as stopped:
        PROGRAMS[program](["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert (
        "--loss.temperature" in text
        and "default: 4.0" in text
        and "samples per shard" in text.lower()
    )


def test_a_missing_data_set_ends_with_code_1_and_the_cure(capsys, config_file, tmp_path):
    code, line = fails(
        capsys, "cache_teacher", "--config", config_file, "--dataset.root", str(tmp_path / "no")
    )
    assert (
        code == 1
        and "set dataset.root" in line
        and "`make demo` needs no data" in line
        and "VOCtrainval" not in line
    )


@pytest.mark.parametrize(
    ("word", "cure"), [("ifno", "write info"), ("zzz", "`python -m cache_teacher --help`")]
)
def test_a_mistyped_command_ends_with_code_2_and_the_nearest_one(capsys, word, cure):
    code, line = fails(capsys, "cache_teacher", word, "caches/demo")
    commands = "plan, info, view, verify, repair, gc, export, import, fidelity, fit, sample-set"
    assert code == 2
    assert f"command is '{word}', expected {commands}" in line and cure in line


def test_a_mistyped_command_of_phase_two_too(capsys):
    code, line = fails(capsys, "train_student", "comapre", "runs/demo")
    assert (
        code == 2
        and "command is 'comapre', expected report, compare, export, predict" in line
        and "write compare" in line
    )


def test_a_missing_teacher_ends_with_code_1_and_the_cure(capsys, config_file):
    code, line = fails(
        capsys, "cache_teacher", "--config", config_file, "--teacher.weights", "absent.pth"
    )
    assert code == 1 and "absent.pth: teacher.weights is missing" in line


def test_float16_on_a_cpu_ends_with_code_2(capsys, config_file):
    code, line = fails(
        capsys, "cache_teacher", "--config", config_file, "--teacher.precision", "float16"
    )
    assert code == 2 and "expected one of float32, bfloat16 on cpu" in line


def test_training_without_a_cache_ends_with_code_1_and_the_cure(capsys, config_file):
    code, line = fails(capsys, "train_student", "--config", config_file)
    assert code == 1 and "build one with `python -m cache_teacher`" in line


def test_info_tells_identity_and_completeness(capsys, cache):
    assert PROGRAMS["cache_teacher"](["info", str(cache.cache.path)]) == 0
    text = capsys.readouterr().out
    assert "train: 10 samples x 2 views, 6/6 shard groups, complete" in text and "256x8x8" in text
    (cache.cache.path / "commits" / "train-v0000-g00001.json").unlink()
    assert PROGRAMS["cache_teacher"](["info", str(cache.cache.path), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert info["groups_committed"] == 5 and info["arrays"]["low"]["bytes"] > 6 * 256 * 64 * 2


def test_info_on_another_folder_ends_with_code_1(capsys, tmp_path):
    assert PROGRAMS["cache_teacher"](["info", str(tmp_path)]) == 1
    assert "manifest.json is missing" in capsys.readouterr().err


def test_interruption_and_a_full_disk_are_one_line(capsys):
    def interrupt():
        raise KeyboardInterrupt

    def fill():
        raise OSError(28, "No space left on device", "runs/a.pth")

    assert run_command("x", interrupt) == 130
    assert run_command("x", fill) == 1
    err = capsys.readouterr().err
    assert "x: interrupted" in err and "x: runs/a.pth: No space left on device; make room" in err


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_interruption_before_anything_has_begun_is_one_line(capsys, monkeypatch, program):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{program}.cli.main", interrupt)
    monkeypatch.delitem(sys.modules, f"{program}.__main__", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(program, run_name="__main__")
    assert (
        stopped.value.code == 130
        and capsys.readouterr().err == f"{program}: interrupted; nothing was begun\n"
    )


def test_progress_is_plain_lines_without_a_terminal(capsys):
    with Console().start("caching", total=4, unit="samples") as bar:
        bar.advance(4, size_bytes=8_000_000)
    line = capsys.readouterr().err
    assert line.startswith("caching: 4/4 samples, ") and "MB/s" in line and "\r" not in line


def test_memory_that_the_cpu_has_not_is_one_line(capsys):
    """torch's allocator for CPUs raises a bare RuntimeError."""

    def work():
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 37748736 bytes"
        )

    assert run_command("train_student", work) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_student: out of memory (") and "train.batch_size" in line


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, RecursionError, ZeroDivisionError])
def test_a_slip_of_ours_is_one_line_that_says_how_to_see_where(capsys, monkeypatch, kind):
    def slip():
        raise kind("a slip\nof ours")

    assert run_command("train_student", slip) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train_student: {kind.__name__}: ") and A_BUG in line
    monkeypatch.setenv("KDCACHE_TRACE", "1")
    assert run_command("train_student", slip) == 1
    *trace, last = capsys.readouterr().err.splitlines()
    assert last == line and any("in slip" in line for line in trace)


def test_a_name_that_the_locale_cannot_write_is_one_line(capsys):
    """Python takes UTF-8 where LC_ALL is C, unless it is kept from that."""
    assert run_command("a program", lambda: "d\u00e4t\u00e4".encode("ascii")) == 1
    line = "a program: 'd\u00e4t\u00e4': letters that this locale cannot write; set PYTHONUTF8=1\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("more", [{}, {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_all_letters_are_read_and_shown_in_a_locale_without_them(built_root, tmp_path, more):
    (tmp_path / "k\u00e4se").symlink_to(built_root)
    command = [sys.executable, "-m", "cache_teacher", "info", "k\u00e4se"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, check=True,
        env=os.environ | {"LC_ALL": "C", "PYTHONPATH": str(Path(__file__).parents[2])} | more,
    )  # fmt: skip
    shown = "k\\udcc3\\udca4se" if more else "k\u00e4se"
    assert done.stdout.decode().startswith(shown) and not done.stderr


CODES = "\x1b[2J\x07\r\n\x9b31m\u202e\u2028end"


def test_no_control_code_reaches_the_terminal(capsys):
    """Whatever it is in: an error, an interruption, a warning, progress, a line of a text."""

    def fail():
        raise SettingsError(f"{CODES}: name")

    def stop():
        raise KeyboardInterrupt(CODES)

    run_command("a", fail)
    run_command("a", stop)
    run_command("a", lambda: logging.getLogger("kdcache").warning("%s", CODES))
    with Console().start(CODES, total=1, unit="samples") as bar:
        bar.advance(1)
    print_text(join_lines([CODES, "second"]))
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and len(err.splitlines()) == 4
    assert all(letter.isprintable() for letter in (out + err).replace("\n", ""))


def test_text_is_printed_in_one_way():
    """`print_line` and `print_text` escape; nothing else prints."""
    root = Path(__file__).parents[2]
    files = [path for name in PACKAGES for path in (root / name).rglob("*.py")]
    calls = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in files
        if path.name not in ("progress.py", "__main__.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert not calls
