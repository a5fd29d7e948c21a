"""Unpacks a packed cache into a folder, byte for byte.

Shard files are rebuilt and compared with their commit records. The manifest is written last.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kdcache.cache.basis import basis_key
from kdcache.cache.index import read_group_record
from kdcache.cache.layout import COMMITS, MANIFEST, ArraySpec, Group, commit_key, shard_key
from kdcache.cache.manifest import Manifest, look_for_manifest, read_manifest
from kdcache.cache.merge import check_same_cache
from kdcache.cache.reader import CacheReader
from kdcache.cache.records import CommitRecord, has_record
from kdcache.cache.writer import Files, retract_group, write_chunks
from kdcache.cache.zarr_metadata import list_metadata
from kdcache.errors import CacheCorruptError, CacheError
from kdcache.progress import Progress, Silent
from kdcache.storage import LocalFolder, Storage, open_storage
from kdcache.storage.base import explain_refusal

UNPACK_THREADS = 2


def unpack_cache(
    place: Storage | str | Path, out: Path, *, progress: Progress | None = None
) -> tuple[int, int]:
    """Write the packed cache at `place` into the folder `out`.

    If it was interrupted before, it continues.

    Returns: number of shard groups written now, and their bytes.

    Raises: CacheError if `place` is damaged or no packed cache, if `out` holds anything but an
        interrupted unpacking, or if the disk refuses.
    """
    packed, folder = open_storage(place), LocalFolder(out)
    _check_packed(packed)
    manifest = read_manifest(packed)
    readers = {
        split: CacheReader(packed, manifest, split, check="always") for split in manifest.layouts
    }
    _begin(packed, folder, manifest)
    groups = [group for layout in manifest.layouts.values() for group in layout.groups()]
    written = size_bytes = 0
    with (
        (progress or Silent()).start("unpacking", total=len(groups), unit="groups") as bar,
        ThreadPoolExecutor(UNPACK_THREADS) as pool,
    ):
        for count in pool.map(
            lambda group: _write_group(packed, folder, manifest, readers[group.split], group),
            groups,
        ):
            written, size_bytes = written + (count > 0), size_bytes + count
            bar.advance(1, size_bytes=count)
    with explain_refusal(folder), folder.lock(wait=True):
        folder.replace(MANIFEST, _read(packed, MANIFEST))
    return written, size_bytes


def _check_packed(packed: Storage) -> None:
    there = packed.is_remote or packed.exists("")
    if not (packed.is_single_file and there):
        found = "a folder or bucket" if there else "missing"
        raise CacheError(
            f"{packed}: it is {found}, expected a packed cache; "
            "give the file that `export` has written"
        )


def _begin(packed: Storage, folder: Storage, manifest: Manifest) -> None:
    """Write the folder and every document but records and manifest. Raises CacheError."""
    with explain_refusal(folder):
        folder.create()
        with folder.lock(wait=True):
            if look_for_manifest(folder)[0]:
                raise CacheError(
                    f"{folder}: it is a cache already, expected a new folder; choose another"
                )
            check_same_cache(folder, manifest)
            folder.make_folders(COMMITS)
            for key in _list_documents(manifest):
                above = key.rpartition("/")[0]
                folder.check_inside(above, cure="remove the link")
                folder.make_folders(above)
                folder.replace(key, _read(packed, key))


def _list_documents(manifest: Manifest) -> Iterator[str]:
    """Keys of the documents that the manifest implies, whatever else the file holds."""
    yield from (document.key for document in list_metadata(manifest))
    yield from (
        basis_key(level) for level, one in manifest.encodings.items() if one.kind == "lowrank"
    )


def _write_group(
    packed: Storage, folder: Storage, manifest: Manifest, reader: CacheReader, group: Group
) -> int:
    """Write a group. Returns the bytes of its shard files; 0 if it was there already."""
    stored, layout = read_group_record(packed, manifest, group), manifest.layouts[group.split]

    def read_chunks(spec: ArraySpec) -> list[np.ndarray]:
        samples = range(group.start, group.stop)
        return [reader.read_stored(spec.name, group.view, sample).copy() for sample in samples]

    def check_record(files: Files, crcs: dict[str, list[int]]) -> CommitRecord:
        for name, file in stored.files.items():
            if (files[name].size_bytes, files[name].sha256) != (file.size_bytes, file.sha256):
                where = packed.name(shard_key(layout.array(name), group))
                what = "its sha256 differs from the commit record"
                raise CacheCorruptError(where, what, cure=packed.repair_cure)
        return stored

    key = commit_key(group)
    with folder.take_lease(group.name, wait=True) as lease:
        if has_record(folder, group):
            if folder.read_document(key, cure="remove it") == _read(packed, key):
                return 0
            retract_group(folder, group, lease=lease)
        return write_chunks(
            folder, layout, group, chunks=read_chunks, record=check_record, lease=lease
        )


def _read(packed: Storage, key: str) -> bytes:
    return packed.read_document(key, cure=packed.repair_cure)
