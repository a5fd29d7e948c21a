"""Creates a cache's documents, extends them by views or a split, and records what is complete."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kdcache.cache.basis import read_bases, write_bases
from kdcache.cache.layout import COMMITS, MANIFEST, SPLITS, Group, record_name
from kdcache.cache.lists import with_data
from kdcache.cache.manifest import Manifest, read_manifest, write_manifest
from kdcache.cache.merge import check_same_cache, find_kept, merge
from kdcache.cache.records import list_records
from kdcache.cache.zarr_metadata import check_document, list_metadata, write_metadata
from kdcache.errors import CacheCorruptError
from kdcache.storage import Storage, open_storage
from kdcache.storage.base import explain_refusal

SCORE = "score"  # the lease of the worker that scores the teacher
MIOUS = ("teacher_miou", "teacher_train_miou", "teacher_per_class_iou")
MEASURED = (*MIOUS, "scored_views", "fidelity")  # information about the samples of today


def open_for_writing(
    storage: Storage, manifest: Manifest, bases: dict[str, np.ndarray] | None = None
) -> Manifest:
    """Create the cache, or prepare the existing one to be continued.

    If the manifest has more views than the existing cache, its arrays grow; a split of unlabelled
    images, or a part with more samples, is added. A manifest that was moved away is written again,
    and committed groups of the same identity are kept.

    Args:
        bases: of the manifest's lowrank levels, level -> float32 [C, R].

    Returns: the manifest as it is now on disk.

    Raises: CacheMismatchError if another cache or foreign files are there, GrownMeanwhileError,
        CacheCorruptError if documents are damaged, CacheError if the folder is unwritable.
    """
    storage = open_storage(storage)
    with explain_refusal(storage):
        storage.create()
        # in a bucket each of many workers would wait for all before it, with nothing to write
        ready = _find_ready(storage, manifest) if storage.is_remote else None
        if ready is not None:
            return ready
        with storage.lock(wait=True):
            there = find_kept(storage, manifest)
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


def complete_views(storage: Storage) -> Manifest:
    """Record in the manifest how many views of each split are complete; the number never falls.

    A growing list whose groups are all there becomes the list of its split; what was measured with
    the list before is forgotten.

    Returns: the manifest as it is now on disk. Raises: CacheError.
    """
    storage = open_storage(storage)
    manifest = read_manifest(storage)
    if _settle(storage, manifest) == manifest:
        return manifest  # without the lock: of many workers only the last has to write
    with explain_refusal(storage), storage.lock(wait=True):
        manifest = _settle(storage, read_manifest(storage))
        write_manifest(storage, manifest)
    return manifest


def _settle(storage: Storage, manifest: Manifest) -> Manifest:
    """The manifest as the groups that are there make it."""
    manifest = replace(manifest, complete_views=_count_complete(storage, manifest))
    done = {
        split: listing
        for split, listing in manifest.growing.items()
        if all(
            manifest.complete_views[part] == manifest.layouts[part].num_views
            for part in listing.parts
        )
    }
    if not done:
        return manifest
    is_changed = any(done[split].sha256 != manifest.find_list(split).sha256
                     for split in done.keys() & set(SPLITS))  # fmt: skip
    return replace(
        manifest,
        identity={
            split: with_data(facts, done[split].sha256) if split in done else facts
            for split, facts in manifest.identity.items()
        },
        lists={**manifest.lists, **done},
        growing={split: x for split, x in manifest.growing.items() if split not in done},
        information={
            name: value
            for name, value in manifest.information.items()
            if name not in MEASURED or not is_changed
        },
    )


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


def find_missing_groups(storage: Storage, manifest: Manifest, part: str) -> list[Group]:
    """Shard groups of a split or part that have no commit record, and a sample of the list that
    phase one is to finish.

    Raises CacheError.
    """
    there = list_records(open_storage(storage))
    groups = manifest.list_groups(part, wanted=True)
    return [group for group in groups if record_name(group) not in there]


def _count_complete(storage: Storage, manifest: Manifest) -> dict[str, int]:
    """Split -> number of views that are complete, or once were."""

    def count(part: str) -> int:
        missing = (group.view for group in find_missing_groups(storage, manifest, part))
        return min(missing, default=manifest.layouts[part].num_views)

    return {part: max(manifest.complete_views[part], count(part)) for part in manifest.layouts}


def _find_ready(storage: Storage, manifest: Manifest) -> Manifest | None:
    """The existing manifest if nothing has to be written, else None."""
    there = find_kept(storage, manifest)
    merged = None if there is None else merge(storage, there, manifest)
    if merged is None or (merged.layouts, merged.growing) != (there.layouts, there.growing):
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
