"""The identity of a cache's split: every fact that decides its stored numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from kdcache.cache.encodings import Encoding
from kdcache.cache.layout import ArraySpec, find_version
from kdcache.config.parser import flatten
from kdcache.errors import CacheMismatchError


def build_identity(
    *,
    dataset: dict,
    augment: dict,
    teacher: dict,
    arrays: tuple[ArraySpec, ...],
    encodings: Mapping[str, Encoding],
) -> dict:
    """Build the identity of one split.

    Args:
        dataset, augment, teacher: JSON values that decide the stored numbers.
        encodings: of logits and levels; float16 is the default and not recorded.
    """
    encoded = {
        name: encoding.to_dict()
        for name, encoding in encodings.items()
        if encoding.kind != "float16"
    }
    return {
        "format_version": find_version(arrays),
        "dataset": dataset,
        "augment": augment,
        "teacher": teacher,
        "arrays": {array.name: describe_array(array) for array in arrays},
    } | ({"encoding": encoded} if encoded else {})


def describe_array(array: ArraySpec) -> str:
    """An array in words: "float16 21x64x64", then its codec, if it has one, with settings."""
    words = [array.dtype, "x".join(map(str, array.item_shape))]
    if array.codec:
        words += [
            array.codec.name,
            *(f"{name}={value}" for name, value in sorted(array.codec.settings or ())),
        ]
    return " ".join(words)


def find_differences(found: Mapping, expected: Mapping) -> list[tuple[str, object, object]]:
    """(dotted name, found, expected) of every fact that differs; "absent" if one lacks it."""
    left, right = flatten(found), flatten(expected)
    absent = "absent"
    names = [*left, *(name for name in right if name not in left)]
    pairs = ((name, left.get(name, absent), right.get(name, absent)) for name in names)
    return [pair for pair in pairs if pair[1] != pair[2]]


def check_identity(where: Path, *, found: Mapping, expected: Mapping, cure: str) -> None:
    """Raise CacheMismatchError with every difference, if the identities differ."""
    differences = find_differences(found, expected)
    if not differences:
        return
    facts = "; ".join(
        f"{name} is {_short(old)!r}, expected {_short(new)!r}" for name, old, new in differences
    )
    raise CacheMismatchError(f"{where}: {facts}; {cure}")


def hash_facts(facts: Mapping) -> str:
    """sha256 (hex) of JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _short(value: object) -> object:
    """Hashes cut to their first 12 digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
