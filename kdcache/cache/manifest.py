"""The manifest of a cache: its identity, its grid, and information.

The identity has every fact that changes stored numbers; it is compared. Information is only kept:
settings, device, library versions, the teacher's mIoU.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdcache.cache.codecs import make_coder
from kdcache.cache.encodings import Encoding, list_shapes, scale_name
from kdcache.cache.facts import IDENTITY, INFORMATION, describe_array, hash_facts
from kdcache.cache.layout import (
    COMMITS,
    DTYPES,
    FORMAT_VERSION,
    MANIFEST,
    MOST_GROUPS,
    MOST_ITEM_BYTES,
    RAW_VERSION,
    SPLITS,
    UNLABELLED,
    ArraySpec,
    Codec,
    SplitLayout,
    drop_label,
    find_version,
)
from kdcache.cache.records import read_json, read_sealed
from kdcache.config import LEVELS
from kdcache.config.parser import make_config, read_stored_of_cache
from kdcache.errors import (
    CacheCorruptError,
    CacheError,
    CacheMismatchError,
    Phrase,
    SettingsError,
    describe,
)
from kdcache.schema import plain
from kdcache.seals import seal_json
from kdcache.storage import Storage, open_storage

_CURE = (
    "restore it from a copy, or move it away and run `python -m cache_teacher` with this cache's "
    "settings (config.yaml of a run has them): it is made anew and committed groups are kept"
)
TARGETS = ("logits", *LEVELS)
_MOST = {"num_views": 10_000, "num_samples": 2**31, "shard_samples": 65_536}


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Each dict has "train" and "val", and "unlabelled" if the cache has that split.

    identity: split -> nested facts that decide the stored numbers.
    layouts: split -> grid; `num_views` is how many the cache is to hold, and not identity.
    complete_views: split -> number of views that were complete once; a group missing in them is
        lost, not unwritten.
    information: resolved settings, versions, teacher's mIoU; not compared.
    """

    identity: dict[str, dict]
    layouts: dict[str, SplitLayout]
    complete_views: dict[str, int]
    information: dict

    @property
    def format_version(self) -> int:
        """The oldest version of the format that has these arrays."""
        return max(find_version(layout.arrays) for layout in self.layouts.values())

    @property
    def encodings(self) -> dict[str, Encoding]:
        """How logits and each level of the training split are stored."""
        facts = self.identity["train"].get("encoding", {})
        names = [array.name for array in self.layouts["train"].arrays if array.name in TARGETS]
        return {name: Encoding.from_dict(facts.get(name, {"kind": "float16"})) for name in names}

    @property
    def identity_hash(self) -> str:
        """sha256 (hex) of the identities of train and val; unlabelled images do not change it."""
        return hash_facts({split: self.identity[split] for split in SPLITS})

    @property
    def pictures_hash(self) -> str:
        """sha256 (hex) of the facts that decide images and labels of train and val.

        Teacher, arrays and encodings do not count.
        """
        return hash_facts({split: _pictures(self.identity[split]) for split in SPLITS})

    @property
    def validation_hash(self) -> str:
        """sha256 (hex) of the facts that decide validation images and labels, which mIoU needs."""
        return hash_facts(_pictures(self.identity["val"]))

    def split_hash(self, split: str) -> str:
        """sha256 (hex) of one split's identity; each of its commit records names it."""
        return hash_facts(self.identity[split])


def _pictures(facts: dict) -> dict:
    """The part of a split's identity that decides its images and labels."""
    return {part: facts[part] for part in ("dataset", "augment")}


def write_manifest(storage: Storage | str | Path, manifest: Manifest) -> None:
    """Replace manifest.json in one step; the storage must be locked. Raises OSError."""
    open_storage(storage).replace(MANIFEST, seal_json(describe_manifest(manifest)))


