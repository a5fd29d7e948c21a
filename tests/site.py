"""What mkdocs calls while it makes the site of mkdocs.yml: `make docs`.

Pages at the root of the project become pages of the site, links between pages are changed to what
they are there, and equations become MathML, which browsers show without a script.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AT_ROOT = {
    "README.md": "index.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
}
"""Page of the project -> page of the site."""


def on_files(files, config):
    """Add the pages that stand at the root of the project."""
    from mkdocs.structure.files import File

    for name, page in AT_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """The text as the site has it."""
    return write_equations(change_links(markdown))


def change_links(text: str) -> str:
    """On the site all pages lie in one folder; blocks of code stay as they are."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _change(part) for part in parts)


def _change(text: str) -> str:
    def replace(found: re.Match) -> str:
        name = re.sub(r"^(\.\./|docs/)", "", found[1])
        return f"]({AT_ROOT.get(name, name)}{found[2] or ''})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", replace, text)


def write_equations(text: str) -> str:
    """Blocks of `math` as MathML."""

    def convert(found: re.Match) -> str:
        from latex2mathml.converter import convert

        return f'<div class="arithmatex">{convert(found[1].strip(), display="block")}</div>\n'

    return re.sub(r"^```math\n(.*?)^```$", convert, text, flags=re.DOTALL | re.MULTILINE)
