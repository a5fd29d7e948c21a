"""Writes whole shard groups, one owner each, commit record last."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from kdcache.cache.layout import ArraySpec, Group, SplitLayout, manifest_path, shard_path
from kdcache.cache.manifest import Manifest, check_identity, read_manifest, sync_folder, write_manifest
from kdcache.cache.records import CommitRecord, crc32c, has_record, write_record
from kdcache.errors import CacheCorruptError, CacheError, CacheMismatchError, Phrase, describe
from kdcache.lock import LOCK

# zarr drops chunks that equal the fill value unless told otherwise, and forgets that it was told
WRITE_ALL = {"array.write_empty_chunks": True}


def open_for_writing(root: Path, manifest: Manifest) -> None:
    """Create the cache, or make the one that is there ready to go on; more views than before make its arrays longer.

    Args:
        root: folder of the cache.
        manifest: what the cache is to be.

    Raises: CacheMismatchError where another cache or foreign files are there, CacheError where the folder is unwritable.
    """
    try:
        if _is_new(root):
            root.mkdir(parents=True, exist_ok=True)
            write_manifest(root, manifest)  # first: a folder with a manifest can be gone on with
            _ensure_arrays(root, manifest)
        else:
            manifest = _merge(root, read_manifest(root), manifest)
            _ensure_arrays(root, manifest)  # first: arrays may be longer than the manifest says, never shorter
            write_manifest(root, manifest)
        (root / "commits").mkdir(exist_ok=True)
        sync_folder(root)
    except OSError as error:
        raise CacheError(
            f"{root}: folder is unwritable ({error.strerror}); set cache.path or mend its permissions"
        ) from None


def write_group(
    root: Path, layout: SplitLayout, group: Group, *, arrays: dict[str, np.ndarray], ids: list[str], views: list[dict]
):
    """Write all arrays of one shard group, flush them to disk, then commit.

    Args:
        arrays: name -> contiguous [stop - start, *item_shape] of the array's dtype.
        ids, views: sample ids and view parameters, for the record.

    Raises: CacheError where the disk refuses; committed groups stay.
    """
    crcs = {spec.name: [crc32c(item) for item in arrays[spec.name]] for spec in layout.arrays}
    try:
        files = {spec.name: _write_shard(root, spec, group, arrays[spec.name]) for spec in layout.arrays}
        write_record(root, group, CommitRecord(ids, files, crcs, views))
    except OSError as error:
        raise CacheError(
            f"{root}: shard group {group.name} cannot be written ({error.strerror}); "
            "mend that and run `python -m cache_teacher` again, what is committed is kept"
        ) from None


def find_missing_groups(root: Path, layout: SplitLayout) -> list[Group]:
    """Shard groups without a commit record."""
    return [group for group in layout.groups() if not has_record(root, group)]


def check_same_cache(root: Path, manifest: Manifest) -> None:
    """Raises CacheMismatchError where `root` holds another cache or foreign files; nothing is written."""
    if not _is_new(root):
        _merge(root, read_manifest(root), manifest)


def _is_new(root: Path) -> bool:
    """Whether there is nothing at `root`, or only what a process killed in its first moment left."""
    leftovers = {LOCK, f"{manifest_path(root).name}.partial"}
    return not root.exists() or (root.is_dir() and all(entry.name in leftovers for entry in root.iterdir()))


def _merge(root: Path, existing: Manifest, wanted: Manifest) -> Manifest:
    """The existing cache with at least the wanted views. Raises CacheMismatchError where it is another cache."""
    cure = "rebuild it in another folder (cache.path) or change the settings"
    layouts = {}
    for split, identity in wanted.identity.items():
        check_identity(root, found=existing.identity[split], expected=identity, cure=cure)
    for split, layout in wanted.layouts.items():
        old = existing.layouts[split]
        if old.shard_samples != layout.shard_samples:
            found, expected = old.shard_samples, layout.shard_samples
            raise CacheMismatchError(
                describe(root, field="cache.shard_samples", found=found, expected=expected, cure=cure)
            )
        layouts[split] = replace(layout, num_views=max(layout.num_views, old.num_views))
    return Manifest(existing.identity, layouts, {**existing.information, **wanted.information})


def _ensure_arrays(root: Path, manifest: Manifest) -> None:
    try:
        top = zarr.open_group(root, mode="a", zarr_format=3)
        for layout in manifest.layouts.values():
            split = top.require_group(layout.split)
            for spec in layout.arrays:
                _ensure_array(split, layout, spec)
    except (ValueError, KeyError, TypeError) as error:  # JSON and metadata errors of zarr, which names no file
        reason = " ".join(str(error).split())[:80]
        cure = "delete the zarr.json that is damaged and run again: it is made anew, data stay"
        raise CacheCorruptError(f"{root}: a zarr.json is unreadable ({reason}); {cure}") from None
    for path in (root, *(root / layout.split for layout in manifest.layouts.values())):
        for metadata in (path / "zarr.json", *path.glob("*/zarr.json")):
            _sync_file(metadata)
            sync_folder(metadata.parent)


def _ensure_array(split: zarr.Group, layout: SplitLayout, spec: ArraySpec) -> None:
    """Create an array, or make it longer where views were added."""
    shape = (layout.num_views, layout.num_samples, *spec.item_shape)
    if spec.name in split:
        if split[spec.name].shape[0] < layout.num_views:
            split[spec.name].resize(shape)
        return
    split.create_array(
        spec.name,
        shape=shape,
        chunks=(1, 1, *spec.item_shape),
        shards=(1, layout.shard_samples, *spec.item_shape),
        dtype=spec.dtype,
        fill_value=0,
        compressors=[Crc32cCodec()],
        dimension_names=["view", "sample", *(None for _ in spec.item_shape)],
    )


def _write_shard(root: Path, spec: ArraySpec, group: Group, block: np.ndarray) -> int:
    """Write one shard file through zarr and flush it; returns its size in bytes."""
    path = shard_path(root, spec, group)
    path.unlink(missing_ok=True)  # zarr would read a torn leftover before replacing it
    for leftover in path.parent.glob("*.partial"):
        leftover.unlink()
    with zarr.config.set(WRITE_ALL):
        array = zarr.open_array(root / group.split / spec.name, mode="r+")
        array[group.view, group.start : group.stop] = block
    size_bytes = _sync_file(path)
    for folder in path.relative_to(root / group.split / spec.name).parents:  # each may be new in the one above
        sync_folder(root / group.split / spec.name / folder)
    return size_bytes


def _sync_file(path: Path) -> int:
    """Flush a file to disk; returns its size in bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def check_free_space(root: Path, *, needed_bytes: int, free_bytes: int) -> None:
    """Raises CacheError where the disk cannot hold what is still to be written."""
    if needed_bytes > free_bytes:
        found, expected = Phrase(f"{free_bytes / 1e9:.2f} GB"), Phrase(f"{needed_bytes / 1e9:.2f} GB or more")
        cure = "make room, set cache.path to another disk, or lower augment.views or cache.levels"
        raise CacheError(describe(root, field="free disk space", found=found, expected=expected, cure=cure))