def describe_manifest(manifest: Manifest) -> dict:
    """The JSON object of manifest.json, without its seal."""
    splits = {
        split: {
            "identity": manifest.identity[split],
            "num_views": layout.num_views,
            "complete_views": manifest.complete_views[split],
            "num_samples": layout.num_samples,
            "shard_samples": layout.shard_samples,
            "arrays": [_array_to_dict(array) for array in layout.arrays],
        }
        for split, layout in manifest.layouts.items()
    }
    head = {"format": "kdcache", "format_version": manifest.format_version}
    return {**head, "splits": splits, "information": manifest.information}


def read_manifest(storage: Storage | str | Path) -> Manifest:
    """Read and check the manifest of the cache in a storage, or at an address.

    Raises: CacheMismatchError if there is no cache, or one of another format version,
        CacheCorruptError if it is damaged, CacheError if the storage does not answer.
    """
    storage = open_storage(storage)
    there, begun = look_for_manifest(storage)
    if not there:
        cure = (
            _CURE if begun else "give the path of one, or build one with `python -m cache_teacher`"
        )
        found, expected = Phrase("missing"), Phrase("a kdcache cache")
        raise CacheMismatchError(
            describe(storage, field="manifest.json", found=found, expected=expected, cure=cure)
        )
    _check_version(storage, read_json(storage, MANIFEST, cure=_CURE))
    document = read_sealed(storage, MANIFEST, cure=_CURE)
    try:
        names = (*SPLITS, *({UNLABELLED} & set(document["splits"])))
        splits = {split: document["splits"][split] for split in names}
        layouts = {split: _read_layout(split, stored) for split, stored in splits.items()}
        complete = {split: _read_count(stored, "complete_views", 0, layouts[split].num_views)
                    for split, stored in splits.items()}  # fmt: skip
        identity = {split: dict(stored["identity"]) for split, stored in splits.items()}
        _check_contents(identity, document["information"])
        manifest = Manifest(identity, layouts, complete, dict(document["information"]))
        _check_encodings(manifest)
        for split, layout in layouts.items():
            if identity[split]["arrays"] != {
                array.name: describe_array(array) for array in layout.arrays
            }:
                raise ValueError(f"arrays of {split} are not those of its identity")
        if document["format_version"] < manifest.format_version:
            raise ValueError(
                f"format_version is {document['format_version']}, "
                f"its arrays are of {manifest.format_version}"
            )
        return manifest
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        what = f"manifest is damaged ({reason})"
        raise CacheCorruptError(storage.name(MANIFEST), what, cure=_CURE) from None


def find_manifest(storage: Storage | str | Path) -> Manifest | None:
    """Like `read_manifest`, but None if there is no manifest."""
    storage = open_storage(storage)
    return read_manifest(storage) if look_for_manifest(storage)[0] else None


def look_for_manifest(storage: Storage) -> tuple[bool, bool]:
    """(whether there is a manifest, whether a cache without one was begun).

    Raises CacheError if the storage does not answer.
    """
    try:
        there = storage.exists(MANIFEST)
        return there, not there and storage.is_folder(COMMITS)
    except OSError as error:
        where = error.filename or storage.name(MANIFEST)
        raise CacheError(
            f"{where}: manifest cannot be looked for ({error.strerror}); mend that or cache.path"
        ) from None


def _check_version(storage: Storage, document: dict) -> None:
    path = storage.name(MANIFEST)
    if document.get("format") != "kdcache":
        raise CacheCorruptError(path, "format is unknown, expected 'kdcache'", cure=_CURE)
    version = document.get("format_version")
    if type(version) is not int or not RAW_VERSION <= version <= FORMAT_VERSION:
        cure = "use the kdcache version that wrote it, or rebuild it in another folder"
        expected = Phrase(f"{RAW_VERSION} to {FORMAT_VERSION}")
        raise CacheMismatchError(
            describe(path, field="format_version", found=version, expected=expected, cure=cure)
        )


