"""Packs a cache, or some of its levels and views, into one HDF5 file.

Every chunk is checked before it is written. The file is read back before it gets its name.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdcache import disk
from kdcache.cache.basis import basis_key
from kdcache.cache.encodings import list_arrays
from kdcache.cache.facts import describe_array
from kdcache.cache.flat import flatten_manifest, flatten_record
from kdcache.cache.layout import MANIFEST, Group, commit_key, find_version
from kdcache.cache.manifest import Manifest, describe_manifest, read_manifest
from kdcache.cache.packed_writer import (
    check_free,
    check_new,
    create_file,
    explain_disk,
    find_filter,
    hold,
)
from kdcache.cache.reader import CacheReader
from kdcache.cache.records import CommitRecord, seal_record
from kdcache.cache.zarr_metadata import list_metadata
from kdcache.config import LEVELS
from kdcache.config.parser import make_config, read_stored_of_cache
from kdcache.errors import CacheError, Phrase, SettingsError, describe
from kdcache.machine.process import check_lock
from kdcache.progress import Progress, Silent
from kdcache.seals import seal_json
from kdcache.storage import Storage, open_storage
from kdcache.storage.packed_table import check_count

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
        num_views: how many views of training and unlabelled images to pack, from the first; None:
            all.

    Raises: CacheError if the cache is half-built or damaged or has a codec without a filter in
        HDF5, or if `out` exists or cannot be written; SettingsError if the cache does not have
        these levels or views.
    """
    storage = open_storage(place)
    progress, source = progress or Silent(), read_manifest(storage)
    manifest = take_subset(flatten_manifest(source), levels=levels, num_views=num_views)
    _check_codecs(storage, manifest)
    check_new(out)
    check_free(out, manifest)
    readers = _open(storage, source, manifest)
    documents = _list_documents(storage, source, manifest, readers)
    partial = disk.partial_path(out)
    with explain_disk(out), hold(partial) as descriptor:
        with create_file(partial, descriptor, manifest, documents) as packed:
            _walk(readers, manifest, "packing", progress, packed.put)
            packed.finish()
        _read_back(partial, progress)
        check_lock(partial, descriptor)
        disk.rename_new(partial, out)
        disk.sync_folder(out.parent)
    num_samples = sum(layout.num_views * layout.num_samples for layout in manifest.layouts.values())
    return Packed(num_samples, out.stat().st_size)


def _check_codecs(storage: Storage, manifest: Manifest) -> None:
    for split, layout in manifest.layouts.items():
        check_count(f"{storage}: {split}", layout.num_views * layout.num_samples)
        for spec in (spec for spec in layout.arrays if spec.codec):
            try:
                find_filter(spec)
            except CacheError as error:
                raise CacheError(f"{storage}: array {layout.split}/{error}") from None


def _open(storage: Storage, source: Manifest, manifest: Manifest) -> dict[str, CacheReader]:
    """Split -> a reader of the cache of `source`, for the views of `manifest`."""
    return {
        split: CacheReader(storage, source, split, num_views=layout.num_views, check="always")
        for split, layout in manifest.layouts.items()
    }


def _list_documents(
    storage: Storage, source: Manifest, manifest: Manifest, readers: dict[str, CacheReader]
) -> Iterator[tuple[str, bytes]]:
    """(key, contents) of each document; a whole cache keeps its documents byte for byte.

    One that grew becomes the cache that a build for today's lists would make.
    """
    whole = manifest is source

    def read(key: str, make: Callable[[], bytes]) -> tuple[str, bytes]:
        return key, storage.read_document(key, cure=storage.repair_cure) if whole else make()

    yield read(MANIFEST, lambda: seal_json(describe_manifest(manifest)))
    for document in list_metadata(manifest):
        contents = document.contents
        yield read(document.key, lambda contents=contents: json.dumps(contents, indent=2).encode())
    for level, encoding in manifest.encodings.items():
        if encoding.kind == "lowrank":
            key = basis_key(level)
            yield key, storage.read_document(key, cure=storage.repair_cure)
    for group in (group for layout in manifest.layouts.values() for group in layout.groups()):
        reader = readers[group.split]
        yield read(commit_key(group), lambda one=(reader, manifest, group): _cut(*one))


def _cut(reader: CacheReader, manifest: Manifest, group: Group) -> bytes:
    """The group's commit record in the smaller or plain cache of `manifest`."""
    record = flatten_record(reader, manifest, group)
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


