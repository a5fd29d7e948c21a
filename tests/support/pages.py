"""Pages read as a browser would: what they say, what they link to, which pictures they show."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

VOID_TAGS = {"meta", "img", "br", "path"}


@dataclass
class Page(HTMLParser):
    """A parsed page: its tags must nest, its pictures are decoded."""

    text: str = ""
    tags: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.links += [
            attributes[name] for name in ("src", "href", "xlink:href", "data") if name in attributes
        ]
        if tag == "img":
            self.pictures[attributes["alt"]] = decode(attributes["src"])
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text = " ".join([*self.text.split(), *data.split()])


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


def decode(uri: str) -> np.ndarray:
    """The pixels of a data URI; of a palette PNG its numbers."""
    head, body = uri.split(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
