"""A cache's folder and its manifest: made ready, held for a moment, told what is complete."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import singledispatch
from pathlib import Path

import numpy as np

from kdcache import durable
from kdcache.cache.basis import read_bases, write_bases
from kdcache.cache.identity import check_identity
from kdcache.cache.layout import COMMITS, LEASES, Group, SplitLayout, manifest_path, record_name
from kdcache.cache.manifest import Manifest, read_manifest, write_manifest
from kdcache.cache.metadata import check_document, list_metadata, write_metadata
from kdcache.cache.records import find_committed, list_records, read_record
from kdcache.errors import (
    CacheCorruptError,
    CacheError,
    CacheMismatchError,
    OtherCacheError,
    Phrase,
    describe,
)
from kdcache.storage.lock import LOCK, hold_folder
from kdcache.storage.place import Place, is_far

log = logging.getLogger("kdcache")


def open_for_writing(
    root: Place, manifest: Manifest, bases: dict[str, np.ndarray] | None = None
) -> Manifest:
    """Create the cache, or make the one that is there ready to go on; more views than before make its arrays longer.

    A manifest that was moved away is made anew: committed groups of the same identity are kept.

    Args:
        bases: of the manifest's lowrank levels, level -> float32 [C, R].

    Returns: the manifest as it is now on disk. Raises: CacheMismatchError where another cache or foreign files are there,
    CacheCorruptError where documents are damaged, CacheError where the folder is unwritable.
    """
    with explain_refusal(root):
        make_root(root)
        ready = _find_ready(root, manifest) if is_far(root) else None
        if ready is not None:
            return ready
        with hold_folder(root, wait=True):
            grows = manifest_path(root).exists()
            manifest = check_same_cache(root, manifest)
            durable.make_folders(root / COMMITS, below=root)
            durable.sync_folder(
                root / COMMITS
            )  # a commit may have been killed between its rename and this
            write_bases(root, bases or {})
            if grows:  # the manifest first: until its views are complete, arrays may be shorter than it says
                write_manifest(root, manifest)
                write_metadata(root, manifest)
            else:  # the manifest last: without it the folder is only begun, and an earlier beginning counts for nothing
                write_metadata(root, manifest, replace=True)
                write_manifest(root, manifest)
    return manifest


def complete_views(root: Place) -> Manifest:
    """Write into the manifest how many views of each split are complete; the number never falls. Returns the manifest."""
    manifest = read_manifest(root)
    if _count_complete(root, manifest) == manifest.complete_views:
        return manifest  # of many workers all but the last find it so, and need not wait for each other
    with explain_refusal(root), hold_folder(root, wait=True):
        manifest = read_manifest(root)
        manifest = replace(manifest, complete_views=_count_complete(root, manifest))
        write_manifest(root, manifest)
    return manifest


def rewrite_metadata(root: Place, bases: dict[str, np.ndarray]) -> None:
    """Write every zarr.json anew that is damaged or missing, and each of these bases that is."""
    with explain_refusal(root), hold_folder(root, wait=True):
        write_bases(root, bases)
        write_metadata(root, read_manifest(root), replace=True)


def add_information(root: Place, facts: dict) -> None:
    """Add facts to the manifest's information."""
    with explain_refusal(root), hold_folder(root, wait=True):
        manifest = read_manifest(root)
        write_manifest(root, replace(manifest, information={**manifest.information, **facts}))


def find_folder(root: Path) -> Path:
    """`root`, or the nearest folder above it that is there. Raises CacheError where a file is in the way."""
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise CacheError(
            f"{existing}: folder is unwritable (it is a file); set cache.path to another place"
        )
    return existing


@singledispatch
def find_free_bytes(root: Path) -> float:
    """What can still be written there. Raises CacheError where a file is in the way."""
    return shutil.disk_usage(find_folder(root)).free


def find_missing_groups(root: Place, layout: SplitLayout) -> list[Group]:
    """Shard groups without a commit record."""
    there = list_records(root)
    return [group for group in layout.groups() if record_name(group) not in there]


