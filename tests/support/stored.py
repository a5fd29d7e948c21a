"""The files of a cache, wherever they are."""

from __future__ import annotations

from pathlib import Path


def read_all(root) -> dict[str, bytes]:
    """Every file of a cache but the manifest, whose information differs, and locks."""
    if isinstance(root, Path):
        paths = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    else:
        paths = {path.relative_to(root): path for path, _ in root.walk()}
    skipped = ("manifest.json", ".lock")
    return {name: path.read_bytes() for name, path in paths.items() if name not in skipped}
