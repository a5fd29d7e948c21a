"""A student or teacher of the user's: whether its code may run, importing it, and its hash.

A cache or a run folder of a stranger names what it likes, and to import is to run. So nothing that
is stored is imported, unless the same command line names it or says `--trust-code`, and its file
is still the one that was recorded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.config.names import is_own_student
from kdcache.disk import UnfitFileError, read_plain
from kdcache.errors import KdcacheError, Phrase, SettingsError, describe, one_line

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("kdcache")
STUDENT, TEACHER = "student.arch", "teacher.arch"
MOST_SOURCE_BYTES = 4 << 20
SHORT = 12  # digits of a recorded hash in hyperparameters, which must not change
MOST_STEPS = 8  # from a module to the one that it takes the function from, and on


@dataclass(frozen=True)
class Trust:
    """What this command line allows.

    Args:
        arch: `--student.arch` of this command line; a stored student of that name is imported if
            its file is the recorded one.
        teacher: `--teacher.arch`, likewise.
        any_code: `--trust-code`: whatever a file names, also if its source has changed.
    """

    arch: str | None = None
    teacher: str | None = None
    any_code: bool = False

    def check(self, arch: str, *, source: object, where: object, field: str = STUDENT) -> None:
        """Check that a stored student or teacher may be imported; nothing is imported here.

        Args:
            arch: its name.
            source: the recorded hash of its file, None if there is none.
            where: the file that names it, for messages.
            field: the setting, student.arch or teacher.arch.

        Raises: SettingsError if it may not, or if its file is another one now.
        """
        if field == STUDENT and not is_own_student(arch):
            return
        if not (self.any_code or arch == (self.arch if field == STUDENT else self.teacher)):
            expected = Phrase("named on this command line: code that a file names is not run")
            cure = f"if you trust that module, add --{field} {arch} or --trust-code"
            raise SettingsError(
                describe(where, field=field, found=arch, expected=expected, cure=cure)
            )
        found = hash_source_unseen(arch)
        if is_same_source(source, found):
            return
        if self.any_code:
            since = "the run was trained" if field == STUDENT else "the cache was built"
            log.warning("the file of %s %s has changed since %s", field, arch, since)
            return
        cure = "restore that file, or add --trust-code to run it as it is now"
        field = f"file of {field} {arch}"
        found, source = found[:SHORT], str(source)[:SHORT]
        raise SettingsError(describe(where, field=field, found=found, expected=source, cure=cure))


def hash_file(path: Path) -> str:
    """The sha256 (hex) of a source file. Raises UnfitFileError if it is too large, OSError."""
    return hashlib.sha256(read_plain(path, most_bytes=MOST_SOURCE_BYTES)).hexdigest()


def is_same_source(recorded: object, found: str | None) -> bool:
    """Whether a recorded hash is that of the source that was found, or nothing can be compared.

    Args:
        recorded: 64 digits, or the first 12, as hyperparameters and runs of before have them.
    """
    if recorded in (None, "unknown") or found in (None, "unknown"):
        return True
    sizes = (SHORT, len(found))
    return isinstance(recorded, str) and len(recorded) in sizes and found.startswith(recorded)


def hash_source_unseen(arch: str) -> str | None:
    """Like `hash_source`, but found without importing anything; None if there is no file.

    Raises: SettingsError if the file is too large for a source.
    """
    package, _, name = arch.partition(":")
    path = _find_file(package, name)
    try:
        return hash_file(path) if path else None
    except UnfitFileError as error:
        raise SettingsError(f"{path}: source of {arch} {error.strerror}; name another") from None
    except OSError:
        return None


def let_import_from_here() -> None:
    """Let modules of the current folder be found, as `python -m` does and a console script not."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))


def find_function(arch: str, *, field: str = STUDENT) -> Callable:
    """The function that `student.arch` or `teacher.arch` names, imported.

    Args:
        arch: `package.module:function`.
        field: the setting, for messages.

    Raises: SettingsError if it cannot be imported from here.
    """
    package, _, name = arch.partition(":")
    let_import_from_here()
    try:
        return getattr(importlib.import_module(package), name)
    except (Exception, SystemExit) as error:  # whatever code of yours meets
        expected = "package.module:function that can be imported from here"
        found = f"no such function ({one_line(error, named=True)})"
        raise refuse_code(arch, found, expected, field=field) from None


