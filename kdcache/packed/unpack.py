"""Makes a folder of a packed cache again, byte for byte: shards are rebuilt and held against their records, manifest last."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kdcache import durable
from kdcache.cache.basis import basis_path
from kdcache.cache.documents import read_bytes
from kdcache.cache.folder import check_same_cache, explain_refusal, make_root
from kdcache.cache.index import read_group_record
from kdcache.cache.layout import COMMITS, ArraySpec, Group, commit_path, manifest_path, shard_path
from kdcache.cache.lease import take_lease
from kdcache.cache.manifest import Manifest, look_for_manifest, read_manifest
from kdcache.cache.metadata import list_metadata
from kdcache.cache.reader import CacheReader
from kdcache.cache.records import CommitRecord, has_record
from kdcache.cache.shard import check_inside
from kdcache.cache.writer import Files, retract_group, write_chunks
from kdcache.errors import CacheCorruptError, CacheError
from kdcache.packed.path import PackedPath
from kdcache.packed.table import CURE
from kdcache.progress import Progress, Silent
from kdcache.storage.lock import hold_folder
from kdcache.storage.place import Place, is_far

UNPACK_THREADS = 2


def unpack_cache(root: Place, out: Path, *, progress: Progress | None = None) -> tuple[int, int]:
    """Write the packed cache at `root` into the folder `out`; begun again, it goes on where it was.

    Returns: number of shard groups written now, and their bytes. Raises: CacheError where `root` is no packed cache or damaged,
    `out` holds anything but an unpacking that was interrupted, or the disk refuses.
    """
    _check_packed(root)
    manifest = read_manifest(root)
    readers = {
        split: CacheReader(root, manifest, split, check="always") for split in manifest.layouts
    }
    _begin(root, out, manifest)
    groups = [group for layout in manifest.layouts.values() for group in layout.groups()]
    written = size_bytes = 0
    with (
        (progress or Silent()).start("unpacking", total=len(groups), unit="groups") as bar,
        ThreadPoolExecutor(UNPACK_THREADS) as pool,
    ):
        for count in pool.map(
            lambda group: _write_group(root, out, manifest, readers[group.split], group), groups
        ):
            written, size_bytes = written + (count > 0), size_bytes + count
            bar.advance(1, size_bytes=count)
    with explain_refusal(out), hold_folder(out, wait=True):
        durable.replace_file(manifest_path(out), _read(root, manifest_path(root)))
    return written, size_bytes


def _check_packed(root: Place) -> None:
    if not isinstance(root, PackedPath) or not root.exists():
        found = "a folder or bucket" if is_far(root) or root.exists() else "missing"
        raise CacheError(
            f"{root}: it is {found}, expected a packed cache; give the file that `export` has written"
        )


def _begin(root: PackedPath, out: Path, manifest: Manifest) -> None:
    """The folder, and every document but records and manifest. Raises CacheError."""
    with explain_refusal(out):
        make_root(out)
        with hold_folder(out, wait=True):
            if look_for_manifest(out)[0]:
                raise CacheError(
                    f"{out}: it is a cache already, expected a new folder; choose another"
                )
            check_same_cache(out, manifest)
            durable.make_folders(out / COMMITS, below=out)
            for path in _list_documents(root, manifest):
                target = out / path.inner
                check_inside(out, target.parent, cure="remove the link")
                durable.make_folders(target.parent, below=out)
                durable.replace_file(target, _read(root, path))


def _list_documents(root: PackedPath, manifest: Manifest) -> Iterator[PackedPath]:
    """Those that the manifest implies, whatever else the file may name."""
    yield from (document.path for document in list_metadata(root, manifest))
    yield from (
        basis_path(root, level)
        for level, one in manifest.encodings.items()
        if one.kind == "lowrank"
    )


def _write_group(
    root: PackedPath, out: Path, manifest: Manifest, reader: CacheReader, group: Group
) -> int:
    """Bytes of the group's shard files; 0 where it was there."""
    stored, layout = read_group_record(root, manifest, group), manifest.layouts[group.split]

    def read_chunks(spec: ArraySpec) -> list[np.ndarray]:
        samples = range(group.start, group.stop)
        return [reader.read_stored(spec.name, group.view, sample).copy() for sample in samples]

    def check_record(files: Files, crcs: dict[str, list[int]]) -> CommitRecord:
        for name, file in stored.files.items():
            if (files[name].size_bytes, files[name].sha256) != (file.size_bytes, file.sha256):
                path = shard_path(root, layout.array(name), group)
                raise CacheCorruptError(
                    path, "its sha256 differs from the commit record", cure=CURE
                )
        return stored

    with take_lease(out, group.name, wait=True) as lease:
        if has_record(out, group):
            if commit_path(out, group).read_bytes() == _read(root, commit_path(root, group)):
                return 0
            retract_group(out, group, lease=lease)
        return write_chunks(
            out, layout, group, chunks=read_chunks, record=check_record, lease=lease
        )


def _read(root: PackedPath, path: PackedPath) -> bytes:
    return read_bytes(path, cure=CURE)
