"""The manifest of a cache: its identity, its grid, and information.

The identity has every fact that changes stored numbers; it is compared. Information is only kept:
settings, device, library versions, the teacher's mIoU.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdcache.cache.encodings import Encoding
from kdcache.cache.facts import IDENTITY, INFORMATION, describe_array, hash_facts
from kdcache.cache.grid import TARGETS, array_to_dict, check_grids, read_count, read_layout
from kdcache.cache.layout import (
    COMMITS,
    FORMAT_VERSION,
    MANIFEST,
    RAW_VERSION,
    SPLITS,
    UNLABELLED,
    Group,
    SplitLayout,
    find_role,
    find_version,
)
from kdcache.cache.lists import Listing, Part, find_groups, is_part, read_lists, with_data
from kdcache.cache.records import read_json, read_sealed
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


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    `identity` has "train" and "val", and "unlabelled" if the cache has that split. `layouts` and
    `complete_views` have the same, and each part that was added to one, such as "train_2".

    identity: split -> nested facts that decide the stored numbers of its samples of today.
    layouts: grid; `num_views` is how many the cache is to hold, and not identity.
    complete_views: number of views that were complete once; a group missing in them is lost, not
        unwritten.
    information: resolved settings, versions, teacher's mIoU; not compared.
    lists: split -> its samples of today, if they are not all those that it was built with.
    growing: split -> the list that phase one is making; it is that of today once it is complete.
    parts: of splits with several parts or a list, what each part was made of.
    """

    identity: dict[str, dict]
    layouts: dict[str, SplitLayout]
    complete_views: dict[str, int]
    information: dict
    lists: dict[str, Listing] = field(default_factory=dict)
    growing: dict[str, Listing] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def format_version(self) -> int:
        """The oldest version of the format that has these arrays, parts and lists."""
        if self.lists or self.growing or self.parts:
            return FORMAT_VERSION
        return max(find_version(layout.arrays) for layout in self.layouts.values())

    @property
    def listed(self) -> dict[str, SplitLayout]:
        """Split -> grid of its samples of today, as training sees it."""
        return {split: self._list_split(split) for split in self.identity}

    def _list_split(self, split: str) -> SplitLayout:
        if split not in self.lists:
            return self.layouts[split]
        listing = self.lists[split]
        num_views = min(self.layouts[part].num_views for part in listing.parts)
        count = listing.num_samples
        return replace(self.layouts[split], num_views=num_views, num_samples=count)

    def find_list(self, split: str) -> Listing:
        """Its samples of today; without a list all of the split's own."""
        everything = ((split, 0, self.layouts[split].num_samples),)
        whole = Listing(self.identity[split]["dataset"]["sha256"], everything)
        return self.lists.get(split, whole)

    def find_lists(self, part: str, *, wanted: bool = False) -> list[Listing]:
        """The list of today of a part's split, and the growing one if there is one.

        Args:
            wanted: only the one that phase one is to finish.
        """
        role = find_role(part)
        growing = [self.growing[role]] if role in self.growing else []
        return growing if wanted and growing else [self.find_list(role), *growing]

    def list_groups(self, part: str, *, wanted: bool = False) -> list[Group]:
        """A part's shard groups that hold a sample of its `find_lists`."""
        layout = self.layouts[part]
        indices = find_groups(layout, self.find_lists(part, wanted=wanted))
        return [group for group in layout.groups() if group.index in indices]

    def count_complete(self, split: str) -> int:
        """How many views of all its samples of today were complete once."""
        return min(self.complete_views[part] for part in self.find_list(split).parts)

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
        """sha256 (hex) of the identity of a split or part; its commit records name it."""
        return hash_facts(self.find_identity(split))

    def find_identity(self, part: str) -> dict:
        """The facts that decide the stored numbers of a part: those of its own samples."""
        facts = self.identity[find_role(part)]
        return with_data(facts, self.parts[part].sha256) if part in self.parts else facts


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
            "identity": manifest.find_identity(split),
            "num_views": layout.num_views,
            "complete_views": manifest.complete_views[split],
            "num_samples": layout.num_samples,
            "shard_samples": layout.shard_samples,
            "arrays": [array_to_dict(array) for array in layout.arrays],
        }
        for split, layout in manifest.layouts.items()
    }
    for name, part in manifest.parts.items():
        splits[name] |= {"samples": list(part.samples)} if part.samples else {}
    lists = {"lists": manifest.lists, "growing": manifest.growing}
    found = {
        name: {split: one.to_dict() for split, one in of.items()}
        for name, of in lists.items()
        if of
    }
    head = {"format": "kdcache", "format_version": manifest.format_version}
    return {**head, "splits": splits, **found, "information": manifest.information}


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
        manifest = _build(document)
        check_grids(manifest.layouts, manifest.encodings)
        for split, layout in manifest.layouts.items():
            if manifest.identity[layout.role]["arrays"] != {
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


def _build(document: dict) -> Manifest:
    """The manifest of a document. Raises ValueError, KeyError and the like if it is damaged."""
    roles = (*SPLITS, *({UNLABELLED} & set(document["splits"])))
    added = [name for name in document["splits"] if is_part(name) and find_role(name) in roles]
    splits = {split: document["splits"][split] for split in (*roles, *added)}
    layouts = {split: read_layout(split, stored) for split, stored in splits.items()}
    complete = {split: read_count(stored, "complete_views", 0, layouts[split].num_views)
                for split, stored in splits.items()}  # fmt: skip
    facts = {split: dict(stored["identity"]) for split, stored in splits.items()}
    _check_contents(facts, document["information"])
    lists, growing, parts = read_lists(document, facts, layouts)
    identity = {
        role: with_data(facts[role], lists[role].sha256) if role in lists else facts[role]
        for role in roles
    }
    information = dict(document["information"])
    manifest = Manifest(identity, layouts, complete, information, lists, growing, parts)
    if any(manifest.find_identity(name) != facts[name] for name in added):
        raise ValueError("a part has another identity than its split")
    return manifest


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
