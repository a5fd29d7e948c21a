"""From settings, data set and teacher to what the cache will be: identity, grid, information."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.cache.codecs import Codec, choose_codec
from kdcache.cache.encodings import Encoding
from kdcache.cache.identity import build_identity
from kdcache.cache.layout import DTYPES, LOGITS_STRIDE, MOST_GROUPS, Codecs, SplitLayout, list_specs
from kdcache.cache.manifest import Manifest, look_for_manifest, read_manifest
from kdcache.config import STRIDE, Config, config_to_dict
from kdcache.config.parser import drop_unknown, make_config
from kdcache.data.views import SCHEME
from kdcache.data.voc import Split
from kdcache.errors import CacheError, CacheMismatchError, SettingsError, describe, refuse
from kdcache.machine.versions import describe_machine

if TYPE_CHECKING:
    import torch

VAL_VIEW_RULE = {
    "scheme": "pad"
}  # validation samples are padded, and scaled down where they do not fit


def plan_cache(
    config: Config,
    *,
    splits: dict[str, Split],
    weights_sha256: str,
    levels: dict[str, tuple[int, int]],
    encodings: dict[str, Encoding] | None = None,
    codecs: Codecs | None = None,
    device: torch.device,
) -> Manifest:
    """The manifest of the cache these settings ask for.

    Args:
        splits: "train" and "val", checked and fingerprinted.
        weights_sha256: of the teacher's weights.
        levels: cached level -> (channels, stride).
        encodings: of the training split's targets; those not named are float16.
        codecs: as `choose_codecs` finds them.
        device: kept as information.
    """
    num_samples, codecs = (
        {name: len(split.samples) for name, split in splits.items()},
        codecs or choose_codecs(config),
    )
    layouts = plan_layouts(
        config, num_samples=num_samples, levels=levels, encodings=encodings or {}, codecs=codecs
    )
    rules = {"train": train_view_rule(config), "val": VAL_VIEW_RULE}
    identity = {
        name: build_identity(
            dataset={
                **dataset_facts(config, train=name == "train"),
                "sha256": splits[name].fingerprint,
            },
            augment=rules[name],
            teacher={
                **teacher_facts(config, train=name == "train"),
                "weights_sha256": weights_sha256,
            },
            arrays=layouts[name].arrays,
            encodings=(encodings or {}) if name == "train" else {},
        )
        for name in ("train", "val")
    }
    complete = dict.fromkeys(layouts, 0)
    return Manifest(identity, layouts, complete, _information(config, device))


def choose_codecs(config: Config) -> dict[str, Codec | None]:
    """The codec of each dtype. A cache that is there keeps its own: the defaults of a codec differ between versions.

    Raises: SettingsError for an unknown codec.
    """
    chosen = {dtype: choose_codec(config.cache.codec_name, dtype) for dtype in DTYPES}
    with suppress(
        CacheError, SettingsError
    ):  # whatever is wrong with it is said where it is opened
        manifest = read_manifest(config.cache.path)
        if (
            make_config(drop_unknown(manifest.information["settings"])).cache.codec_name
            == config.cache.codec_name
        ):
            chosen |= {
                array.dtype: array.codec
                for layout in manifest.layouts.values()
                for array in layout.arrays
            }
    return chosen


def check_storage(root: Path, cached: Config, config: Config, *, cure: str) -> None:
    """Encodings, ranks and codec of a cache are fixed: settings must mean the same.

    Args:
        cached: the settings it was built with.

    Raises: CacheMismatchError for the first that differs, SettingsError for an unknown codec.
    """
    choose_codec(config.cache.codec_name, DTYPES[0])
    shared = [name for name in cached.cache.kinds if name in config.cache.kinds]
    lowrank = [name for name in shared if cached.cache.kinds[name] == "lowrank"]
    facts = {
        "cache.encoding": lambda c: {name: c.cache.kinds[name] for name in shared},
        "cache.rank": lambda c: {name: getattr(c.cache.rank, name) for name in lowrank},
        "cache.codec": lambda c: c.cache.codec_name,
    }
    for name, fact in facts.items():
        if fact(cached) != fact(config):
            raise CacheMismatchError(
                describe(root, field=name, found=fact(cached), expected=fact(config), cure=cure)
            )


def check_stored(config: Config) -> None:
    """The same against the cache at `cache.path`, if there is one: before a data set is read for nothing."""
    root = config.cache.path
    if look_for_manifest(root)[0]:
        cached = make_config(drop_unknown(read_manifest(root).information["settings"]))
        cure = "give what the cache was built with, or set cache.path to another folder"
        check_storage(root, cached, config, cure=cure)


def plan_layouts(
    config: Config,
    *,
    num_samples: dict[str, int],
    levels: dict[str, tuple[int, int]],
    encodings: dict[str, Encoding],
    codecs: Codecs,
) -> dict[str, SplitLayout]:
    """The grid of both splits. The teacher's answers about val only score it: they stay float16."""
    logits, shard = (
        {"logits": (config.dataset.num_classes, LOGITS_STRIDE)},
        config.cache.shard_samples,
    )
    train = list_specs(
        size_hw=config.dataset.size_hw,
        targets={**logits, **levels},
        encodings=encodings,
        codecs=codecs,
    )
    val = list_specs(size_hw=config.dataset.val_hw, targets=logits, encodings={}, codecs=codecs)
    layouts = {
        "train": SplitLayout("train", config.augment.views, num_samples["train"], shard, train),
        "val": SplitLayout("val", 1, num_samples["val"], shard, val),
    }
    largest = max(layout.num_groups for layout in layouts.values())
    if largest > MOST_GROUPS:
        raise refuse(
            "cache.shard_samples",
            shard,
            f"more: {largest} shard groups are too many, {MOST_GROUPS} the most",
        )
    return layouts


def dataset_facts(config: Config, *, train: bool) -> dict:
    """What the labels mean and how large samples are."""
    size = (
        {"size": list(config.dataset.size_hw)}
        if train
        else {"val_size": list(config.dataset.val_hw)}
    )
    return {
        "num_classes": config.dataset.num_classes,
        "ignore_index": config.dataset.ignore_index,
        **size,
    }


def train_view_rule(config: Config) -> dict:
    """How training views are made; the number of views is completeness, not identity."""
    augment = config_to_dict(config)["augment"]
    augment.pop("views")
    return {"scheme": SCHEME, **augment}


def teacher_facts(config: Config, *, train: bool) -> dict:
    """The teacher but for its weights; validation has no levels, so its taps do not matter."""
    facts = {"arch": config.teacher.arch, "precision": config.teacher.precision}
    layers = config_to_dict(config)["teacher"]["layers"]
    if not train:
        return facts
    if (
        "high" in config.cache.levels and config.teacher.high_stride != STRIDE
    ):  # the usual one is not worth a word
        facts["high_stride"] = config.teacher.high_stride
    return {**facts, "layers": {level: layers[level] for level in config.cache.levels}}


def _information(config: Config, device: torch.device) -> dict:
    return {
        "settings": config_to_dict(config),
        **describe_machine(device, packages=("zarr", "numcodecs")),
    }
