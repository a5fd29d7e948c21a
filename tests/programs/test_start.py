"""How soon a command begins: what needs no tensors does not wait for torch, and takes little
memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cache_teacher.cli
import train_student.cli

HEAVY = (
    "torch",
    "torchvision",
    "boto3",
    "botocore",
    "obstore",
    "ray",
    "onnx",
    "h5py",
    "zarr",
    "jinja2",
    "jsonargparse",
)
MOST_MB = 150

# Each command runs in a fork of a process that has imported nothing, which is as good as a new
# process and quicker.
CHILD = """
import json, os, sys
program, commands, heavy = sys.argv[1], *map(json.loads, sys.argv[2:])
for argv in commands:
    if os.fork() == 0:
        import contextlib, importlib, io, resource
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                code = importlib.import_module(f"{program}.cli").main(argv)
            except SystemExit as stopped:
                code = stopped.code
        found = [name for name in heavy if name in sys.modules]
        size_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([argv, code, found, size_mb]), flush=True)
        os._exit(0)
    os.wait()
"""


def start(program: str, commands: list[list[str]]) -> list[tuple[list[str], int, list[str], float]]:
    """Each command's words, exit code, heavy modules that it has imported, peak memory in MB."""
    words = [sys.executable, "-c", CHILD, program, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands), done.stderr
    return found


def check(program: str, expected_code: int, *commands: list[str]) -> None:
    for argv, code, heavy, size_mb in start(program, list(commands)):
        assert (code, heavy) == (expected_code, []), (program, argv)
        assert size_mb < MOST_MB, (program, argv)


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


def test_help_of_each_command_comes_at_once():
    for program in (cache_teacher, train_student):
        commands = program.cli.COMMANDS
        assert len(commands) >= 4
        words = ([command, "--help"] for command in commands)
        check(program.__name__, 0, ["--help"], *words)


def test_mistyped_commands_and_wrong_settings_are_refused_at_once():
    wrong = (["ifno"], ["--loss.bta", "1"], ["--train.epochs", "0"], ["--train.epochs", "many"])
    check("cache_teacher", 2, *wrong, ["plan", "--loss.bta", "1"], ["info"], ["verify", "--dta"])
    check("train_student", 2, *wrong, ["--grid", "loss.bta"], ["report"], ["export", "x", "--to"])


def test_looking_at_a_cache_does_not_wait_for_torch(cache):
    path = str(cache.cache.path)
    looks = (["info", path], ["info", path, "--json"], ["verify", path], ["verify", path, "--data"])
    check("cache_teacher", 0, *looks, ["gc", path, "--dry-run"])


def test_the_library_offers_its_names_without_importing_them_before_they_are_used():
    names = (
        "import sys, kdcache; assert 'open_cache' in dir(kdcache); print('torch' in sys.modules)"
    )
    used = "import sys, kdcache; kdcache.compute_miou; print('torch' in sys.modules)"
    for words, expected in ((names, "False"), (used, "True")):
        done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_every_public_name_is_found_where_it_says():
    import kdcache

    assert [name for name in kdcache.__all__ if not hasattr(kdcache, name)] == []
    with pytest.raises(AttributeError, match="has no attribute 'open_cahce'"):
        kdcache.open_cahce  # noqa: B018
    assert Path(kdcache.__file__).name == "__init__.py"
