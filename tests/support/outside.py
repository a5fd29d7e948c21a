"""What is beside a cache, a run or a data set, and must stay as it is."""

from __future__ import annotations

from pathlib import Path


class Outside:
    """A folder beside the cache that nobody may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "precious").write_text("mine")
        self.keep()

    def keep(self) -> None:
        """What is there now must stay."""
        self.before = self._look()

    def check(self) -> None:
        assert self.is_as_it_was()

    def is_as_it_was(self) -> bool:
        return self._look() == self.before

    def _look(self) -> dict:
        paths = [self.folder, *sorted(self.folder.rglob("*"))]
        return {
            path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths
        }
