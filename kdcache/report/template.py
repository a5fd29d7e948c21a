"""HTML pages from the templates beside this file: each is one file that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.data.pictures import voc_palette

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
BESIDE = "'self' file:"  # pictures in files beside the page
LONGEST_NAME = 60  # characters: five lines of a column on a telephone
_POLICY = "default-src 'none'; img-src {images}; style-src 'unsafe-inline'{scripts}"


def render_page(
    template: str,
    *,
    title: str,
    styles: Sequence[str] = (),
    script: str | None = None,
    images: str = "data:",
    **view: object,
) -> str:
    """Fill a template, which escapes every text it is given.

    Args:
        template: its file name. title: of the page.
        styles, script: files beside the template; `pages.css` is always in the page.
        images: where the page's policy lets pictures come from.
        view: what the template shows: texts, numbers, lists and dicts of them.

    Returns: the page. Its policy lets no script run but `script`, whatever a name may hold.
    """
    from markupsafe import Markup

    code = read_asset(script) if script else ""
    return build_environment().get_template(template).render(
        title=title,
        policy=Markup(_POLICY.format(images=images, scripts=_allow(code))),
        css=Markup("".join(map(read_asset, ("pages.css", *styles)))),
        script=Markup(code),
        **view,
    )  # fmt: skip


@cache
def build_environment() -> Environment:
    """The template engine: it escapes texts, and a name that a view lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"colour": css_colour, "share": format_share, "shorten": shorten}
    return environment


def read_asset(name: str) -> str:
    """A style sheet or script from beside the templates."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def css_colour(class_number: int) -> str:
    """#rrggbb of a class, in VOC's colours."""
    return "#" + voc_palette()[class_number].tobytes().hex()


def format_share(value: float | None) -> str:
    """A number from 0 to 1 with four digits, as in the terminal; "-" for None."""
    return "-" if value is None else f"{value:.4f}"


def shorten(name: str) -> str:
    """The name, cut if it is longer than LONGEST_NAME."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\u2026"


def _allow(script: str) -> str:
    """The part of the policy that lets a script run: its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'" if script else ""
