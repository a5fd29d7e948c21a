"""An HTML page that needs nothing else: no network, no script but its own, and a policy that says so."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape

from kdcache.report.style import CSS

POLICY = "default-src 'none'; img-src {images}; style-src 'unsafe-inline'"
BESIDE = "'self' file:"  # pictures in files beside the page


def make_document(
    title: str, parts: Iterable[str], *, css: str = "", script: str = "", images: str = "data:"
) -> str:
    """The page.

    Args: title: plain text. parts: HTML. css: beside the style sheet of all pages.
    script: run at the end, the only one that the policy lets run. images: where the policy lets pictures come from.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(images=images)}{_allow(script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - kdcache</title>\n<style>{CSS}{css}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n</main>{_embed(script)}</body></html>\n"
    )


def _allow(script: str) -> str:
    """What the policy says of a script: its hash, so that no other runs, whatever a name may hold."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'" if script else ""


def _embed(script: str) -> str:
    return f"<script>{script}</script>" if script else ""