def take_subset(manifest: Manifest, *, levels: list[str] | None, num_views: int | None) -> Manifest:
    """The manifest of some levels and views; `manifest` itself if nothing is left out.

    It is the manifest of a cache whose settings ask for no more.

    Args:
        levels: the levels to keep, [] for logits alone; None: all.
        num_views: how many views of training and unlabelled images to keep, from the first; None:
            all.

    Raises: SettingsError for a level that is not cached, or more views than the cache is to hold.
    """
    layout = manifest.layouts["train"]
    cached = [name for name in manifest.encodings if name != "logits"]
    levels, num_views = cached if levels is None else levels, num_views or layout.num_views
    lost = next((level for level in levels if level not in cached), None)
    if lost is not None:
        raise _refuse_option(
            "--levels", lost, f"some of the cached levels ({', '.join(cached) or 'none'})"
        )
    if num_views > layout.num_views:
        raise _refuse_option(
            "--views", num_views, f"1 to {layout.num_views}, the views of the cache"
        )
    if set(levels) == set(cached) and num_views == layout.num_views:
        return manifest
    names = {"logits", *levels}
    encodings = {name: encoding for name, encoding in manifest.encodings.items() if name in names}
    arrays = {
        "image",
        "label",
        *(array for name, encoding in encodings.items() for array in list_arrays(name, encoding)),
    }
    cut = replace(manifest, information=_cut_information(manifest.information, names, num_views))
    for split in manifest.layouts.keys() - {"val"}:
        cut = _cut_split(cut, split, arrays=arrays, names=names, num_views=num_views)
    return cut


def _cut_split(
    manifest: Manifest, split: str, *, arrays: set[str], names: set[str], num_views: int
) -> Manifest:
    """The manifest with a split of these arrays, and of as many views as it has."""
    layout, identity = manifest.layouts[split], manifest.identity[split]
    kept = tuple(spec for spec in layout.arrays if spec.name in arrays)
    num_views = min(num_views, layout.num_views)
    return replace(
        manifest,
        identity={**manifest.identity, split: _cut_identity(identity, kept, names)},
        layouts={**manifest.layouts, split: replace(layout, num_views=num_views, arrays=kept)},
        complete_views={**manifest.complete_views, split: num_views},
    )


def cut_record(record: CommitRecord, manifest: Manifest, group: Group) -> CommitRecord:
    """A group's record with the arrays and the identity of the subset's manifest."""
    names = [spec.name for spec in manifest.layouts[group.split].arrays]
    files, crcs = (
        {name: facts[name] for name in facts if name in names}
        for facts in (record.files, record.crcs)
    )
    return replace(record, identity=manifest.split_hash(group.split), files=files, crcs=crcs)


def _cut_identity(identity: dict, arrays: tuple, names: set[str]) -> dict:
    """A subset's identity, with its facts in the order in which phase one writes them."""
    teacher, encoding = dict(identity["teacher"]), _keep(identity.get("encoding", {}), names)
    teacher["layers"] = _keep(teacher["layers"], names)
    if "high" not in names:  # high_stride concerns only that level
        teacher.pop("high_stride", None)
    cut = {**identity, "format_version": find_version(arrays), "teacher": teacher}
    cut["arrays"] = {array.name: describe_array(array) for array in arrays}
    cut.pop("encoding", None)
    return cut | ({"encoding": encoding} if encoding else {})


def _cut_information(information: dict, names: set[str], num_views: int) -> dict:
    """Information with the settings that ask for the subset.

    Measurements of levels and views that are not in it are left out.
    """
    cut = {name: copy.deepcopy(value) for name, value in information.items() if name != "fidelity"}
    settings = cut["settings"]
    codec_name = make_config(read_stored_of_cache(settings)).cache.codec_name
    settings["augment"]["views"] = num_views
    settings["cache"]["levels"] = [level for level in settings["cache"]["levels"] if level in names]
    if isinstance(settings["cache"].get("encoding"), dict):
        settings["cache"]["encoding"] = _keep(settings["cache"]["encoding"], names)
    # "auto" means another codec without lowrank levels
    if make_config(read_stored_of_cache(settings)).cache.codec_name != codec_name:
        settings["cache"]["codec"] = codec_name
    if "scored_views" in cut:
        cut["scored_views"]["train"] = num_views
    return cut


def _keep(facts: dict, names: set[str]) -> dict:
    return {
        name: value
        for name, value in facts.items()
        if name in names or name not in (*LEVELS, "logits")
    }


def _refuse_option(option: str, found: object, expected: str) -> SettingsError:
    return SettingsError(
        describe(
            "command line",
            field=option,
            found=found,
            expected=Phrase(expected),
            cure=f"change {option}",
        )
    )