def call_function(
    arch: str, *, num_classes: int, options: Mapping[str, object], field: str = STUDENT
) -> nn.Module:
    """What the user's function gives, a module.

    Args:
        arch: `package.module:function`.
        num_classes, options: what it is called with.
        field: the setting that names it, for messages.

    Raises: SettingsError if it cannot be imported, fails, or gives something else.
    """
    from torch import nn

    function = find_function(arch, field=field)
    try:
        module = function(num_classes=num_classes, **options)
    except KdcacheError:
        raise
    except (Exception, SystemExit) as error:  # whatever code of yours meets
        found = f"failing ({one_line(error, named=True)})"
        expected = f"a function of num_classes and {field.partition('.')[0]}.options"
        raise refuse_code(arch, found, expected, field=field) from None
    if not isinstance(module, nn.Module):
        found = f"giving a {type(module).__name__}"
        raise refuse_code(arch, found, "a function that gives a torch.nn.Module", field=field)
    return module


def hash_source(arch: str) -> str:
    """The sha256 of the file that defines `student.arch`, or "unknown".

    They differ if another student has the same name. Files that it imports are not hashed.
    """
    source = find_source(arch)
    return hash_file(Path(source)) if source else "unknown"


def find_source(arch: str) -> str | None:
    """The file that defines a function; None if it is built into Python or typed in.

    Args:
        arch: `package.module:function`.

    Raises: SettingsError if there is no such function.
    """
    try:
        source = inspect.getsourcefile(inspect.unwrap(find_function(arch)))
        return source if source and Path(source).is_file() else None
    except (TypeError, OSError):
        return None


def refuse_code(
    arch: str,
    found: str,
    expected: str,
    *,
    field: str = STUDENT,
    kind: type[KdcacheError] = SettingsError,
) -> KdcacheError:
    """The error, of a `kind`, for code that cannot be used: what it does, and what it must."""
    facts = {"found": Phrase(found), "expected": Phrase(expected)}
    cure = f"mend it or change {field}"
    return kind(describe("settings", field=f"{field} {arch}", **facts, cure=cure))


def _find_file(package: str, name: str, steps: int = MOST_STEPS) -> Path | None:
    """The file that defines a function, behind the modules that only pass it on."""
    path = _find_module(package)
    if path is None or steps == 0:
        return path
    places = [_find_file(*origin, steps - 1) for origin in _find_origins(path, package, name)]
    return next((place for place in places if place), path)


def _find_module(package: str) -> Path | None:
    """The source of a module; its packages are looked up by their folders, not imported."""
    let_import_from_here()
    places, spec = None, None
    for part in package.split("."):
        # the last name alone: of a dotted one the finder would ask for the imported package
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    path = Path(spec.origin) if spec.has_location else None
    return path if path and path.suffix == ".py" and path.is_file() else None


def _find_origins(path: Path, package: str, name: str) -> list[tuple[str, str]]:
    """Modules that `name` may be taken from, and what it is called there; none: it is of here."""
    found, stars = [], []
    for node in _parse(path):
        if getattr(node, "name", None) == name:  # a function or class
            found, stars = [], []
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            module = _find_absolute(node, path, package)
            if name == (alias.asname or alias.name):
                found, stars = [(module, alias.name)], []
            elif alias.name == "*" and _binds(module, name):
                stars.append((module, name))
    return stars[::-1] or found


def _binds(package: str, name: str) -> bool:
    path = _find_module(package)
    nodes = _parse(path) if path else []
    names = [a for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names]
    return any(getattr(node, "name", None) == name for node in nodes) or any(
        name == (alias.asname or alias.name) for alias in names
    )


def _parse(path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(read_plain(path, most_bytes=MOST_SOURCE_BYTES)).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []


def _find_absolute(node: ast.ImportFrom, path: Path, package: str) -> str:
    """The full name of the module of an import, which may be relative."""
    parts = package.split(".")
    kept = len(parts) - node.level + (1 if path.name == "__init__.py" else 0)
    above = parts[: max(kept, 0)] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])
