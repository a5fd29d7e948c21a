"""Calls that only one module may make: the one that makes them safe for files of strangers.

Whoever needs such a call uses that module; a new exception stands in ALLOWED with its reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ALLOWED: dict[str, dict[str, str]] = {
    "Image.open": {"kdcache/data/pictures.py": "formats, modes, a limit on pixels"},
    "torch.load": {"kdcache/models/stored_state.py": "no code, nothing compressed"},
    "yaml.load": {"kdcache/config/yaml_file.py": "no aliases, no tags, no name twice"},
    "open for writing": {
        "kdcache/disk.py": "a new file, never through a link",
        "kdcache/cache/packed_writer.py": "HDF5 opens by name; the file is held and no link",
    },
    "os.open": {
        "kdcache/disk.py": "a new file; plain files only; folders, to flush them",
        "kdcache/storage/local.py": "a folder, to make its server look",
        "kdcache/command.py": "/dev/null, when nobody reads our output any more",
    },
    "Path.write_*": {},
    "import_module": {
        "kdcache/models/own_code.py": "a student of the user's, after the trust check",
        "kdcache/deploy/export.py": "a module of ours, by a name from FILES",
        "kdcache/__init__.py": "a module of ours, by a name from a table",
    },
    "pickle, eval, exec": {},
}
_MODE = re.compile("(?=.*[wax+])[rwaxbt+]{1,3}")


def find_dangers(tree: ast.Module, where: str) -> Iterator[str]:
    """Calls of a file that it may not make, as `kdcache/a.py:7: torch.load`."""
    for node in ast.walk(tree):
        for rule, is_one in RULES.items():
            if isinstance(node, ast.Call) and is_one(node) and where not in ALLOWED[rule]:
                yield f"{where}:{node.lineno}: {rule}; see tests/support/dangers.py"


def count_dangers(trees: dict[Path, ast.Module], root: Path) -> dict[str, int]:
    """How many there are; each is printed."""
    found = [
        line
        for path, tree in trees.items()
        for line in find_dangers(tree, path.relative_to(root).as_posix())
    ]
    for line in found:
        print(line)
    return {"calls that only one module may make": len(found)}


def _name(node: ast.Call) -> str:
    """`a.b.load` of `a.b.load(...)`, `.open` of `some().open(...)`."""
    parts, owner = [], node.func
    while isinstance(owner, ast.Attribute):
        parts.append(owner.attr)
        owner = owner.value
    parts.append(owner.id if isinstance(owner, ast.Name) else "")
    return ".".join(reversed(parts))


def _calls(*names: str) -> Callable[[ast.Call], bool]:
    """Whether it is one of them, also by a longer way: `PIL.Image.open` is `Image.open`."""
    ends = tuple(f".{name}" for name in names)
    return lambda node: f".{_name(node)}".endswith(ends)


def _writes(node: ast.Call) -> bool:
    """`open(path, "w")`, `path.open("ab")`, `h5py.File(path, "r+")`, `os.fdopen(number, "w")`."""
    name = _name(node).rpartition(".")[2]
    if name not in ("open", "fdopen", "File", "FileIO", "ZipFile") or _name(node) == "os.open":
        return False
    values = [*node.args, *(keyword.value for keyword in node.keywords)]
    modes = [value.value for value in values if isinstance(value, ast.Constant)]
    return any(isinstance(mode, str) and _MODE.fullmatch(mode) for mode in modes)


RULES: dict[str, Callable[[ast.Call], bool]] = {
    "Image.open": _calls("Image.open"),
    "torch.load": _calls("torch.load", "torch.jit.load", "np.load", "numpy.load", "joblib.load"),
    "yaml.load": lambda node: _name(node).startswith("yaml.") and "load" in _name(node),
    "open for writing": _writes,
    "os.open": _calls("os.open"),
    "Path.write_*": lambda node: _name(node).rpartition(".")[2] in ("write_text", "write_bytes"),
    "import_module": lambda node: _name(node).rpartition(".")[2] in ("import_module", "__import__"),
    "pickle, eval, exec": lambda node: (
        _name(node) in ("eval", "exec")
        or _name(node).partition(".")[0] in ("pickle", "marshal", "shelve", "subprocess")
    ),
}
