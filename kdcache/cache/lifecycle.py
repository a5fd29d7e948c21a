"""Creates a cache's documents, extends them by views or a split, and records what is complete."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdcache.cache.basis import read_bases, write_bases
from kdcache.cache.facts import check_identity, join_devices
from kdcache.cache.layout import (
    COMMITS,
    MANIFEST,
    SPLITS,
    UNLABELLED,
    Group,
    SplitLayout,
    record_name,
)
from kdcache.cache.manifest import Manifest, find_manifest, read_manifest, write_manifest
from kdcache.cache.records import find_begun_splits, find_committed, list_records, read_record
from kdcache.cache.zarr_metadata import check_document, list_metadata, write_metadata
from kdcache.errors import (
    CacheCorruptError,
    CacheMismatchError,
    OtherCacheError,
    describe,
)
from kdcache.storage import Storage, open_storage
from kdcache.storage.base import LEASES, explain_refusal
from kdcache.storage.lock import LOCK

SCORE = "score"  # the lease of the worker that scores the teacher
log = logging.getLogger("kdcache")


def open_for_writing(
    storage: Storage, manifest: Manifest, bases: dict[str, np.ndarray] | None = None
) -> Manifest:
    """Create the cache, or prepare the existing one to be continued.

    If the manifest has more views than the existing cache, its arrays grow; a split of unlabelled
    images is added. A manifest that was moved away is written again, and committed groups of the
    same identity are kept.

    Args:
        bases: of the manifest's lowrank levels, level -> float32 [C, R].

    Returns: the manifest as it is now on disk.

    Raises: CacheMismatchError if another cache or foreign files are there, CacheCorruptError if
        documents are damaged, CacheError if the folder is unwritable.
    """
    storage = open_storage(storage)
    with explain_refusal(storage):
        storage.create()
        # in a bucket each of many workers would wait for all before it, with nothing to write
        ready = _find_ready(storage, manifest) if storage.is_remote else None
        if ready is not None:
            return ready
        with storage.lock(wait=True):
            there = _find_kept(storage, manifest)
            manifest = check_same_cache(storage, manifest)
            if there is None and storage.exists(MANIFEST):
                storage.remove(MANIFEST)  # of a build that failed before it had committed anything
            storage.make_folders(COMMITS)
            # a commit may have been killed between its rename and this
            storage.flush_folder(COMMITS)
            write_bases(storage, bases or {})
            # a growing cache writes the manifest first: its arrays may be shorter than it says
            # until its views are complete; a new one writes it last: without it nothing counts,
            # and neither does a new split
            if there:
                added = tuple(split for split in manifest.layouts if split not in there.layouts)
                if added:
                    write_metadata(storage, manifest, splits=added, replace=True)
                write_manifest(storage, manifest)
                write_metadata(storage, manifest)
            else:
                write_metadata(storage, manifest, replace=True)
                write_manifest(storage, manifest)
    return manifest


def find_begun(storage: Storage) -> Manifest | None:
    """The manifest, without unlabelled images of which nothing was committed or is being written.

    None if this holds for all splits: the build failed, and its place is free. Raises CacheError.
    """
    there = find_manifest(storage)
    begun = find_begun_splits(storage) if there else set()
    if not there or not (begun or any(there.complete_views.values())):
        return None
    if UNLABELLED in begun or there.complete_views.get(UNLABELLED):
        return there
    parts = (there.identity, there.layouts, there.complete_views)
    return Manifest(
        *({split: part[split] for split in SPLITS} for part in parts), there.information
    )


def complete_views(storage: Storage) -> Manifest:
    """Record in the manifest how many views of each split are complete; the number never falls.

    Returns: the manifest as it is now on disk. Raises: CacheError.
    """
    storage = open_storage(storage)
    manifest = read_manifest(storage)
    if _count_complete(storage, manifest) == manifest.complete_views:
        return manifest  # without the lock: of many workers only the last has to write
    with explain_refusal(storage), storage.lock(wait=True):
        manifest = read_manifest(storage)
        manifest = replace(manifest, complete_views=_count_complete(storage, manifest))
        write_manifest(storage, manifest)
    return manifest


def rewrite_metadata(storage: Storage, bases: dict[str, np.ndarray]) -> None:
    """Rewrite every zarr.json, and each of these bases, that is damaged or missing.

    Raises CacheError.
    """
    with explain_refusal(storage), storage.lock(wait=True):
        write_bases(storage, bases)
        write_metadata(storage, read_manifest(storage), replace=True)


def add_information(storage: Storage | str | Path, facts: dict) -> None:
    """Add facts to the manifest's information. Raises CacheError."""
    storage = open_storage(storage)
    with explain_refusal(storage), storage.lock(wait=True):
        manifest = read_manifest(storage)
        write_manifest(storage, replace(manifest, information={**manifest.information, **facts}))


def find_missing_groups(storage: Storage, layout: SplitLayout) -> list[Group]:
    """Shard groups of a split that have no commit record. Raises CacheError."""
    there = list_records(open_storage(storage))
    return [group for group in layout.groups() if record_name(group) not in there]


