"""A packed cache's file, and the names inside it, joined and asked like paths."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdcache.packed.table import Table, read_table

SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True, order=True)
class PackedPath:
    """A name inside a packed cache; "" is the cache itself. Raises CacheError where it is asked and its file is no packed cache.

    file: of the cache. inner: as below the folder of a cache, without / at either end.
    """

    file: Path
    inner: str = ""

    def __truediv__(self, name: object) -> PackedPath:
        return PackedPath(self.file, f"{self.inner}/{name}" if self.inner else str(name))

    def __str__(self) -> str:
        return f"{self.file}!/{self.inner}" if self.inner else str(self.file)

    def __reduce__(self) -> tuple:
        return _load, (self.file, self.inner)

    def joinpath(self, *names: str) -> PackedPath:
        """As of a path."""
        return self / "/".join(names) if names else self

    @property
    def name(self) -> str:
        """What follows the last /; of the cache itself the file's."""
        return self.inner.rpartition("/")[2] or self.file.name

    @property
    def parent(self) -> PackedPath:
        """Without the last name."""
        return PackedPath(self.file, self.inner.rpartition("/")[0])

    def relative_to(self, above: PackedPath) -> str:
        """The name below another one."""
        return str(PurePosixPath(self.inner).relative_to(above.inner))

    @property
    def table(self) -> Table:
        """What is in the file. Raises CacheError."""
        return read_table(self.file)

    def exists(self) -> bool:
        """Whether it is a document, or the cache itself."""
        return self.file.is_file() and (not self.inner or self.inner in self.table.documents)

    is_file = exists

    def is_dir(self) -> bool:
        """Whether there are documents below it."""
        prefix = f"{self.inner}/" if self.inner else ""
        return self.file.is_file() and any(name.startswith(prefix) for name in self.table.documents)

    def is_symlink(self) -> bool:
        """There are no links inside."""
        return False


def _load(file: Path, inner: str) -> PackedPath:
    """What was sent to another process, which must learn there what a folder can."""
    from kdcache.packed import folder, shard  # noqa: F401

    return PackedPath(file, inner)


def is_packed(path: Path) -> bool:
    """Whether a path is that of a packed cache, there or not: a file, or what is named like one and is no folder."""
    with suppress(OSError):
        return path.is_file() or (path.suffix in SUFFIXES and not path.is_dir())
    return False
