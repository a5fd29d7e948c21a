"""The stage: a local folder with copies of shard files from elsewhere, within a limit of bytes.

A shard file is fetched whole at its first use and verified. A copy is named by the sha256 of its
bytes, which the commit record has, so that caches can share it. The least recently used copies are
removed first, but never one that this process uses: samples come in random order, so a stage that
is too small would fetch everything again and again. A shard that finds no room is read from its
storage.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial as bind
from io import FileIO
from pathlib import Path

import numpy as np

from kdcache import disk
from kdcache.cache.shards import ShardSource
from kdcache.config import CacheConfig
from kdcache.disk import PARTIAL
from kdcache.errors import SettingsError
from kdcache.storage import LocalFolder, ShardFile, open_storage

log = logging.getLogger("kdcache")
PART_BYTES = 8 << 20  # of a file, in memory at once
OURS = uuid.uuid4().hex  # in containers several processes may have the same number
LOOK_S = 30.0  # between two listings of what other processes have put there
STALE_S = 3600.0  # an unfinished copy that has not changed for so long is a dead process's
SHARE = 0.02  # of the limit is made free at once
_COPY = re.compile(r"[0-9a-f]{64}\.(shard|[0-9a-f]{32}\.partial)")


class Stage:
    """A folder of copies. Thread-safe; several processes may share it.

    Args:
        folder: made if it is missing; files of other names stay untouched.
        limit_bytes: the most bytes of all copies in it.

    Raises: SettingsError if the folder cannot be written.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.storage = LocalFolder(folder)
        self._used: set[Path] = set()  # by this process
        self._total, self._coming, self._looked_s, self._full = 0, 0, -LOOK_S, False
        self.lock = threading.Lock()
        self._holding: dict[str, threading.Lock] = defaultdict(threading.Lock)
        _check_writable(folder)

    def __reduce__(self) -> tuple:
        return bind(Stage, limit_bytes=self.limit_bytes), (self.folder,)

    def bring(self, source: ShardSource, file: ShardFile) -> str | None:
        """Fetch a shard file if there is no copy of it.

        Args:
            file: the shard file by the commit record.

        Returns: the copy's key in `storage`; None if there is no room for it.
        Raises: OSError if the source cannot be read, or its bytes are not those of the record;
            CacheCorruptError.
        """
        key = f"{file.sha256[:2]}/{file.sha256}.shard"
        copy = self.folder / key
        with self.hold(key):
            self._used.add(copy)
            if _touch(copy, file.size_bytes):
                return key
            if not self._make_room(file.size_bytes):
                return None
            try:
                _fetch(source, copy, file)
            except BaseException as error:
                self._give_back(file.size_bytes)
                if not isinstance(error, _RefusedError):
                    raise
                self._say_full(str(error))
                return None
            with self.lock:
                self._coming -= file.size_bytes
        return key

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Let no other thread fetch or remove a copy until the block ends."""
        with self.lock:
            held = self._holding[key]
        with held:
            yield

    def remove(self, key: str, *, size_bytes: int) -> None:
        """Remove a copy that is damaged or already gone; the caller must `hold` it."""
        with suppress(OSError):
            disk.check_way((self.folder / key).parent, below=self.folder)
            disk.remove(self.folder / key)
        with self.lock:
            self._total -= size_bytes

    def _make_room(self, size_bytes: int) -> bool:
        """Count the file in, and remove the least recently used copies for it, but none of ours.

        Returns: whether there is room now.
        """
        with self.lock:
            if self._full:
                return False
            if time.monotonic() - self._looked_s > LOOK_S:
                self._total = sum(size for _, size, _ in _list_copies(self.folder)) + self._coming
                self._looked_s = time.monotonic()
            excess = self._total + size_bytes - self.limit_bytes
            if excess > 0:
                self._remove_oldest(excess + int(SHARE * self.limit_bytes))
            fits = self._total + size_bytes <= self.limit_bytes
            if fits:
                self._total += size_bytes
                self._coming += size_bytes
        if not fits:
            self._say_full(
                f"{self._total / 1e9:.2f} GB of it are in use, "
                f"and cache.stage_gb is {self.limit_bytes / 1e9:g}"
            )
        return fits

    def _give_back(self, size_bytes: int) -> None:
        with self.lock:
            self._total -= size_bytes
            self._coming -= size_bytes

    def _remove_oldest(self, excess_bytes: int) -> None:
        for used_s, size, copy in sorted(_list_copies(self.folder)):
            unfinished = copy.suffix == PARTIAL and time.time() - used_s < STALE_S
            if excess_bytes > 0 and copy not in self._used and not unfinished:
                with suppress(OSError):
                    disk.remove(copy)
                    self._total -= size
                    excess_bytes -= size

    def _say_full(self, why: str) -> None:
        """Warn once that the stage is full; from then on nothing is fetched."""
        if not self._full:
            log.warning(
                "%s: stage is full (%s); what is not in it is read where it is", self.folder, why
            )
        self._full = True


def open_stage(config: CacheConfig) -> Stage | None:
    """The stage that `cache.stage_dir` names; None if it names none. Raises SettingsError."""
    if config.stage_dir is None:
        return None
    folder = Path(os.path.realpath(config.stage_dir))
    cache = Path(os.path.realpath(str(config.path)))
    remote = open_storage(config.path).is_remote
    if not remote and (cache.is_relative_to(folder) or folder.is_relative_to(cache)):
        raise SettingsError(
            f"settings: cache.stage_dir is {str(config.stage_dir)!r}, expected a folder beside the "
            "cache, not above or in it; change it"
        )
    return Stage(config.stage_dir, limit_bytes=int(config.stage_gb * 1e9))


class _RefusedError(Exception):
    """The disk of the stage refuses a write; the message is the system's."""


