"""What README, docs/ and configs say works: commands parse (`make readme` runs them), Python runs,
named files exist.
"""

import importlib
import re
import shlex

import pytest
import yaml

from cache_teacher import cli as cache_teacher
from kdcache.config.options import Parser, read_given
from kdcache.config.parser import check_values, make_config, merge, read_settings, unflatten
from kdcache.training.distill import distill
from tests import readme
from tests.support.commands import read_grid_command
from tests.support.pages import GUIDES, PAGES, ROOT, list_all_commands, list_blocks, read

ALL_COMMANDS = [command for page in GUIDES for command in list_all_commands(read(page))]
PROGRAMS = ("python -m cache_teacher", "python -m train_student")
COMMANDS = sorted({command for command in ALL_COMMANDS if command.startswith(PROGRAMS)})
PYTHON = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in GUIDES
    for number, (kind, block) in enumerate(list_blocks(read(page)))
    if kind == "python"
]


class Parsed(BaseException):
    """A command line was understood."""


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_pages_parse(command, tmp_path, monkeypatch):
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
    commands = list_all_commands(read(ROOT / "README.md"))
    assert sum("cache_teacher" in c for c in commands) >= 3
    assert sum("train_student" in c for c in commands) >= 3


@pytest.mark.parametrize("block", PYTHON)
def test_python_of_the_pages_runs(block, built_root, tmp_path, monkeypatch):
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "demo").symlink_to(built_root)
    monkeypatch.chdir(tmp_path)
    if "student.onnx" in block:
        pytest.skip("needs a run that was exported; `make readme` has one")
    if "# needs runs/demo" in block:
        pytest.skip("needs the demo; `make readme` has it, and tests/test_api.py the functions")
    if "demo.h5" in block:
        cache_teacher.main(["export", "caches/demo", "demo.h5"])
    exec(compile(block, "a page", "exec"), {})


def test_student_of_ones_own_is_one(built_root, given, tmp_path, monkeypatch):
    (block,) = [
        param.values[0] for param in PYTHON if param.values[0].startswith("# my_student.py")
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
def test_every_command_of_the_pages_runs():
    assert readme.main() == 0


def test_commands_that_are_not_run_have_a_reason_and_the_others_are_run():
    left = [command for command in ALL_COMMANDS if readme.find_reason(command)]
    assert len(ALL_COMMANDS) > 50 and len(left) < 20
    for words in readme.NOT_RUN:
        assert any(readme.find_reason(c) == readme.NOT_RUN[words] for c in left), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_of_the_pages_exist(page):
    makefile = read(ROOT / "Makefile")
    commands = [c for c in list_all_commands(read(page)) if c.startswith("make ")]
    named = re.findall(r"`make ([\w-]+)", read(page)) + [c.split()[1] for c in commands]
    for target in named:
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_settings_of_the_pages_are_valid(page):
    blocks = [yaml.safe_load(block) for kind, block in list_blocks(read(page)) if kind == "yaml"]
    for settings in blocks:
        if all(isinstance(section, dict) for section in settings.values()):
            make_config(unflatten(check_values(settings)))
        else:  # of a grid
            assert all(isinstance(values, list) for values in settings.values())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_configs_are_valid(path):
    assert make_config(read_settings(path)).dataset.num_classes > 1
