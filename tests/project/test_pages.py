"""The pages of the library: shipped with it, and what they name is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from kdcache.config import LEVELS, config_to_dict
from kdcache.config.parser import flatten, make_config
from tests.support.commands import read_grid_command

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "kdcache").rglob("*.md"))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_every_page_is_shipped():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))
    shipped = project["tool"]["setuptools"]["package-data"]["kdcache"]
    room = ROOT / "kdcache"
    templates = [path for path in (room / "report/templates").iterdir() if path.is_file()]
    needed = {str(path.relative_to(room)) for path in PAGES} | {"report/templates/*"}
    assert set(shipped) == needed and {path.suffix for path in templates} == {".css", ".j2", ".js"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    for name in re.findall(
        r"(?<![\w/])(?:kdcache|tests|configs|train_student|cache_teacher)/[\w/]+(?:\.\w+)?",
        read(page),
    ):
        assert "NAME" in name or (ROOT / name).exists(), name
    documents = {path.name: path for path in (*PAGES, ROOT / "README.md", ROOT / "BENCHMARKS.md")}
    for document, heading in re.findall(
        r"\b(README|BENCHMARKS\.md|FORMAT\.md), \"([^\"]+)\"", read(page)
    ):
        name = document if "." in document else f"{document}.md"
        assert re.search(rf"^#+ {re.escape(heading)}", read(documents[name]), re.MULTILINE), (
            f"{document}: {heading}"
        )


TUNING = read(ROOT / "kdcache/training/TUNING.md")
GRIDS = re.findall(r"^python -m train_student (--config .*)$", TUNING, re.MULTILINE)


@pytest.mark.parametrize("command", GRIDS)
def test_commands_of_the_tuning_guide_are_grids_with_seeds(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid, configs = read_grid_command(shlex.split(command))
    assert len(grid.seeds) >= 3 and len(configs) == len(grid.points())


def test_the_guide_compares_what_it_trained_and_chooses_and_reports_by_different_seeds():
    seeds: dict[str, set[int]] = {}
    for folder, numbers in re.findall(r"--run\.dir (\S+) .*--seeds (\S+)", TUNING):
        seeds.setdefault(folder, set()).update(map(int, numbers.split(",")))
    assert sorted(re.findall(r"train_student compare (\S+)", TUNING)) == sorted(seeds)
    assert len(seeds) == 2 and not set.intersection(*seeds.values())


def test_defaults_of_the_guide_are_those_of_the_settings():
    config, found = flatten(config_to_dict(make_config({}))), {}
    for names, default in re.findall(r"^\| (`[^|]*`) \(([\w.]+)\)", TUNING, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"`([\w.]+)`", names), default)
    assert len(found) > 9
    for name, default in found.items():
        said = {"all": list(LEVELS), "off": None}.get(default, default)
        assert said == config[name] or float(said or 0) == (config[name] or 0), name


def test_intervals_of_the_guide_are_students_t():
    """Quantiles of t at 97.5 % with 2, 4 and 7 degrees of freedom, from any table."""
    said = {
        int(n): float(half)
        for n, half in re.findall(r"(\d)(?: seeds know the mean)? to ±(\d\.\d)", TUNING)
    }
    assert said == {
        n: pytest.approx(t * 2.4 / n**0.5, abs=0.05)
        for n, t in ((3, 4.303), (5, 2.776), (8, 2.365))
    }


def test_every_room_of_the_library_stands_in_contributing():
    rooms = {path.parent.name for path in (ROOT / "kdcache").glob("*/__init__.py")}
    table = "\n".join(re.findall(r"^\| (`.*?) \|", read(ROOT / "CONTRIBUTING.md"), re.MULTILINE))
    assert set(re.findall(r"`(\w+)/`", table)) == rooms


def test_citation_is_of_this_version_and_has_what_the_format_asks_for():
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    for name in ("version", "license", "keywords"):
        assert citation[name] == project[name], name
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
