"""What README and configs say works: commands parse, Python runs, named files exist."""

import re
import shlex
from pathlib import Path

import pytest

from cache_teacher.options import take_options
from cache_teacher.plan import OPTIONS
from kdcache.settings import build_parser, make_config, read_given

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
    if line.startswith("python -m") and not line.startswith("python -m pytest")
]
NOT_SETTINGS = {"export", "import", "info", "verify", "repair", "gc", "fidelity", "sample-set"}


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    module, *argv = shlex.split(command)[2:]
    assert (ROOT / module / "__main__.py").is_file()
    if argv and argv[0] in NOT_SETTINGS:
        return
    words = argv[1:] if argv[:1] == ["fit"] else take_options(argv[1:], OPTIONS)[1] if argv[:1] == ["plan"] else argv
    make_config(read_given(build_parser(prog="x", description=""), words))


def test_readme_has_commands_of_both_programs():
    assert sum("cache_teacher" in c for c in COMMANDS) >= 3 and sum("train_student" in c for c in COMMANDS) >= 3


def test_readme_python_runs():
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_readme_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", README):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_configs_are_valid(path):
    given = read_given(build_parser(prog="x", description=""), ["--config", str(path)])
    assert make_config(given).dataset.num_classes > 1


def test_the_worked_example_of_the_format_runs():
    text = (ROOT / "kdcache/cache/FORMAT.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import numpy" in block]
    exec(compile(example, "FORMAT.md", "exec"), {})
