"""A local copy of shard files that lie elsewhere: each is fetched whole at its first use, verified, and kept within a limit.

A copy is named by the sha256 of its bytes, which the commit record has: it cannot be taken for another, and caches share it.
What was used longest ago goes first, but nothing that this process uses: samples come in random order, so a stage that is too
small would fetch everything again and again. What finds no room is read where it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kdcache.cache.durable import PARTIAL
from kdcache.cache.place import Place
from kdcache.cache.shard import ShardFile, open_plain, read_at
from kdcache.config import CacheConfig
from kdcache.errors import SettingsError

log = logging.getLogger("kdcache")
PART_BYTES = 8 << 20  # of a file, in memory at once
OURS = uuid.uuid4().hex  # in containers all processes may have one number
LOOK_S = 30.0  # between two looks at what other processes have put there


class Stage:
    """A folder of copies. Thread-safe; several processes may share it.

    Args:
        folder: made where it is not there. limit_bytes: of all copies in it.

    Raises: SettingsError where the folder cannot be written.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._used: set[Path] = set()  # by this process
        self._total, self._looked_s, self._full = 0, -LOOK_S, False
        self._lock = threading.Lock()
        self._fetching: dict[Path, threading.Lock] = defaultdict(threading.Lock)
        _check_writable(folder)

    def bring(self, path: Place, file: ShardFile) -> Path | None:
        """The copy of a shard file, fetched now if it is not there; None where there is no room for it.

        Args:
            path: where it is. file: what its commit record says.

        Raises: OSError where it cannot be read, or is not what the record says.
        """
        copy = self.folder / file.sha256[:2] / file.sha256
        with self._lock:
            fetching = self._fetching[copy]
        with fetching:
            self._used.add(copy)
            if _touch(copy, file.size_bytes):
                return copy
            if not self._make_room(file.size_bytes):
                return None
            try:
                _fetch(path, copy, file)
            except _RefusedError as error:
                self._say_full(str(error))
                return None
        return copy

    def holds(self, path: Place) -> bool:
        """Whether a file is one of its copies."""
        return isinstance(path, Path) and path.is_relative_to(self.folder)

    def _make_room(self, size_bytes: int) -> bool:
        """Count the file in, and remove copies for it, those used longest ago first, if they are not this process's."""
        with self._lock:
            if self._full:
                return False
            if time.monotonic() - self._looked_s > LOOK_S:
                self._total, self._looked_s = sum(size for _, size, _ in _list_copies(self.folder)), time.monotonic()
            if self._total + size_bytes > self.limit_bytes:
                self._remove_oldest(self._total + size_bytes - self.limit_bytes)
            fits = self._total + size_bytes <= self.limit_bytes
            self._total += size_bytes if fits else 0
        if not fits:
            self._say_full(
                f"this run uses {self._total / 1e9:.2f} GB, and cache.stage_gb is {self.limit_bytes / 1e9:g}"
            )
        return fits

    def _remove_oldest(self, excess_bytes: int) -> None:
        for _, size, copy in sorted(_list_copies(self.folder)):
            if excess_bytes > 0 and copy not in self._used:
                copy.unlink(missing_ok=True)
                self._total -= size
                excess_bytes -= size

    def _say_full(self, why: str) -> None:
        """Once; from then on nothing is fetched."""
        if not self._full:
            log.warning("%s: stage is full (%s); what is not in it is read where it is", self.folder, why)
        self._full = True


def open_stage(config: CacheConfig) -> Stage | None:
    """The stage of the settings; None where they name none. Raises SettingsError."""
    return config.stage_dir and Stage(config.stage_dir, limit_bytes=int(config.stage_gb * 1e9))


class _RefusedError(Exception):
    """The disk of the stage takes no more; in its words."""


def _check_writable(folder: Path) -> None:
    probe = folder / f"{OURS}{PARTIAL}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"settings: cache.stage_dir is {str(folder)!r}, expected a folder to write into ({error.strerror}); change it"
        ) from None


def _touch(copy: Path, size_bytes: int) -> bool:
    """Whether the whole copy is there; then it counts as used now."""
    with suppress(OSError):
        if copy.stat().st_size == size_bytes:
            os.utime(copy)
            return True
    return False


def _list_copies(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of each, of those that are being fetched, too."""
    for path in folder.glob("??/*"):
        with suppress(FileNotFoundError):
            facts = path.stat()
            yield facts.st_mtime, facts.st_size, path


def _fetch(path: Place, copy: Path, file: ShardFile) -> None:
    """Raises OSError of the source, _RefusedError of the stage."""
    partial = copy.with_name(f"{copy.name}.{OURS}{PARTIAL}")
    total = hashlib.sha256()
    try:
        with _open(partial) as out:
            for part in _read_parts(path, file.size_bytes):
                total.update(part)
                _write(out, part)
        if total.hexdigest() != file.sha256:
            raise OSError(None, "its sha256 differs from the commit record")
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)


def _read_parts(path: Place, size_bytes: int) -> Iterator[np.ndarray]:
    with open_plain(path) as opened:
        for offset in range(0, size_bytes, PART_BYTES):
            part = np.empty(min(PART_BYTES, size_bytes - offset), np.uint8)
            if read_at(opened, offset, [part]) != part.size:
                raise OSError(None, "it is too short")
            yield part


def _open(partial: Path) -> BinaryIO:
    try:
        partial.parent.mkdir(exist_ok=True)
        return partial.open("wb")
    except OSError as error:
        raise _RefusedError(error.strerror) from None


def _write(out: BinaryIO, part: np.ndarray) -> None:
    try:
        out.write(part)
    except OSError as error:
        raise _RefusedError(error.strerror) from None
