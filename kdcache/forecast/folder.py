"""The folder of a probe: beside the cache, on its disk, and gone afterwards, whatever the end is.

A process that is killed leaves its folder, and with it a share of the disk: the next plan of the same cache removes it. A lock
in the folder says that its process lives.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kdcache.cache.folder import find_folder
from kdcache.storage.lock import LOCK, FolderInUseError, hold_folder

DOCUMENTS, CACHE = "documents", "cache"  # what is made in it


@contextmanager
def make_folder(root: Path) -> Iterator[Path]:
    """A new folder for a probe of the cache at `root`, not in it.

    Raises: CacheError where a file is in the way, OSError where the disk refuses.
    """
    folder = find_folder(root)
    beside, prefix = folder.absolute().parent if folder == root else folder, f".{root.name}.plan-"
    _remove_stale(beside, prefix)
    with ExitStack() as held:
        made = _make_held(beside, prefix, held)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _make_held(beside: Path, prefix: str, held: ExitStack) -> Path:
    """Again where another plan took it for stale in the moment before it was locked."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
        with suppress(FolderInUseError, FileNotFoundError):
            held.enter_context(hold_folder(made))
            if (made / LOCK).exists():
                return made


def _remove_stale(beside: Path, prefix: str) -> None:
    """What killed plans left; folders that somebody else made, holds or owns stay."""
    for folder in beside.iterdir():
        if folder.name.startswith(prefix) and _is_ours(folder):
            with suppress(FolderInUseError, OSError), hold_folder(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    with suppress(OSError):  # another's, or gone meanwhile
        return {entry.name for entry in folder.iterdir()} <= {LOCK, DOCUMENTS, CACHE}
    return False
