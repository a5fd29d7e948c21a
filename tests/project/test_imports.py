"""Names that are imported inside of functions, and names of modules that tests and benches use or
replace, exist: no lint looks there across files.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil

import pytest

from tests.architecture import PACKAGES, ROOT, find_files


@pytest.mark.parametrize("path", find_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_file_imports_of_ours_is_there(path):
    missing = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            missing += [name for name in node.names if not is_there(node.module, name.name)]
    assert not [name.name for name in missing]


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_test_uses_of_our_modules_is_there(path):
    """What moves to another file leaves tests behind that replace it where it was."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            full = {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            modules |= {name: module for name, module in full.items() if is_module(module)}
    used = {
        (modules[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id in modules
    }
    assert not [f"{module}.{name}" for module, name in used if not is_there(module, name)]
    assert not [name for name in find_replaced(tree) if not is_named(name)]


def find_replaced(tree: ast.AST) -> set[str]:
    """What `monkeypatch.setattr("kdcache.module.name", ...)` replaces."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    texts = {
        node.args[0].value
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr == "setattr"
        if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }
    return {text for text in texts if text.split(".")[0] in PACKAGES}


def is_named(name: str) -> bool:
    """Whether a dotted name leads to something; see `is_there`."""
    try:
        pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        return (error.name or "").split(".")[0] not in PACKAGES
    except AttributeError:
        return False
    return True


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def is_there(module: str, name: str) -> bool:
    """Whether a module has that name; one whose library is not installed is not looked into."""
    try:
        there = importlib.import_module(module)
    except ModuleNotFoundError as error:
        return (error.name or "").split(".")[0] not in PACKAGES
    inside = hasattr(there, "__path__") and importlib.util.find_spec(f"{module}.{name}")
    return hasattr(there, name) or bool(inside)


def test_a_name_that_is_not_there_is_seen():
    assert is_there("kdcache.errors", "one_line") and is_there("kdcache", "errors")
    assert not is_there("kdcache.errors", "two_lines")
    assert not is_there("kdcache.none", "one_line")
    replaced = find_replaced(ast.parse('patch.setattr("kdcache.errors.two_lines", None)'))
    assert replaced == {"kdcache.errors.two_lines"} and not any(map(is_named, replaced))
    assert is_named("kdcache.errors.one_line")