@contextmanager
def _as_refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _RefusedError(error.strerror) from None


def _check_writable(folder: Path) -> None:
    probe = folder / f"{OURS}{PARTIAL}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        disk.open_new(probe).close()
        disk.remove(probe)
    except OSError as error:
        raise SettingsError(
            f"settings: cache.stage_dir is {str(folder)!r}, expected a folder to write into "
            f"({error.strerror}); change it"
        ) from None


def _touch(copy: Path, size_bytes: int) -> bool:
    """Whether the whole copy exists; if so, its time of last use becomes now."""
    with suppress(OSError):
        disk.check_way(copy.parent, below=copy.parents[1])
        facts = copy.lstat()
        there = stat.S_ISREG(facts.st_mode) and facts.st_size == size_bytes
        with suppress(OSError):  # it may be another user's
            os.utime(copy, follow_symlinks=False)
        return there
    return False


def _list_copies(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of each copy, also of those others are fetching now."""
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        ours = path.name.endswith(f".{OURS}{PARTIAL}")
        if _COPY.fullmatch(path.name) and path.name.startswith(path.parent.name) and not ours:
            with suppress(OSError):
                disk.check_way(path.parent, below=folder)
                facts = path.lstat()
                yield facts.st_mtime, facts.st_size, path


def _fetch(source: ShardSource, copy: Path, file: ShardFile) -> None:
    """Copy and verify. Raises OSError for the source, _RefusedError for the stage."""
    partial, total = copy.with_name(f"{file.sha256}.{OURS}{PARTIAL}"), hashlib.sha256()
    with _as_refused():
        disk.make_folders(partial.parent, below=copy.parents[1])
        out = disk.open_new(partial)
    try:
        try:
            for part in source.read_parts(PART_BYTES):
                total.update(part)
                with _as_refused():
                    _write(out, part)
        finally:
            with _as_refused():
                out.close()
        if total.hexdigest() != file.sha256:
            raise OSError(None, "its sha256 differs from the commit record")
        with _as_refused():
            disk.rename(partial, copy)
    finally:
        with suppress(OSError):
            disk.remove(partial)


def _write(out: FileIO, part: np.ndarray) -> None:
    room = memoryview(part)
    while len(room):
        room = room[out.write(room) :]
