"""Is the cache that is there the one these settings ask for, and what do both make together?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kdcache.cache.facts import check_identity, join_devices
from kdcache.cache.layout import COMMITS, MANIFEST, SPLITS, UNLABELLED, Group, find_role
from kdcache.cache.manifest import Manifest, find_manifest, read_manifest
from kdcache.cache.records import find_begun_splits, find_committed, read_record
from kdcache.errors import CacheError, CacheMismatchError, OtherCacheError, describe
from kdcache.storage import Storage, open_storage
from kdcache.storage.base import LEASES
from kdcache.storage.lock import LOCK


class GrownMeanwhileError(CacheError):
    """Another process has changed the lists of the cache since its manifest was read."""


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
    tables = {
        name: {part: one for part, one in getattr(there, name).items() if find_role(part) in SPLITS}
        for name in ("identity", "layouts", "complete_views", "lists", "growing", "parts")
    }
    return replace(there, **tables)


def check_same_cache(storage: Storage, manifest: Manifest) -> Manifest:
    """The manifest that `open_for_writing` would write; nothing is changed.

    Raises: CacheMismatchError if the storage holds another cache or foreign files.
    """
    storage = open_storage(storage)
    if storage.exists(MANIFEST):
        existing = find_kept(storage, manifest)
        if existing is None:
            return manifest
        merged = merge(storage, existing, manifest)
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


def find_kept(storage: Storage, wanted: Manifest) -> Manifest | None:
    """The manifest that is there, but of another cache only what was begun. Raises CacheError."""
    there = find_manifest(storage)
    if there is None:
        return None
    try:
        merge(storage, there, wanted)
        return there
    except CacheMismatchError:
        return find_begun(storage)


def merge(storage: Storage, existing: Manifest, wanted: Manifest) -> Manifest:
    """The existing manifest, with at least the wanted views and splits.

    A split of unlabelled images that is not asked for stays as it is.

    Raises CacheMismatchError if it is another cache.
    """
    ours, theirs = ({p: part.sha256 for p, part in m.parts.items()} for m in (wanted, existing))
    is_behind = wanted.lists != existing.lists or not ours.items() >= theirs.items()
    if is_behind and (wanted.parts or wanted.lists):
        raise GrownMeanwhileError(f"{storage}: its lists were changed by another process")
    cure = "rebuild it in another folder (cache.path) or change the settings"
    check_same_identity(storage, found=existing.identity, expected=wanted.identity, cure=cure)
    if is_behind:
        raise GrownMeanwhileError(f"{storage}: its lists were changed by another process")
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
    kept = {s: one for s, one in existing.growing.items() if s not in wanted.identity}
    return Manifest(
        {**wanted.identity, **existing.identity},
        layouts,
        {**wanted.complete_views, **existing.complete_views},
        _merge_information(existing, wanted),
        existing.lists,
        {**kept, **wanted.growing},
        wanted.parts,
    )


def _merge_information(existing: Manifest, wanted: Manifest) -> dict:
    """Both; `dataset.unlabelled` stays if that split is not asked for: repair needs it."""
    information = {**existing.information, **wanted.information}
    information |= join_devices(existing.information, wanted.information)
    settings = information["settings"]
    if UNLABELLED in existing.layouts and settings["dataset"].get("unlabelled") is None:
        old = existing.information["settings"]["dataset"]
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
