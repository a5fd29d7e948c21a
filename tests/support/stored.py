"""The files of a cache, wherever they are."""

from __future__ import annotations

from pathlib import Path


def read_all(root) -> dict[str, bytes]:
    """Every file of a cache but the manifest, whose information differs, and locks."""
    if isinstance(root, Path):
        paths = [path for path in root.rglob("*") if path.is_file()]
        files = {str(path.relative_to(root)): path.read_bytes() for path in paths}
    else:
        files = {key: root.object(key).read_bytes() for key in root.walk()}
    skipped = ("manifest.json", ".lock")
    return {name: data for name, data in files.items() if name not in skipped}
