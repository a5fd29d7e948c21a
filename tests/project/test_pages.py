"""The pages: what they name and link to is there, and the guide's figures are right."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from kdcache.config import LEVELS, config_to_dict
from kdcache.config.parser import flatten, make_config
from tests.site import AT_ROOT
from tests.support.commands import read_grid_command
from tests.support.pages import PAGES, ROOT, list_anchors, list_links, read

MADE = {"study.md", *AT_ROOT.values()}  # by a command, or for the site


def test_templates_are_shipped_and_pages_stand_in_docs():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))
    shipped = project["tool"]["setuptools"]["package-data"]["kdcache"]
    templates = [p for p in (ROOT / "kdcache/report/templates").iterdir() if p.is_file()]
    assert shipped == ["py.typed", "report/templates/*"] and not list(
        (ROOT / "kdcache").rglob("*.md")
    )
    assert {path.suffix for path in templates} == {".css", ".j2", ".js"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in list_links(read(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not anchor or anchor in list_anchors(read(target)), link


def test_readme_links_to_every_page():
    linked = {link.partition("#")[0] for link in list_links(read(ROOT / "README.md"))}
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert pages - linked == {"README.md"}


def test_no_heading_of_a_page_stands_twice():
    for page in PAGES:
        anchors = list_anchors(read(page))
        assert len(set(anchors)) == len(anchors), page.name


def test_pages_named_in_code_and_text_are_there():
    """`docs/format.md` and `docs/format.md, "Views"`: the file, and a heading that begins so."""
    for path in list_texts():
        for name in re.findall(r"(?<![\w/.*])((?:docs/)?\w+\.md)\b", read(path)):
            known = [ROOT / name, path.parent / name, ROOT / "docs" / name]
            assert name in MADE or any(file.is_file() for file in known), f"{path}: {name}"
        for name, heading in re.findall(r"((?:docs/)?\w+\.md), \"([^\"]+)\"", read(path)):
            pattern = rf"^#+ {re.escape(heading)}"
            assert re.search(pattern, read(ROOT / name), re.MULTILINE), f"{path}: {heading}"


def list_texts() -> list[Path]:
    """The files of code, settings and text that name pages of today."""
    folders = ("kdcache", "cache_teacher", "train_student", "tests", "docs", "configs")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    found += [*PAGES, ROOT / "pyproject.toml"]
    kinds = {".py", ".md", ".yaml", ".toml", ".j2"}
    return [p for p in found if p.suffix in kinds and p.is_file() and p != Path(__file__)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    for name in re.findall(
        r"(?<![\w/])(?:kdcache|tests|configs|train_student|cache_teacher)/[\w/]+(?:\.\w+)?",
        read(page),
    ):
        assert "NAME" in name or (ROOT / name).exists(), name


TRAINING = read(ROOT / "docs/training.md")
TUNING = re.split(r"(?m)^## ", TRAINING[TRAINING.index("\n## Choosing the settings") + 4 :])[0]
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
        for n, half in re.findall(r"(\d)(?: seeds know the mean)?\s+to ±(\d\.\d)", TUNING)
    }
    assert said == {
        n: pytest.approx(t * 2.4 / n**0.5, abs=0.05)
        for n, t in ((3, 4.303), (5, 2.776), (8, 2.365))
    }


def test_every_room_of_the_library_stands_in_contributing():
    rooms = {path.parent.name for path in (ROOT / "kdcache").glob("*/__init__.py")}
    table = "\n".join(re.findall(r"^\| (`.*?) \|", read(ROOT / "CONTRIBUTING.md"), re.MULTILINE))
    assert set(re.findall(r"`(\w+)/`", table)) == rooms


def test_what_contributing_names_is_there():
    """Every path, from the root or from `kdcache/`, and every name in "Where do I change"."""
    text = read(ROOT / "CONTRIBUTING.md")
    words = {word for code in re.findall("`([^`\n]+)`", text) for word in code.split()}
    paths = {word for word in words if re.fullmatch(r"\w[\w.]*/[\w./]*", word)}
    made = {"tests/examples/NAME.py"}
    places = {path: [ROOT / path, ROOT / "kdcache" / path] for path in paths - made}
    assert len(paths) > 40
    assert not [path for path, tried in places.items() if not any(p.exists() for p in tried)]
    table = text.partition("## Where do I change")[2].partition("\n## ")[0]
    folders = ("kdcache", "cache_teacher", "train_student", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    known = set(re.findall(r"\w+", " ".join(map(read, [*files, ROOT / "mkdocs.yml"]))))
    names = set(re.findall(r"`(\w+)`", table))
    assert len(names) > 15 and names <= known, names - known


def test_citation_is_of_this_version_and_has_what_the_format_asks_for():
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    for name in ("version", "license", "keywords"):
        assert citation[name] == project[name], name
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_changelog_has_each_version_once():
    """Merging had put the lines of before behind the new ones."""
    heads = re.findall(r"^## .*", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert [head.split(",")[0] for head in heads] == ["## 0.2.0", "## 0.1.0"]