def _check_contents(identity: dict[str, dict], information: dict) -> None:
    """Raise FieldError or KeyError if a part is missing or odd that later commands need."""
    for facts in identity.values():
        IDENTITY(facts)
        plain(facts)
    dict(identity["train"]["teacher"]["layers"])
    INFORMATION(information)
    num_ious = len(information.get("teacher_per_class_iou") or [])
    if num_ious not in (0, identity["val"]["dataset"].get("num_classes")):
        raise ValueError(f"teacher_per_class_iou has {num_ious} values")
    plain(information)
    with suppress(SettingsError):  # a value that we cannot use concerns those who use it
        make_config(read_stored_of_cache(information["settings"]))


def _read_layout(split: str, stored: dict) -> SplitLayout:
    counts = {name: _read_count(stored, name, 1, most) for name, most in _MOST.items()}
    arrays = tuple(_read_array(array) for array in stored["arrays"])
    names = [array.name for array in arrays]
    known = {*LEVELS, *(scale_name(target) for target in TARGETS)}
    first = ["image", "logits"] if split == UNLABELLED else ["image", "label", "logits"]
    others = set(names[len(first) :])
    if names[: len(first)] != first or len(set(names)) < len(names) or not others <= known:
        raise ValueError(f"arrays of {split} are {str(names)[:80]}")
    layout = SplitLayout(split, arrays=arrays, **counts)
    if layout.num_groups > MOST_GROUPS:
        raise ValueError(
            f"{split} has {layout.num_groups} shard groups, expected {MOST_GROUPS} at most"
        )
    return layout


def _read_array(stored: dict) -> ArraySpec:
    shape = tuple(
        _read_count({"item_shape": px}, "item_shape", 1, 2**20) for px in stored["item_shape"]
    )
    if stored["dtype"] not in DTYPES or not 1 <= len(shape) <= 3:
        raise ValueError(
            f"array {repr(stored['name'])[:20]} is {repr(stored['dtype'])[:20]} "
            f"of {len(shape)} sides"
        )
    if ArraySpec(stored["name"], shape, stored["dtype"]).item_bytes > MOST_ITEM_BYTES:
        raise ValueError(
            f"a sample of {repr(stored['name'])[:20]} has more than {MOST_ITEM_BYTES} bytes"
        )
    if not isinstance(stored.get("codec", {}), dict):
        raise ValueError(f"codec of {stored['name'][:20]} is {repr(stored['codec'])[:40]}")
    codec = Codec.from_dict(stored["codec"]) if "codec" in stored else None
    if codec:
        make_coder(codec, shape=shape, dtype=stored["dtype"])  # raises if the codec is unknown
    return ArraySpec(stored["name"], shape, stored["dtype"], codec)


def _array_to_dict(array: ArraySpec) -> dict:
    facts = {"name": array.name, "item_shape": array.item_shape, "dtype": array.dtype}
    return facts | ({"codec": array.codec.to_dict()} if array.codec else {})


def _check_encodings(manifest: Manifest) -> None:
    """Raise ValueError if arrays are not those of the encodings; unlabelled has those of train."""
    found = [
        (array.name, array.item_shape, array.dtype) for array in manifest.layouts["train"].arrays
    ]
    expected, shapes = found[:2], {name: shape for name, shape, _ in found}
    for name, encoding in manifest.encodings.items():
        expected += list_shapes(name, shapes[name], encoding)
        if encoding.kind == "lowrank" and encoding.rank > encoding.channels:
            raise ValueError(
                f"{name} has {encoding.rank} coefficients of {encoding.channels} channels"
            )
    if found != expected or any(len(shapes[name]) != 3 for name in manifest.encodings):
        raise ValueError("its arrays are not those of its encodings")
    arrays = [layout.arrays for layout in manifest.layouts.values()]  # of train, val, unlabelled
    if arrays[2:] not in ([], [drop_label(arrays[0])]):
        raise ValueError("arrays of unlabelled are not those of train without label")


def _read_count(stored: dict, name: str, least: int, most: int) -> int:
    if type(stored[name]) is not int or not least <= stored[name] <= most:
        raise ValueError(f"{name} is {repr(stored[name])[:40]}, expected {least} to {most}")
    return stored[name]
