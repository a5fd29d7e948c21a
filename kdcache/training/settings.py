"""Settings of phase two: those given are checked against the cache, the rest come from it."""

from __future__ import annotations

import os

import torch

from kdcache.cache.facts import check_identity
from kdcache.cache.layout import UNLABELLED
from kdcache.cache.manifest import Manifest
from kdcache.cache.settings import (
    VAL_VIEW_RULE,
    check_encodings,
    dataset_facts,
    read_config,
    read_settings,
    teacher_facts,
    train_view_rule,
)
from kdcache.config import Config, config_to_dict
from kdcache.config.names import FROM_CACHE
from kdcache.config.parser import flatten, make_config, merge
from kdcache.errors import (
    CacheIncompleteError,
    CacheMismatchError,
    Phrase,
    SettingsError,
    describe,
    refuse,
)
from kdcache.models.weights import find_teacher_file, hash_weights, read_teacher_weights
from kdcache.storage import Storage
from kdcache.training.order import find_smallest_batch
from kdcache.training.tracking import check_tracker

FIXED = (
    "dataset.train_split",
    "dataset.val_split",
    "teacher.high_stride",
    "teacher.mean",
    "teacher.options",
    "teacher.std",
    "cache.shard_samples",
)
"""Settings of the cache that its identity does not name, or only if they are not the default."""
# a cache written by an older version may lack some of these
KEPT_OF_CACHE = ("levels", "shard_samples", "encoding", "rank", "codec")


def resolve_config(root: Storage, manifest: Manifest, given: dict) -> Config:
    """Settings for training: defaults, then the cache's, then those given.

    Raises: CacheMismatchError, with both values, if a given setting differs from the cache;
    CacheIncompleteError for more views than are cached; SettingsError for a feature term without
    features, or a crop larger than the cached views.
    """
    stored = read_settings(manifest)
    base = {section: stored[section] for section in FROM_CACHE}
    base = merge(base, {"augment": {"views": manifest.listed["train"].num_views}})
    base["cache"] = {
        name: value for name, value in stored["cache"].items() if name in KEPT_OF_CACHE
    }
    config = make_config(base, given)
    check_given(root, manifest, given, cure="change the settings or cache.path")
    check_tracker(config.run.track)
    _check_uses(root, manifest, config, given_views="views" in given.get("augment", {}))
    views = min(config.augment.views, manifest.listed["train"].num_views)
    return make_config(base, given, {"augment": {"views": views}})


def check_given(root: Storage, manifest: Manifest, given: dict, *, cure: str) -> None:
    """Check the cache's identity against its settings overlaid by the given ones.

    Facts that only the data set or the weights tell are not checked.

    Raises: CacheMismatchError, with both values, if the cache was built with other settings.
    """
    config, given = read_config(manifest, given), flatten(given)
    cached_levels = list(manifest.identity["train"]["teacher"]["layers"])
    absent = [level for level in config.cache.levels if level not in cached_levels]
    if absent:
        other = f"cache {absent[0]} in another folder or leave it out of cache.levels"
        raise CacheMismatchError(
            describe(
                root,
                field="cache.levels",
                found=cached_levels,
                expected=config.cache.levels,
                cure=other,
            )
        )
    full = make_config(merge(config_to_dict(config), {"cache": {"levels": cached_levels}}))
    for split, identity in manifest.identity.items():
        train = split != "val"
        facts = {
            "dataset": dataset_facts(full, train=train),
            "augment": train_view_rule(full) if train else VAL_VIEW_RULE,
            "teacher": teacher_facts(full, train=train) | _weights_fact(full, given),
        }
        found = {part: {name: identity[part].get(name) for name in facts[part]} for part in facts}
        check_identity(root, found=found, expected=facts, cure=cure)
    cached = read_config(manifest)
    check_encodings(root, cached, full, cure=cure)
    known = flatten(config_to_dict(cached))
    _check_unlabelled(root, known["dataset.unlabelled"], given.get("dataset.unlabelled"))
    for name in FIXED:
        if name in given and given[name] != known[name]:
            raise CacheMismatchError(
                describe(root, field=name, found=known[name], expected=given[name], cure=cure)
            )


def _check_unlabelled(root: Storage, cached: str | None, given: str | None) -> None:
    """Raise CacheMismatchError if other unlabelled images are given; none fit every cache.

    A folder may be written in any way.
    """
    paths = [os.path.realpath(name) for name in (cached, given) if name is not None]
    if given is None or given == cached or len(paths) == 2 and paths[0] == paths[1]:
        return
    cure = "leave it out or change cache.path"
    if cached is None:
        cure = "run `python -m cache_teacher` with it to add them, or leave it out"
    raise CacheMismatchError(
        describe(root, field="dataset.unlabelled", found=cached, expected=given, cure=cure)
    )


