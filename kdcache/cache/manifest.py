"""What a cache is: identity (everything that changes stored numbers), grid, and information that may differ.

Identity is compared, information is only kept: paths, number of views, batch size, device, threads, library versions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kdcache.cache.layout import FORMAT_VERSION, SPLITS, ArraySpec, SplitLayout, manifest_path
from kdcache.errors import CacheCorruptError, CacheMismatchError, Phrase, describe
from kdcache.settings import flatten


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    identity: split -> nested facts that decide the stored numbers.
    layouts: split -> grid; `num_views` is completeness, not identity.
    information: resolved settings, versions, teacher's mIoU; not compared.
    """

    identity: dict[str, dict]
    layouts: dict[str, SplitLayout]
    information: dict

    @property
    def identity_hash(self) -> str:
        """sha256 (hex) over both splits' identities."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


def build_identity(*, dataset: dict, augment: dict, teacher: dict, arrays: tuple[ArraySpec, ...]) -> dict:
    """The identity of one split. Each part is a dict of JSON values."""
    stored = {a.name: f"{a.dtype} {'x'.join(map(str, a.item_shape))}" for a in arrays}
    return {
        "format_version": FORMAT_VERSION,
        "dataset": dataset,
        "augment": augment,
        "teacher": teacher,
        "arrays": stored,
    }


def find_differences(found: Mapping, expected: Mapping) -> list[tuple[str, object, object]]:
    """(dotted name, found, expected) of every fact in which two identities differ."""
    left, right = flatten(found), flatten(expected)
    absent = "absent"
    names = [*left, *(name for name in right if name not in left)]
    pairs = ((name, left.get(name, absent), right.get(name, absent)) for name in names)
    return [pair for pair in pairs if pair[1] != pair[2]]


def check_identity(where: Path, *, found: Mapping, expected: Mapping, cure: str) -> None:
    """Raises CacheMismatchError that shows every difference side by side."""
    differences = find_differences(found, expected)
    if not differences:
        return
    facts = "; ".join(f"{name} is {_short(old)!r}, expected {_short(new)!r}" for name, old, new in differences)
    raise CacheMismatchError(f"{where}: {facts}; {cure}")


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Replace manifest.json in one step."""
    splits = {
        split: {
            "identity": manifest.identity[split],
            "num_views": layout.num_views,
            "num_samples": layout.num_samples,
            "shard_samples": layout.shard_samples,
            "arrays": [asdict(array) for array in layout.arrays],
        }
        for split, layout in manifest.layouts.items()
    }
    document = {
        "format": "kdcache",
        "format_version": FORMAT_VERSION,
        "splits": splits,
        "information": manifest.information,
    }
    write_json(manifest_path(root), document)


def read_manifest(root: Path) -> Manifest:
    """Raises CacheMismatchError for a folder that is no cache or of another version, CacheCorruptError for a damaged one."""
    path = manifest_path(root)
    if not path.is_file():
        cure = "set cache.path, or build one with `python -m cache_teacher`"
        raise CacheMismatchError(
            describe(
                root, field="manifest.json", found=Phrase("missing"), expected=Phrase("a kdcache cache"), cure=cure
            )
        )
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != "kdcache":
        raise CacheCorruptError(f"{path}: format is unknown, expected 'kdcache'; rebuild the cache in another folder")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        cure = "use the kdcache version that wrote it, or rebuild it"
        raise CacheMismatchError(
            describe(path, field="format_version", found=version, expected=FORMAT_VERSION, cure=cure)
        )
    try:
        layouts = {split: _read_layout(split, document["splits"][split]) for split in SPLITS}
        identity = {split: dict(document["splits"][split]["identity"]) for split in SPLITS}
        _check_contents(identity, document["information"])
        return Manifest(identity, layouts, dict(document["information"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CacheCorruptError(f"{path}: manifest is damaged ({error!r}); restore it from a copy or rebuild") from None


def write_json(path: Path, document: object) -> None:
    """Write a JSON file so that after a crash it is wholly there or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def read_json(path: Path) -> object:
    """Raises CacheCorruptError where the file is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CacheCorruptError(f"{path}: file is unreadable ({error}); restore it from a copy or rebuild") from None


def sync_folder(path: Path) -> None:
    """Make a folder's entries survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_contents(identity: dict[str, dict], information: dict) -> None:
    """Raises KeyError or TypeError where a part is missing that later commands count on."""
    for facts in identity.values():
        if not all(isinstance(facts[part], dict) for part in ("dataset", "augment", "teacher", "arrays")):
            raise TypeError("a part of the identity is no object")
    dict(identity["train"]["teacher"]["layers"])
    for section in ("dataset", "augment", "teacher", "cache"):
        dict(information["settings"][section])


def _read_layout(split: str, stored: dict) -> SplitLayout:
    arrays = tuple(ArraySpec(a["name"], tuple(map(int, a["item_shape"])), a["dtype"]) for a in stored["arrays"])
    counts = {name: int(stored[name]) for name in ("num_views", "num_samples", "shard_samples")}
    if min(counts.values()) < 1 or any(a.dtype not in ("uint8", "float16") for a in arrays):
        raise ValueError("impossible grid")
    return SplitLayout(split, arrays=arrays, **counts)


def _short(value: object) -> object:
    """Hashes by their first 12 digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
