"""From settings to the manifest of the cache they ask for, and from a manifest back to settings."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from kdcache.cache.codecs import choose_codec
from kdcache.cache.encodings import Encoding
from kdcache.cache.facts import build_identity
from kdcache.cache.layout import (
    DTYPES,
    MANIFEST,
    MOST_GROUPS,
    UNLABELLED,
    Codec,
    Codecs,
    SplitLayout,
    drop_label,
    list_specs,
)
from kdcache.cache.manifest import Manifest
from kdcache.config import STRIDE, Config, config_to_dict
from kdcache.config.masks import as_json
from kdcache.config.names import IMAGENET_MEAN, IMAGENET_STD, TRANSFORMERS
from kdcache.config.parser import make_config, read_stored_of_cache
from kdcache.data.views import SCHEME
from kdcache.errors import CacheMismatchError, SettingsError, describe, refuse
from kdcache.machine.process import describe_machine
from kdcache.models.own_code import TEACHER, Trust

if TYPE_CHECKING:
    import torch

    from kdcache.data.pictures import Split
    from kdcache.storage import Storage

VAL_VIEW_RULE = {"scheme": "pad"}  # validation images are padded, and shrunk if they do not fit


def read_settings(manifest: Manifest) -> dict:
    """The settings a cache was built with, section by section, without those unknown here.

    Raises: SettingsError for a value of another type.
    """
    return read_stored_of_cache(manifest.information["settings"])


def read_config(manifest: Manifest, *given: dict) -> Config:
    """The settings a cache was built with, overridden by those given. Raises SettingsError."""
    return make_config(read_settings(manifest), *given)


def stored_config(root: Storage, manifest: Manifest, given: dict) -> Config:
    """The settings a cache was built with, overridden by those given, at its place of today."""
    here = {"cache": {"path": str(root)}, "augment": {"views": manifest.listed["train"].num_views}}
    return read_config(manifest, {"dataset": {"download": False}}, given, here)


def check_teacher_code(
    root: Storage, manifest: Manifest, config: Config, *, trust: Trust | None
) -> None:
    """Check that the teacher of a cache may be asked, if it is code of the user's.

    Args:
        config: settings of the cache, overridden by those given.
        trust: what this command line allows (default: nothing).

    Raises: SettingsError if it may not be imported.
    """
    if config.teacher.is_own:
        source, where = manifest.identity["train"]["teacher"].get("source"), root.name(MANIFEST)
        allowed = trust or Trust()
        allowed.check(config.teacher.arch, source=source, where=where, field=TEACHER)


def build_manifest(
    config: Config,
    *,
    splits: dict[str, Split],
    weights_sha256: str,
    source: str | None = None,
    targets: dict[str, tuple[int, int]],
    encodings: dict[str, Encoding] | None = None,
    codecs: Codecs | None = None,
    device: torch.device,
) -> Manifest:
    """The manifest of the cache these settings ask for.

    Args:
        splits: "train", "val" and perhaps "unlabelled", checked and fingerprinted.
        weights_sha256: hash of the teacher's weights.
        source: of the teacher's code or architecture, as `hash_network`; None if its name says all.
        targets: logits and each cached level -> (channels, stride).
        encodings: of the training split's logits and levels; those not named are float16.
        codecs: dtype -> codec; None: those of `choose_codecs` for a new cache.
        device: recorded as information only.
    """
    encodings, codecs = encodings or {}, codecs or choose_codecs(config, None)
    num_samples = {name: len(split.samples) for name, split in splits.items()}
    layouts = build_layouts(
        config, num_samples=num_samples, targets=targets, encodings=encodings, codecs=codecs
    )
    identity = {}
    for name, layout in layouts.items():
        train = name != "val"  # unlabelled images are drawn, asked about and stored as those
        data = {**dataset_facts(config, train=train), "sha256": splits[name].fingerprint}
        teacher = teacher_facts(config, train=train, weights_sha256=weights_sha256, source=source)
        identity[name] = build_identity(
            dataset=data,
            augment=train_view_rule(config) if train else VAL_VIEW_RULE,
            teacher=teacher,
            arrays=layout.arrays,
            encodings=encodings if train else {},
        )
    machine = describe_machine(device, packages=("zarr", "numcodecs"))
    information = {"settings": config_to_dict(config), **machine}
    return Manifest(identity, layouts, dict.fromkeys(layouts, 0), information)


def build_layouts(
    config: Config,
    *,
    num_samples: dict[str, int],
    targets: dict[str, tuple[int, int]],
    encodings: dict[str, Encoding],
    codecs: Codecs,
) -> dict[str, SplitLayout]:
    """The arrays and shard groups of all splits; `num_samples` says which there are.

    Validation logits only score the teacher, so they stay float16. Raises SettingsError if
    `cache.shard_samples` makes too many groups.

    Args:
        targets: logits and each cached level -> (channels, stride).
    """
    logits, shard = {"logits": targets["logits"]}, config.cache.shard_samples
    train = list_specs(
        size_hw=config.dataset.size_hw,
        targets={**logits, **targets},
        encodings=encodings,
        codecs=codecs,
    )
    val = list_specs(size_hw=config.dataset.val_hw, targets=logits, encodings={}, codecs=codecs)
    views = config.augment.views
    layouts = {
        "train": SplitLayout("train", views, num_samples["train"], shard, train),
        "val": SplitLayout("val", 1, num_samples["val"], shard, val),
    }
    if UNLABELLED in num_samples:
        arrays, count = drop_label(train), num_samples[UNLABELLED]
        layouts[UNLABELLED] = SplitLayout(UNLABELLED, views, count, shard, arrays)
    largest = max(layout.num_groups for layout in layouts.values())
    if largest > MOST_GROUPS:
        expected = f"more: {largest} shard groups are too many, {MOST_GROUPS} the most"
        raise refuse("cache.shard_samples", shard, expected)
    return layouts


def choose_codecs(config: Config, there: Manifest | None) -> dict[str, Codec | None]:
    """The codec of each dtype.

    A cache that is there keeps its own if the settings name the same codec, because the defaults
    of a codec differ between versions.

    Args:
        there: manifest of the cache that is there, if there is one.

    Raises: SettingsError for an unknown codec.
    """
    chosen = {dtype: choose_codec(config.cache.codec_name, dtype) for dtype in DTYPES}
    with suppress(SettingsError):  # stored settings out of range are reported by whoever needs them
        if there and read_config(there).cache.codec_name == config.cache.codec_name:
            arrays = (array for layout in there.layouts.values() for array in layout.arrays)
            chosen |= {array.dtype: array.codec for array in arrays}
    return chosen


def check_encodings(root: Storage, cached: Config, config: Config, *, cure: str) -> None:
    """Encodings, ranks and codec of a cache are fixed: raise if `config` asks for others.

    Args:
        cached: the settings the cache was built with.

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
        found, expected = fact(cached), fact(config)
        if found != expected:
            raise CacheMismatchError(
                describe(root, field=name, found=found, expected=expected, cure=cure)
            )


