"""Packs a cache, or some of its levels and views, into one HDF5 file.

Every chunk is checked before it is written. The file is read back before it gets its name.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache import durable
from kdcache.cache.basis import basis_key
from kdcache.cache.documents import seal
from kdcache.cache.index import read_group_record
from kdcache.cache.layout import MANIFEST, Group, commit_key
from kdcache.cache.manifest import Manifest, describe_manifest, read_manifest
from kdcache.cache.packed_writer import count_fixed_bytes, create_file, find_filter
from kdcache.cache.reader import CacheReader
from kdcache.cache.records import seal_record
from kdcache.cache.subset import cut_record, take_subset
from kdcache.cache.zarr_metadata import list_metadata
from kdcache.errors import CacheError, one_line
from kdcache.progress import Progress, Silent
from kdcache.storage import Storage, open_storage

PACK_THREADS = 2
# (array, as "train/low", view, sample, stored bytes)
Put = Callable[[str, int, int, np.ndarray], None]


@dataclass(frozen=True)
class Packed:
    """What was packed: number of samples over all views and splits, and bytes of the file."""

    num_samples: int
    size_bytes: int


def pack_cache(
    place: Storage | str | Path,
    out: Path,
    *,
    levels: list[str] | None = None,
    num_views: int | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Write the cache at `place` into the new file `out`.

    The file gets its name once every byte was read back.

    Args:
        levels: the levels to pack, [] for logits alone; None: all.
        num_views: how many training views to pack, from the first; None: all.

    Raises: CacheError if the cache is half-built or damaged or has a codec without a filter in
        HDF5, or if `out` exists or cannot be written; SettingsError if the cache does not have
        these levels or views.
    """
    storage = open_storage(place)
    progress, source = progress or Silent(), read_manifest(storage)
    manifest = take_subset(source, levels=levels, num_views=num_views)
    _check_codecs(storage, manifest)
    _check_new(out)
    _check_free(out, manifest)
    readers, documents = (
        _open(storage, source, manifest),
        _list_documents(storage, source, manifest),
    )
    partial = durable.partial_path(out)
    with _explain_refusal(out), _hold(partial) as descriptor:
        with create_file(partial, descriptor, manifest, documents) as packed:
            _walk(readers, manifest, "packing", progress, packed.put)
            packed.finish()
        _read_back(partial, progress)
        durable.rename_new(partial, out)
        durable.sync_folder(out.parent)
    num_samples = sum(layout.num_views * layout.num_samples for layout in manifest.layouts.values())
    return Packed(num_samples, out.stat().st_size)


def _check_codecs(storage: Storage, manifest: Manifest) -> None:
    for layout in manifest.layouts.values():
        for spec in (spec for spec in layout.arrays if spec.codec):
            try:
                find_filter(spec)
            except CacheError as error:
                raise CacheError(f"{storage}: array {layout.split}/{error}") from None


def _check_new(out: Path) -> None:
    if os.path.lexists(out):
        raise _refuse_old(out)
    if not out.parent.is_dir():
        raise CacheError(
            f"{out}: folder {out.parent} is missing, expected one to write into; make it first"
        )


def _refuse_old(out: Path) -> CacheError:
    return CacheError(
        f"{out}: file is there already, expected a new name; choose another, or remove it first"
    )


def _check_free(out: Path, manifest: Manifest) -> None:
    """Raise CacheError if the disk cannot hold the raw arrays.

    What a codec makes of the others is not known yet.
    """
    needed = count_fixed_bytes(manifest)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise CacheError(
            f"{out}: free disk space is {free / 1e9:.2f} GB, expected {needed / 1e9:.2f} GB or "
            "more; make room, choose another place, or pack less of it (--levels, --views)"
        )


def _open(storage: Storage, source: Manifest, manifest: Manifest) -> dict[str, CacheReader]:
    """Split -> a reader of the cache of `source`, for the views of `manifest`."""
    return {
        split: CacheReader(storage, source, split, num_views=layout.num_views, check="always")
        for split, layout in manifest.layouts.items()
    }


def _list_documents(
    storage: Storage, source: Manifest, manifest: Manifest
) -> Iterator[tuple[str, bytes]]:
    """(key, contents) of each document; a whole cache keeps its documents byte for byte."""
    whole = manifest is source

    def read(key: str, make: Callable[[], bytes]) -> tuple[str, bytes]:
        return key, storage.read_document(key, cure=storage.repair_cure) if whole else make()

    yield read(MANIFEST, lambda: seal(describe_manifest(manifest)))
    for document in list_metadata(manifest):
        contents = document.contents
        yield read(document.key, lambda contents=contents: json.dumps(contents, indent=2).encode())
    for level, encoding in manifest.encodings.items():
        if encoding.kind == "lowrank":
            key = basis_key(level)
            yield key, storage.read_document(key, cure=storage.repair_cure)
    for group in (group for layout in manifest.layouts.values() for group in layout.groups()):
        yield read(commit_key(group), lambda group=group: _cut(storage, source, manifest, group))


def _cut(storage: Storage, source: Manifest, manifest: Manifest, group: Group) -> bytes:
    """The group's commit record in the smaller cache of `manifest`."""
    record = read_group_record(storage, source, group)
    return seal_record(group, cut_record(record, manifest, group))


def _walk(
    readers: dict[str, CacheReader],
    manifest: Manifest,
    title: str,
    progress: Progress,
    put: Put | None = None,
) -> None:
    """Read and check every chunk of the manifest, group by group, and pass it to `put`."""
    groups = [group for layout in manifest.layouts.values() for group in layout.groups()]
    num_threads = max(reader.storage.num_threads(PACK_THREADS) for reader in readers.values())

    def walk_group(group: Group) -> int:
        size_bytes = 0
        for spec in manifest.layouts[group.split].arrays:
            for sample in range(group.start, group.stop):
                chunk = readers[group.split].read_stored(spec.name, group.view, sample)
                size_bytes += chunk.size
                if put:
                    put(f"{group.split}/{spec.name}", group.view, sample, chunk)
        return size_bytes

    with (
        progress.start(title, total=len(groups), unit="groups") as bar,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        for size_bytes in pool.map(walk_group, groups):
            bar.advance(1, size_bytes=size_bytes)


def _read_back(partial: Path, progress: Progress) -> None:
    """Open the file as training does, and check every chunk and document."""
    storage = open_storage(partial)
    manifest = read_manifest(storage)
    _walk(_open(storage, manifest, manifest), manifest, "reading back", progress)


@contextmanager
def _hold(partial: Path) -> Iterator[int]:
    """A descriptor of the unfinished file, which one process at a time may write.

    At the end the file is removed, if it still has its unfinished name. Raises OSError.
    """
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise BlockingIOError  # its holder has given the file its name meanwhile
        # a process killed between the two steps of `rename_new` leaves a finished file here
        if os.fstat(descriptor).st_nlink > 1:
            raise CacheError(
                f"{partial}: file is another name of a finished file, expected an unfinished one; "
                "remove this name"
            )
        try:
            yield descriptor
        finally:
            durable.remove(partial)
    finally:
        os.close(descriptor)


@contextmanager
def _explain_refusal(out: Path) -> Iterator[None]:
    """Turn an OSError of the disk into a CacheError."""
    try:
        yield
    except BlockingIOError:
        raise CacheError(
            f"{out}: another process is packing into it; wait for that one, or choose another name"
        ) from None
    except FileExistsError:
        raise _refuse_old(out) from None
    except OSError as error:
        # messages of HDF5 are a page long
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise CacheError(
            f"{out}: file cannot be written ({reason}); make room or choose another place"
        ) from None
