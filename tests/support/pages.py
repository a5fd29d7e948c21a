"""The pages that people read: their blocks, commands, headings and links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""The pages for users. Every block of them that can be run is run by `make readme`."""
PAGES = [*GUIDES, ROOT / "BENCHMARKS.md", ROOT / "CONTRIBUTING.md"]


def read(path: Path) -> str:
    """The text of a page."""
    return path.read_text(encoding="utf-8")


def list_blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block that names a language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def list_commands(block: str) -> list[str]:
    """The commands of a bash block, continued lines joined; a script is one."""
    if block.startswith("#!"):
        return [block]
    lines = [line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def list_all_commands(text: str) -> list[str]:
    """The commands of all bash blocks of a page."""
    blocks = [block for language, block in list_blocks(text) if language == "bash"]
    return [command for block in blocks for command in list_commands(block)]


def leave_out_code(text: str) -> str:
    """The page without fenced blocks and without comments."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def list_anchors(text: str) -> list[str]:
    """What a link to each heading has behind `#`, as GitHub and the site make it."""
    anchors: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", leave_out_code(text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchors.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return anchors


def list_links(text: str) -> list[str]:
    """The targets of links and pictures of a page, addresses of the web left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", leave_out_code(text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
