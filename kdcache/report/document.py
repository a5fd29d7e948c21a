"""An HTML page that needs nothing else: no script, no network, and a policy that says so."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from kdcache.report.style import CSS

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def make_document(title: str, parts: Iterable[str], *, css: str = "") -> str:
    """The page. Args: title: plain text. parts: HTML. css: beside the style sheet of all pages."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - kdcache</title>\n<style>{CSS}{css}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )
