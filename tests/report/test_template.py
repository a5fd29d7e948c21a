"""Pages from templates escape everything they show; a name that is missing is an error."""

from __future__ import annotations

import re

import pytest
from jinja2 import UndefinedError

from kdcache.report.template import TEMPLATES, build_environment, read_asset, render_page, shorten
from tests.support.html_pages import parse_text

NAMES = sorted(path.name for path in TEMPLATES.glob("*.j2"))
HOSTILE = "</title><script>alert('1')</script>\" onload=\"x"


def render(**view: object) -> str:
    facts = {"epoch": 3, "miou": 0.5, "pictures": []}
    return render_page("predictions.html.j2", **{"title": "a page", **facts, **view})


def test_a_hostile_name_stays_text():
    picture = {"path": HOSTILE, "name": HOSTILE, "width": 9, "height": 9, "is_coarse": True}
    picture |= {"files": {}, "shares": [{"number": 1, "name": HOSTILE, "percent": "100.0"}]}
    html = render(title=HOSTILE, pictures=[picture])
    page = parse_text(html)
    assert page.text.count(HOSTILE) == 4 and "script" not in page.tags and 'onload="' not in html


def test_a_view_that_lacks_a_name_is_an_error():
    with pytest.raises(UndefinedError, match="'epoch' is undefined"):
        render_page("predictions.html.j2", title="a page", miou=0.5, pictures=[])


@pytest.mark.parametrize("name", NAMES)
def test_no_template_leaves_anything_unescaped(name):
    source = read_asset(name)
    assert not re.search(r"\|\s*safe|autoescape|Markup", source)
    assert build_environment().get_template(name)


def test_only_the_pages_own_script_may_run():
    assert "script" not in parse_text(render()).tags and "script-src" not in render()
    html = render(script="gallery.js")
    assert html.count("<script>") == 1 and "script-src 'sha256-" in html
    assert read_asset("gallery.js") in html


def test_pictures_may_come_from_where_the_page_says():
    assert "img-src data:;" in render() and "img-src 'self' file:;" in render(images="'self' file:")


def test_long_names_are_cut():
    assert shorten("x" * 60) == "x" * 60 and shorten("x" * 61) == "x" * 59 + "\u2026"


def test_no_code_makes_html_of_its_own():
    """Only `template.py` marks text as safe: styles and scripts of ours. Tables of notebooks, in
    rooms below the templates, are written in `progress.py`, which escapes each cell.
    """
    library = TEMPLATES.parents[1]
    marks = re.compile(r"Markup|markupsafe|f[\"']</?[a-z]")
    files = [path for path in library.rglob("*.py") if marks.search(path.read_text("utf-8"))]
    assert sorted(path.name for path in files) == ["progress.py", "template.py"]
