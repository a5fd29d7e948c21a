"""From settings, data set and teacher to what the cache will be: identity, grid, information."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import version

import torch

from kdcache.cache.codecs import Codec, choose_codec
from kdcache.cache.layout import DTYPES, MOST_GROUPS, Codecs, SplitLayout, train_arrays, val_arrays
from kdcache.cache.manifest import Manifest, build_identity, read_manifest
from kdcache.checks import refuse
from kdcache.config import Config, config_to_dict
from kdcache.data.augment import SCHEME
from kdcache.data.voc import Split
from kdcache.errors import CacheError

VAL_VIEW_RULE = {"scheme": "pad"}  # validation samples are padded, and scaled down where they do not fit


def plan_cache(
    config: Config,
    *,
    splits: dict[str, Split],
    weights_sha256: str,
    levels: dict[str, tuple[int, int]],
    codecs: Codecs | None = None,
    device: torch.device,
) -> Manifest:
    """The manifest of the cache these settings ask for.

    Args:
        splits: "train" and "val", checked and fingerprinted.
        weights_sha256: of the teacher's weights.
        levels: cached level -> (channels, stride).
        codecs: as `choose_codecs` finds them.
        device: kept as information.
    """
    num_samples, codecs = {name: len(split.samples) for name, split in splits.items()}, codecs or choose_codecs(config)
    layouts = plan_layouts(config, num_samples=num_samples, levels=levels, codecs=codecs)
    rules = {"train": train_view_rule(config), "val": VAL_VIEW_RULE}
    identity = {
        name: build_identity(
            dataset={**dataset_facts(config, train=name == "train"), "sha256": splits[name].fingerprint},
            augment=rules[name],
            teacher={**teacher_facts(config, train=name == "train"), "weights_sha256": weights_sha256},
            arrays=layouts[name].arrays,
        )
        for name in ("train", "val")
    }
    complete = dict.fromkeys(layouts, 0)
    return Manifest(identity, layouts, complete, _information(config, device))


def choose_codecs(config: Config) -> dict[str, Codec | None]:
    """The codec of each dtype. A cache that is there keeps its own: the defaults of a codec differ between versions.

    Raises: SettingsError for an unknown codec.
    """
    chosen = {dtype: choose_codec(config.cache.codec, dtype) for dtype in DTYPES}
    with suppress(CacheError):  # whatever is wrong with it is said where it is opened
        manifest = read_manifest(config.cache.path)
        if manifest.information["settings"]["cache"].get("codec") == config.cache.codec:
            chosen |= {array.dtype: array.codec for layout in manifest.layouts.values() for array in layout.arrays}
    return chosen


def plan_layouts(
    config: Config, *, num_samples: dict[str, int], levels: dict[str, tuple[int, int]], codecs: Codecs
) -> dict[str, SplitLayout]:
    """The grid of both splits."""
    channels = {level: c for level, (c, _) in levels.items()}
    strides = {level: s for level, (_, s) in levels.items()}
    shared = {"num_classes": config.dataset.num_classes, "codecs": codecs}
    train = train_arrays(size_hw=config.dataset.size_hw, channels=channels, strides=strides, **shared)
    val, shard = val_arrays(size_hw=config.dataset.val_hw, **shared), config.cache.shard_samples
    layouts = {
        "train": SplitLayout("train", config.augment.views, num_samples["train"], shard, train),
        "val": SplitLayout("val", 1, num_samples["val"], shard, val),
    }
    largest = max(layout.num_groups for layout in layouts.values())
    if largest > MOST_GROUPS:
        raise refuse("cache.shard_samples", shard, f"more: {largest} shard groups are too many, {MOST_GROUPS} the most")
    return layouts


def dataset_facts(config: Config, *, train: bool) -> dict:
    """What the labels mean and how large samples are."""
    size = {"size": list(config.dataset.size_hw)} if train else {"val_size": list(config.dataset.val_hw)}
    return {"num_classes": config.dataset.num_classes, "ignore_index": config.dataset.ignore_index, **size}


def train_view_rule(config: Config) -> dict:
    """How training views are made; the number of views is completeness, not identity."""
    augment = config_to_dict(config)["augment"]
    augment.pop("views")
    return {"scheme": SCHEME, **augment}


def teacher_facts(config: Config, *, train: bool) -> dict:
    """The teacher but for its weights; validation has no levels, so its taps do not matter."""
    facts = {"arch": config.teacher.arch, "precision": config.teacher.precision}
    layers = config_to_dict(config)["teacher"]["layers"]
    return {**facts, "layers": {level: layers[level] for level in config.cache.levels}} if train else facts


def _information(config: Config, device: torch.device) -> dict:
    packages = ("kdcache", "torch", "torchvision", "zarr", "numcodecs", "numpy", "pillow")
    return {
        "settings": config_to_dict(config),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "num_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