def check_same_cache(root: Place, manifest: Manifest) -> Manifest:
    """The manifest that `root` would have with at least these views; nothing is written.

    Raises: CacheMismatchError where `root` holds another cache or foreign files.
    """
    if manifest_path(root).exists() or manifest_path(root).is_symlink():
        return _merge(root, read_manifest(root), manifest)
    if (root.exists() or root.is_dir()) and not _is_begun(root, manifest):
        read_manifest(root)  # says that it is no cache
    for layout in manifest.layouts.values() if root.is_dir() else ():
        for group in find_committed(root, layout.groups()):
            _check_kept_record(root, manifest, group)
    return manifest


def check_free_space(root: Place, *, needed_bytes: int, free_bytes: int, at_most: bool) -> None:
    """Raises CacheError where the disk cannot hold what is still to be written; only warns where a codec may make that less."""
    if needed_bytes > free_bytes and at_most:
        log.warning(
            "%s: up to %.2f GB are still to be written, as far as the codec gains nothing, and %.2f GB are free; a full disk "
            "ends in a line, and what is committed by then is kept", root, needed_bytes / 1e9, free_bytes / 1e9,
        )  # fmt: skip
    elif needed_bytes > free_bytes:
        found, expected = (
            Phrase(f"{free_bytes / 1e9:.2f} GB"),
            Phrase(f"{needed_bytes / 1e9:.2f} GB or more"),
        )
        cure = "make room, set cache.path to another disk or cache.encoding compact, or lower augment.views or cache.levels"
        raise CacheError(
            describe(root, field="free disk space", found=found, expected=expected, cure=cure)
        )


@contextmanager
def explain_refusal(root: Place) -> Iterator[None]:
    """Raises CacheError where the disk refuses a document of the cache."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{root}: folder is unwritable ({error.strerror}); make room, mend its permissions or set cache.path, and run again"
        ) from None


@singledispatch
def check_changeable(root: Place) -> None:
    """Raises CacheError where nothing can be changed, whoever asks."""


@singledispatch
def make_root(root: Path) -> None:
    """The folder of a cache, if it is not there. Raises OSError."""
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if existing.is_dir():
        durable.make_folders(root.absolute(), below=existing.absolute())
    else:
        raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(existing))


def _check_kept_record(root: Place, manifest: Manifest, group: Group) -> None:
    """A record that outlived its manifest must belong to the cache of these settings. Raises CacheError."""
    layout, identity = manifest.layouts[group.split], manifest.split_hash(group.split)
    try:
        read_record(
            root, layout, group, identity=identity, cure="move it away: its group is computed again"
        )
    except OtherCacheError as error:
        cure = "use the settings it was built with (config.yaml of a run has them), or set cache.path to another folder"
        raise CacheMismatchError(
            f"{error.where}: its identity is not that of these settings; {cure}"
        ) from None


def _is_begun(root: Place, manifest: Manifest) -> bool:
    """Whether a folder without manifest holds nothing, or nothing but a cache's parts."""
    if not root.is_dir():
        return False
    names = {entry.name for entry in root.iterdir()}
    partials = {
        durable.partial_path(path).name for path in (manifest_path(root), root / "zarr.json")
    }
    ours = {LOCK, COMMITS, LEASES, "zarr.json", *partials}
    return names <= ours or ({COMMITS, LEASES} & names and names <= ours | set(manifest.layouts))


def _merge(root: Place, existing: Manifest, wanted: Manifest) -> Manifest:
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
                describe(
                    root, field="cache.shard_samples", found=found, expected=expected, cure=cure
                )
            )
        layouts[split] = replace(layout, num_views=max(layout.num_views, old.num_views))
    information = {**existing.information, **wanted.information}
    return Manifest(existing.identity, layouts, existing.complete_views, information)


def _count_complete(root: Place, manifest: Manifest) -> dict[str, int]:
    """Views of each split that are complete, or have been once."""

    def count(layout: SplitLayout) -> int:
        return min(
            (group.view for group in find_missing_groups(root, layout)), default=layout.num_views
        )

    return {
        split: max(manifest.complete_views[split], count(layout))
        for split, layout in manifest.layouts.items()
    }


def _find_ready(root: Place, manifest: Manifest) -> Manifest | None:
    """The manifest that is there, if nothing has to be written: in a bucket each of many workers would wait for all before it."""
    if not manifest_path(root).exists():
        return None
    there = read_manifest(root)
    if _merge(root, there, manifest).layouts != there.layouts:
        return None
    try:
        for document in list_metadata(root, there):
            check_document(root, document)
        read_bases(root, there.encodings)
    except CacheCorruptError:
        return None
    return there
