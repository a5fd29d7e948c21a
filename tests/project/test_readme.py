"""What README and configs say works: commands parse (`make readme` runs them), Python runs, named
files exist.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from kdcache.config.options import Parser, read_given
from kdcache.config.parser import make_config, merge
from kdcache.config.typed import read_settings
from kdcache.training.distill import distill
from tests import readme
from tests.support.commands import read_grid_command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
    if line.startswith("python -m") and not line.startswith("python -m pytest")
]


class Parsed(BaseException):
    """A command line was understood."""


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_parse(command, tmp_path, monkeypatch):
    """Each by the parser of its own command; settings are in range, at each point of a grid."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    module, *argv = shlex.split(command)[2:]
    assert (ROOT / module / "__main__.py").is_file()
    parse = Parser.parse_args

    def parse_only(parser: Parser, words: list[str]) -> None:
        args = parse(parser, words)
        if parser.settings:
            make_config(read_given(args))
        raise Parsed

    if "--grid" in argv:
        grid, configs = read_grid_command(argv)
        assert len(configs) == len(grid.points())
        return
    monkeypatch.setattr(Parser, "parse_args", parse_only)
    with pytest.raises(Parsed):
        importlib.import_module(f"{module}.cli").main(argv)


def test_readme_has_commands_of_both_programs():
    assert (
        sum("cache_teacher" in c for c in COMMANDS) >= 3
        and sum("train_student" in c for c in COMMANDS) >= 3
    )


def test_readme_python_runs(built_root, tmp_path, monkeypatch):
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "demo").symlink_to(built_root)
    monkeypatch.chdir(tmp_path)
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert len(blocks) > 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_readme_student_of_ones_own_is_one(built_root, given, tmp_path, monkeypatch):
    (block,) = [
        block for kind, block in BLOCKS if kind == "python" and block.startswith("# my_student.py")
    ]
    (tmp_path / "my_student.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    own = {
        "student": {"arch": "my_student:tiny", "options": {"width": 48}},
        "cache": {"levels": ["low", "mid"]},
    }
    result = distill(
        merge(given, merge(own, {"run": {"baseline": False}})), root=built_root
    ).student
    assert result["epochs"] == 2 and result["hyperparameters"]["student.options"] == {"width": 48}


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_command_of_the_readme_runs():
    assert readme.main() == 0


def test_commands_that_are_not_run_have_a_reason_and_the_others_are_run():
    commands = [c for kind, block in BLOCKS if kind == "bash" for c in readme.list_commands(block)]
    left = [command for command in commands if readme.find_reason(command)]
    assert len(commands) > 30 and len(left) < 12
    for words in readme.NOT_RUN:
        assert any(readme.find_reason(c) == readme.NOT_RUN[words] for c in left), words


def test_readme_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", README):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_configs_are_valid(path):
    assert make_config(read_settings(path)).dataset.num_classes > 1


def test_the_worked_example_of_the_format_runs():
    text = (ROOT / "kdcache/cache/FORMAT.md").read_text(encoding="utf-8")
    (example,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "import numpy" in block
    ]
    exec(compile(example, "FORMAT.md", "exec"), {})