def check_same_cache(storage: Storage, manifest: Manifest) -> Manifest:
    """The manifest that `open_for_writing` would write; nothing is changed.

    Raises: CacheMismatchError if the storage holds another cache or foreign files.
    """
    storage = open_storage(storage)
    if storage.exists(MANIFEST):
        existing = _find_kept(storage, manifest)
        if existing is None:
            return manifest
        merged = _merge(storage, existing, manifest)
        _check_kept(storage, merged, [s for s in merged.layouts if s not in existing.layouts])
        return merged
    there = storage.is_folder()
    if (there or storage.exists("")) and not (there and _is_begun(storage, manifest)):
        read_manifest(storage)  # says that it is no cache
    if there:
        _check_kept(storage, manifest, manifest.layouts)
    return manifest


def _check_kept(storage: Storage, manifest: Manifest, splits: Iterable[str]) -> None:
    """Check the records of splits that no manifest names. Raises CacheError."""
    for split in splits:
        for group in find_committed(storage, manifest.layouts[split].groups()):
            _check_kept_record(storage, manifest, group)


def _check_kept_record(storage: Storage, manifest: Manifest, group: Group) -> None:
    """Check that a record that outlived its manifest has the identity of these settings.

    Raises CacheError.
    """
    layout, identity = manifest.layouts[group.split], manifest.split_hash(group.split)
    try:
        read_record(
            storage,
            layout,
            group,
            identity=identity,
            cure="move it away: its group is computed again",
        )
    except OtherCacheError as error:
        cure = (
            "use the settings it was built with (config.yaml of a run has them), "
            "or set cache.path to another folder"
        )
        raise CacheMismatchError(
            f"{error.where}: its identity is not that of these settings; {cure}"
        ) from None


def _is_begun(storage: Storage, manifest: Manifest) -> bool:
    """Whether a folder without a manifest is empty, or holds only parts of a cache."""
    names = storage.list_names()
    partials = {storage.unfinished_key(key) for key in (MANIFEST, "zarr.json")}
    ours = {LOCK, COMMITS, LEASES, "zarr.json", *partials}
    return names <= ours or ({COMMITS, LEASES} & names and names <= ours | set(manifest.layouts))


def _find_kept(storage: Storage, wanted: Manifest) -> Manifest | None:
    """The manifest that is there, but of another cache only what was begun. Raises CacheError."""
    there = find_manifest(storage)
    if there is None:
        return None
    try:
        _merge(storage, there, wanted)
        return there
    except CacheMismatchError:
        return find_begun(storage)


def _merge(storage: Storage, existing: Manifest, wanted: Manifest) -> Manifest:
    """The existing manifest, with at least the wanted views and splits.

    A split of unlabelled images that is not asked for stays as it is.

    Raises CacheMismatchError if it is another cache.
    """
    cure = "rebuild it in another folder (cache.path) or change the settings"
    check_same_identity(storage, found=existing.identity, expected=wanted.identity, cure=cure)
    layouts = dict(existing.layouts)
    for split, layout in wanted.layouts.items():
        old = existing.layouts.get(split, layout)
        if old.shard_samples != layout.shard_samples:
            found, expected = old.shard_samples, layout.shard_samples
            raise CacheMismatchError(
                describe(
                    storage, field="cache.shard_samples", found=found, expected=expected, cure=cure
                )
            )
        layouts[split] = replace(layout, num_views=max(layout.num_views, old.num_views))
    return Manifest(
        {**wanted.identity, **existing.identity},
        layouts,
        {**wanted.complete_views, **existing.complete_views},
        _merge_information(existing, wanted),
    )


def _merge_information(existing: Manifest, wanted: Manifest) -> dict:
    """Both; `dataset.unlabelled` stays if that split is not asked for: repair needs it."""
    information = {**existing.information, **wanted.information}
    information |= join_devices(existing.information, wanted.information)
    if UNLABELLED in existing.layouts and UNLABELLED not in wanted.layouts:
        settings, old = information["settings"], existing.information["settings"]["dataset"]
        dataset = {**settings["dataset"], "unlabelled": old.get("unlabelled")}
        information["settings"] = {**settings, "dataset": dataset}
    return information


def check_same_identity(
    storage: Storage, *, found: dict[str, dict], expected: dict[str, dict], cure: str
) -> None:
    """Raise CacheMismatchError for the first split that both have and that differs.

    Args:
        found, expected: split -> its identity.
    """
    for split in (split for split in expected if split in found):
        pair = found[split], expected[split]
        if split == UNLABELLED:  # so that the message says which images are others
            pair = tuple({UNLABELLED: facts} for facts in pair)
        check_identity(storage, found=pair[0], expected=pair[1], cure=cure)


def _count_complete(storage: Storage, manifest: Manifest) -> dict[str, int]:
    """Split -> number of views that are complete, or once were."""

    def count(layout: SplitLayout) -> int:
        return min(
            (group.view for group in find_missing_groups(storage, layout)), default=layout.num_views
        )

    return {
        split: max(manifest.complete_views[split], count(layout))
        for split, layout in manifest.layouts.items()
    }


def _find_ready(storage: Storage, manifest: Manifest) -> Manifest | None:
    """The existing manifest if nothing has to be written, else None."""
    there = _find_kept(storage, manifest)
    merged = None if there is None else _merge(storage, there, manifest)
    if merged is None or merged.layouts != there.layouts:
        return None
    if merged.information.get("devices") != there.information.get("devices"):
        return None
    try:
        for document in list_metadata(there):
            check_document(storage, document)
        read_bases(storage, there.encodings)
    except CacheCorruptError:
        return None
    return there
