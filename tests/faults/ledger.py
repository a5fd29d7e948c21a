"""A disk that forgets: follows every step on the disk and knows what a power loss at that moment
would leave.

The hard reading of POSIX: contents last once the file was flushed, a name lasts once its folder was
    flushed, and until then the old state may be there instead. The real disk is left alone; an
    image is written into another folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from kdcache import disk

Names = dict[Path, int]  # path relative to the root -> number of the file


class Ledger:
    """What would be left of `root`, step by step; `observe` is called after each step with its
    name.

    Args:
        flush_files, flush_folders: False pretends that the program forgot to flush; the ledger must
            then find losses.
    """

    def __init__(self, root: Path, *, flush_files: bool = True, flush_folders: bool = True) -> None:
        self.root, self.flush_files, self.flush_folders = root, flush_files, flush_folders
        self.contents: list[
            tuple[bytes, bytes]
        ] = []  # by file number: as written, as certainly on disk
        self.names: Names = {}
        self.kept: Names = {}
        self.folders: set[Path] = {Path()}
        self.kept_folders: set[Path] = {Path()}

    def adopt(self) -> None:
        """Take over what is in the folder now as safely on disk."""
        for path in self.root.rglob("*"):
            if path.is_dir():
                self.folders.add(path.relative_to(self.root))
            else:
                self.contents.append((path.read_bytes(), path.read_bytes()))
                self.names[path.relative_to(self.root)] = len(self.contents) - 1
        self.kept, self.kept_folders = dict(self.names), set(self.folders)

    def watch(self, setattr: Callable, observe: Callable[[str], None]) -> None:
        """Follow the steps of this process from now on."""
        for name in ("write_file", "rename", "remove", "make_folder", "sync_folder"):
            setattr(disk, name, self._follow(name, getattr(disk, name), observe))

    def write_image(self, root: Path, *, names_survive: bool) -> None:
        """Write what a power loss leaves now.

        Args:
            names_survive: names not flushed yet are there all the same, as they may be; contents
                are what was flushed.
        """
        names = self.names if names_survive else self.kept
        for folder in sorted(self.folders if names_survive else self.kept_folders):
            if folder == Path() or (root / folder).parent.is_dir():  # lost with the folder above
                (root / folder).mkdir(exist_ok=True)
        for path, number in names.items():
            if (root / path).parent.is_dir():  # a file is lost with its folder
                (root / path).write_bytes(self.contents[number][1])

    def _follow(self, name: str, original: Callable, observe: Callable[[str], None]) -> Callable:
        def followed(*args, **kwargs):
            if name == "make_folder":  # which flushes the folder above before it returns
                self._make_folder(*args)
            original(*args, **kwargs)
            if name != "make_folder":
                getattr(self, f"_{name}")(*args)
            observe(name)

        return followed

    def _write_file(self, path: Path, parts: Iterable) -> None:
        data = path.read_bytes()
        self.contents.append((data, data if self.flush_files else b""))
        self.names[self._relative(path)] = len(self.contents) - 1

    def _rename(self, old: Path, new: Path) -> None:
        self.names[self._relative(new)] = self.names.pop(self._relative(old))

    def _remove(self, path: Path) -> None:
        self.names.pop(self._relative(path), None)

    def _make_folder(self, path: Path) -> None:
        self.folders.add(self._relative(path))

    def _sync_folder(self, path: Path) -> None:
        if not self.flush_folders or not path.is_relative_to(self.root):
            return
        folder = self._relative(path)
        for known in [
            name for name in self.kept if name.parent == folder and name not in self.names
        ]:
            del self.kept[known]
        self.kept |= {name: number for name, number in self.names.items() if name.parent == folder}
        self.kept_folders |= {name for name in self.folders if name.parent == folder}

    def _relative(self, path: Path) -> Path:
        return Path(os.path.relpath(path, self.root))
