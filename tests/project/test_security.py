"""Every attack in docs/security.md is held by tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
HELD = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("path", "name"), HELD)
def test_a_test_that_the_page_names_exists(path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_one():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "attack |" not in line]
    assert len(rows) >= 25 and all("`tests/" in row for row in rows)
