"""The site of the pages: every page is on it, and its links lead to pages of the site. `make docs`
makes it; mkdocs is no part of what the tests need.
"""

from __future__ import annotations

import pytest
import yaml

from tests import site
from tests.support.pages import GUIDES, ROOT, list_anchors, list_links, read

ON_SITE = {page.name: page for page in GUIDES if page.parent != ROOT}
ON_SITE |= {page: ROOT / name for name, page in site.AT_ROOT.items()}


def test_every_page_stands_in_the_navigation_once():
    settings = yaml.safe_load(read(ROOT / "mkdocs.yml"))
    assert sorted(settings["nav"]) == sorted(ON_SITE)
    assert settings["nav"][0] == "index.md" and settings["site_dir"] == "build/site"


@pytest.mark.parametrize("name", sorted(ON_SITE))
def test_links_of_the_site_lead_to_its_pages(name):
    text = site.change_links(read(ON_SITE[name]))
    for link in list_links(text):
        page, _, anchor = link.partition("#")
        if page.endswith((".svg", ".ipynb")):
            assert (ROOT / "docs" / page).is_file()
            continue
        target = ON_SITE[page or name]
        assert not anchor or anchor in list_anchors(read(target)), link


def test_links_are_changed_and_code_is_not():
    text = "[a](docs/data.md#x) [b](../README.md) [c](#here) [d](https://e.org/docs/f.md)\n"
    code = "```bash\n[a](docs/data.md)\n```\n"
    changed = "[a](data.md#x) [b](index.md) [c](#here) [d](https://e.org/docs/f.md)\n"
    assert site.change_links(text + code + text) == changed + code + changed
