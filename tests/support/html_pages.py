"""Pages read as a browser would: what they say, what they link to, which pictures they show."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from kdcache.report.template import build_environment

VOID_TAGS = {"meta", "img", "br", "input"}


@dataclass
class Page(HTMLParser):
    """A parsed page: its tags must nest, its pictures are decoded.

    text: visible; pieces are parted by a space, though none may be seen between inline tags.
    pictures: by alternative text; of a palette PNG its numbers. paths, articles: attributes.
    labels: of drawings. headings: texts of h3.
    """

    text: str = ""
    tags: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    articles: list[dict] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    paths: list[dict] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    photo: str = ""

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attributes):
        self._take(tag, dict(attributes))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._take(tag, dict(attributes))

    def _take(self, tag, attributes):
        self.tags.append(tag)
        addresses = ("src", "href", "xlink:href", "data")
        self.links += [attributes[name] for name in addresses if name in attributes]
        if "--photo" in attributes.get("style", ""):
            self.photo = re.fullmatch(r"--photo:url\((.*)\)", attributes["style"])[1]
        if tag == "img":
            self.pictures[attributes["alt"]] = decode(attributes["src"])
        elif "aria-label" in attributes:
            self.labels.append(attributes["aria-label"])
            if attributes.get("class") == "photo":
                self.pictures[attributes["aria-label"]] = decode(self.photo)
        if tag == "path":
            self.paths.append(attributes)
        if tag == "article":
            facts = {name.removeprefix("data-"): value for name, value in attributes.items()}
            self.articles.append(facts)

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.text = " ".join([*self.text.split(), *data.split()])
        if self.open[-1:] == ["h3"] and data.strip():
            self.headings.append(data.strip())


def parse(path: Path) -> Page:
    """The page of a file."""
    return parse_text(path.read_text(encoding="utf-8"))


def parse_text(html: str) -> Page:
    """The page, or a part of one."""
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def render(macro: str, *views: object, template: str = "run_sections.html.j2") -> str:
    """A part of a page alone, as HTML."""
    return str(getattr(build_environment().get_template(template).module, macro)(*views))


def decode(uri: str) -> np.ndarray:
    """The pixels of a data URI; of a palette PNG its numbers."""
    head, body = uri.split(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
