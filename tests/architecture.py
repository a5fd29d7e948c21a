"""The figures of the architecture: `python -m tests.architecture`, part of `make lint`.

It prints how large the library is, which files import each other in a circle, how long functions
are, what lacks a docstring, and how many files a sample passes. It ends with 1 if a goal is missed,
unless the goal stands in NOT_YET. How the files that a sample passes are counted is explained in
`tests/support/ways.py`.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.dangers import count_dangers
from tests.support.ways import trace_ways

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "kdcache"
PACKAGES = ("kdcache", "cache_teacher", "train_student")
GOALS = {  # the figure at most
    "files": 110,
    "lines": 16_000,
    "circles across rooms": 0,
    "files in the largest circle": 3,
    "median function": 6,
    "90th percentile function": 17,
    "longest function": 46,
    "files over 300 lines": 0,
    "lines over 100 columns": 0,
    "singledispatch functions": 0,
    "public names without a docstring": 0,
    "calls that only one module may make": 0,
    "files from JPEG to disk": 8,
    "files from disk to loss": 9,
}
NOT_YET = {
    "files",
    "lines",
    "median function",
    "90th percentile function",
    "files from JPEG to disk",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Print the figures; 1 if a goal is missed that stands outside NOT_YET, else 0."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in find_files()}
    figures = {**count_lines(), **count_circles(trees), **count_functions(trees)}
    figures |= count_slips(trees) | count_dangers(trees, ROOT)
    for name, files in trace_ways().items():
        figures[name] = len(files)
        print(f"{name}: {' '.join(files)}")
    missed = [name for name, most in GOALS.items() if figures[name] > most]
    for name, figure in figures.items():
        goal = f"  at most {GOALS[name]:,}" if name in GOALS else ""
        print(f"{name:<34} {figure:>7,}{goal}{', missed' if name in missed else ''}")
    print("\nroom          files   lines\n" + "\n".join(format_rooms()))
    for name in NOT_YET.difference(missed):
        print(f"{name}: reached; take it out of NOT_YET in tests/architecture.py")
    return int(not NOT_YET.issuperset(missed))


def find_files() -> list[Path]:
    """Every file of the library and of the two programs."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def count_lines() -> dict[str, int]:
    """Files and lines of the library, without `__init__.py`; over all packages, what is long."""
    files = [path for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"]
    texts = [path.read_text(encoding="utf-8").splitlines() for path in find_files()]
    return {
        "files": len(files),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
        "files over 300 lines": sum(len(lines) > 300 for lines in texts),
        "lines over 100 columns": sum(len(line) > 100 for lines in texts for line in lines),
    }


def format_rooms() -> list[str]:
    """A line for each room: its files without `__init__.py` and their lines."""
    rooms: dict[str, list[int]] = {}
    for path in find_files():
        if path.name != "__init__.py":
            lines = len(path.read_text(encoding="utf-8").splitlines())
            rooms.setdefault(find_room(name_module(path)), []).append(lines)
    return [f"{room:<22} {len(n):>5} {sum(n):>7,}" for room, n in sorted(rooms.items())]


def count_circles(trees: dict[Path, ast.Module]) -> dict[str, int]:
    """Circles of imports, those inside functions and under TYPE_CHECKING included."""
    circles = find_circles(read_imports(trees))
    across = [circle for circle in circles if len({find_room(name) for name in circle}) > 1]
    for circle in circles:
        print(f"circle: {', '.join(sorted(circle))}")
    return {
        "circles across rooms": len(across),
        "files in the largest circle": max(map(len, circles), default=0),
    }


def name_module(path: Path) -> str:
    """`kdcache.cache.reader` for its path; a package for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_room(name: str) -> str:
    """`kdcache/cache` for `kdcache.cache.reader`; a file on the ground floor is its own room."""
    return "/".join(name.split(".")[: 2 if name.startswith("kdcache.") else 1])


def read_imports(trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """module -> modules of these packages that it imports."""
    modules = {name_module(path) for path in trees}
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                within = {f"{node.module}.{alias.name}": node.module for alias in node.names}
                names = [name if name in modules else package for name, package in within.items()]
            imports[name_module(path)].update(modules.intersection(names))
    return imports


def find_circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that all reach each other."""
    reached = {name: _reach(imports, name) for name in imports}
    circles = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in imports
        if name in reached[name]
    }
    return sorted((set(circle) for circle in circles), key=len)


def _reach(imports: dict[str, set[str]], name: str) -> set[str]:
    found, left = set(), [name]
    while left:
        new = imports[left.pop()] - found
        found |= new
        left += new
    return found


def count_functions(trees: dict[Path, ast.Module]) -> dict[str, int]:
    """Lengths in lines, from `def` to the last line."""
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    lengths = sorted(n.end_lineno - n.lineno + 1 for n in nodes if isinstance(n, Function))
    return {
        "functions": len(lengths),
        "median function": int(statistics.median(lengths)),
        "90th percentile function": lengths[int(0.9 * len(lengths))],
        "longest function": lengths[-1],
    }


def count_slips(trees: dict[Path, ast.Module]) -> dict[str, int]:
    """`singledispatch`, and public functions, classes and methods that say nothing about
    themselves.
    """
    decorated = [node for tree in trees.values() for node in ast.walk(tree)]
    return {
        "singledispatch functions": sum(
            "singledispatch" in map(ast.unparse, node.decorator_list)
            for node in decorated
            if isinstance(node, Function)
        ),
        "public names without a docstring": sum(
            len(find_undocumented(tree)) for tree in trees.values()
        ),
    }


def find_undocumented(tree: ast.Module) -> list[str]:
    """Public names of a file that say nothing; an override may leave it to its base in that file,
    as `help()` does.
    """
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    said = {
        (name, node.name)
        for name, owner in classes.items()
        for node in owner.body
        if isinstance(node, Function) and ast.get_docstring(node)
    }
    found = []
    for node in find_public(tree):
        owner = next((each for each in classes.values() if node in each.body), None)
        bases = map(ast.unparse, owner.bases) if owner else ()
        if not ast.get_docstring(node) and not any((base, node.name) in said for base in bases):
            found.append(node.name)
    return found


def find_public(tree: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Functions and classes without a leading underscore, and the methods of those classes."""
    for node in tree.body:
        if isinstance(node, (*Function.__args__, ast.ClassDef)) and node.name[0] != "_":
            yield node
            if isinstance(node, ast.ClassDef):
                yield from find_public(node)


if __name__ == "__main__":
    sys.exit(main())
