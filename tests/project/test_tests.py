"""The tests themselves: each file stands alone."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def find_imports(path: Path) -> set[str]:
    """Last parts of the names of all modules that a file imports or imports from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return {part for name in names if name.startswith("tests") for part in name.split(".")}


def test_no_test_file_is_imported_by_another():
    """What several need is in tests/support."""
    test_files = {path.stem for path in TESTS.rglob("test_*.py")}
    found = {
        str(path.relative_to(TESTS)): shared
        for path in TESTS.rglob("*.py")
        if (shared := find_imports(path) & test_files)
    }
    assert not found
