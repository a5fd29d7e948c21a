"""Some levels and the first views of a cache, as the cache that settings which ask for no more
would have been.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from kdcache.cache.encodings import list_arrays
from kdcache.cache.identity import describe_array
from kdcache.cache.layout import Group, find_version
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import CommitRecord
from kdcache.config import LEVELS
from kdcache.config.parser import drop_unknown, make_config
from kdcache.errors import Phrase, SettingsError, describe


def take_subset(manifest: Manifest, *, levels: list[str] | None, num_views: int | None) -> Manifest:
    """The manifest of some levels and views; `manifest` itself if nothing is left out.

    It is the manifest of a cache whose settings ask for no more.

    Args:
        levels: the levels to keep, [] for logits alone; None: all.
        num_views: how many training views to keep, from the first; None: all.

    Raises: SettingsError for a level that is not cached, or more views than the cache is to hold.
    """
    layout = manifest.layouts["train"]
    cached = [name for name in manifest.encodings if name != "logits"]
    levels, num_views = cached if levels is None else levels, num_views or layout.num_views
    lost = next((level for level in levels if level not in cached), None)
    if lost is not None:
        raise _refuse(
            "--levels", lost, f"some of the cached levels ({', '.join(cached) or 'none'})"
        )
    if num_views > layout.num_views:
        raise _refuse("--views", num_views, f"1 to {layout.num_views}, the views of the cache")
    if set(levels) == set(cached) and num_views == layout.num_views:
        return manifest
    names = {"logits", *levels}
    encodings = {name: encoding for name, encoding in manifest.encodings.items() if name in names}
    arrays = {
        "image",
        "label",
        *(array for name, encoding in encodings.items() for array in list_arrays(name, encoding)),
    }
    kept = tuple(spec for spec in layout.arrays if spec.name in arrays)
    return Manifest(
        identity={
            **manifest.identity,
            "train": _cut_identity(manifest.identity["train"], kept, names),
        },
        layouts={**manifest.layouts, "train": replace(layout, num_views=num_views, arrays=kept)},
        complete_views={**manifest.complete_views, "train": num_views},
        information=_cut_information(manifest.information, names, num_views),
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
    codec_name = make_config(drop_unknown(settings)).cache.codec_name
    settings["augment"]["views"] = num_views
    settings["cache"]["levels"] = [level for level in settings["cache"]["levels"] if level in names]
    if isinstance(settings["cache"].get("encoding"), dict):
        settings["cache"]["encoding"] = _keep(settings["cache"]["encoding"], names)
    # "auto" means another codec without lowrank levels
    if make_config(drop_unknown(settings)).cache.codec_name != codec_name:
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


def _refuse(option: str, found: object, expected: str) -> SettingsError:
    return SettingsError(
        describe(
            "command line",
            field=option,
            found=found,
            expected=Phrase(expected),
            cure=f"change {option}",
        )
    )