def dataset_facts(config: Config, *, train: bool) -> dict:
    """The data set's part of the identity: classes and size of the samples.

    Args:
        train: of train and unlabelled images, else of val.
    """
    data = config.dataset
    size = {"size": list(data.size_hw)} if train else {"val_size": list(data.val_hw)}
    facts = {"num_classes": data.num_classes, "ignore_index": data.ignore_index, **size}
    # what was not recorded before stays so where it is the default
    tables = {"label_map": data.class_of_value, "palette": data.colours}
    return facts | {name: as_json(table) for name, table in tables.items() if table}


def train_view_rule(config: Config) -> dict:
    """How training views are drawn. Their number is not part of the identity: it may grow."""
    augment = config_to_dict(config)["augment"]
    augment.pop("views")
    return {"scheme": SCHEME, **augment}


def teacher_facts(
    config: Config,
    *,
    train: bool,
    weights_sha256: str | None = None,
    source: str | None = None,
) -> dict:
    """The teacher's part of the identity, without what is None.

    Validation stores no levels, so the layers they come from do not matter there.

    Args:
        weights_sha256, source: as in `build_manifest`; the settings do not say them.
    """
    teacher = config.teacher
    # where a model of transformers lies is no fact; its config and weights are hashed
    arch = TRANSFORMERS[:-1] if teacher.arch.startswith(TRANSFORMERS) else teacher.arch
    facts = {"arch": arch, "precision": teacher.precision}
    # what was not recorded before stays so where it is the default
    for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        if getattr(teacher, name) != list(default):
            facts[name] = getattr(teacher, name)
    if teacher.options:
        facts["options"] = teacher.options
    known = {"weights_sha256": weights_sha256, "source": source}
    known = {name: value for name, value in known.items() if value is not None}
    if not train:
        return facts | known
    levels, layers = config.cache.levels, config_to_dict(config)["teacher"]["layers"]
    if "high" in levels and teacher.high_stride != STRIDE:
        facts["high_stride"] = teacher.high_stride
    return {**facts, "layers": {level: layers[level] for level in levels}, **known}