def _weights_fact(config: Config, given: dict) -> dict:
    """The hash of the given weights, if their file is on this machine."""
    if "teacher.weights" not in given or not find_teacher_file(
        config.teacher.arch, config.teacher.weights
    ):
        return {}
    return {
        "weights_sha256": hash_weights(
            read_teacher_weights(
                config.teacher.arch, config.teacher.weights, key=config.teacher.weights_key
            )
        )
    }


def _check_uses(root: Storage, manifest: Manifest, config: Config, *, given_views: bool) -> None:
    cached = manifest.listed["train"].num_views
    if given_views and config.augment.views > cached:
        cure = "run `python -m cache_teacher` with these settings to add views"
        raise CacheIncompleteError(
            describe(
                root,
                field="number of cached views (augment.views)",
                found=cached,
                expected=config.augment.views,
                cure=cure,
            )
        )
    if config.loss.gamma and not config.cache.levels:
        expected = Phrase("0 where cache.levels is empty")
        raise SettingsError(
            describe(
                "settings",
                field="loss.gamma",
                found=config.loss.gamma,
                expected=expected,
                cure="set loss.gamma 0",
            )
        )
    _check_share(root, manifest, config)
    check_crop(root, config)


def _check_share(root: Storage, manifest: Manifest, config: Config) -> None:
    """Check that a run that wants samples without a label finds them in the cache."""
    share = config.train.unlabelled_share
    if share is not None and UNLABELLED not in manifest.listed:
        cure = (
            "add them with `python -m cache_teacher` and dataset.unlabelled, or leave the share out"
        )
        found = Phrase("none")
        expected = Phrase(f"some, with train.unlabelled_share {share}")
        raise CacheIncompleteError(
            describe(root, field="unlabelled images", found=found, expected=expected, cure=cure)
        )
    if share is not None:
        _check_views(root, manifest.listed[UNLABELLED].num_views, config)
    if share is None and config.loss.pseudo:
        expected = "0 without train.unlabelled_share: it is learned on samples without a label"
        raise refuse("loss.pseudo", config.loss.pseudo, expected)


def _check_views(root: Storage, cached: int, config: Config) -> None:
    """Check that unlabelled images have the views that the run takes of all samples."""
    if cached < config.augment.views:
        cure = "run `python -m cache_teacher` with dataset.unlabelled, or set augment.views"
        field, expected = "number of views of unlabelled images", config.augment.views
        raise CacheIncompleteError(
            describe(root, field=field, found=cached, expected=expected, cure=cure)
        )


def check_batches(config: Config, *, num_samples: int, count: int, device: torch.device) -> None:
    """Check that every batch has a sample for each of `count` processes, on a CPU two.

    On a CPU each process normalises its samples alone, which BatchNorm cannot do with one.

    Args:
        num_samples: with a label; with `train.unlabelled_share` every batch is full.

    Raises: SettingsError, with a batch size that fits, if a batch is too small.
    """
    least, size = count * (1 if device.type == "cuda" else 2), config.train.batch_size
    all_full = config.train.unlabelled_share is not None
    found = size if all_full else find_smallest_batch(num_samples, size)
    if count == 1 or found >= least:
        return
    sizes = [least] if all_full else range(size + 1, num_samples + 1)
    fits = (n for n in sizes if all_full or find_smallest_batch(num_samples, n) >= least)
    fitting = next(fits, None)
    cure = (
        "start fewer processes"
        if fitting is None
        else f"set train.batch_size {fitting} or start fewer processes"
    )
    field, expected = (
        f"smallest batch (train.batch_size {size})",
        Phrase(f"{least} samples or more for {count} processes"),
    )
    raise SettingsError(
        describe("settings", field=field, found=found, expected=expected, cure=cure)
    )


def check_crop(where: object, config: Config) -> None:
    """Raise SettingsError if `train.crop` is larger than the views.

    Args:
        where: the cache, for the message.
    """
    crop, size = config.train.crop_hw, config.dataset.size_hw
    if crop and (crop[0] > size[0] or crop[1] > size[1]):
        expected = Phrase(f"at most {list(size)}, the cached views' height and width")
        cure = "set a smaller train.crop or null"
        raise SettingsError(
            describe(where, field="train.crop", found=list(crop), expected=expected, cure=cure)
        )
