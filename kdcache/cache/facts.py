"""Facts that the documents of a cache state: its identity, which decides every stored number, and
the fields of a manifest and of a commit record that people and later commands read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from kdcache.cache.encodings import Encoding
from kdcache.cache.layout import ArraySpec, SplitLayout, find_version
from kdcache.config.parser import flatten
from kdcache.errors import CacheMismatchError, Phrase, show
from kdcache.schema import (
    FieldError,
    Kind,
    all_of,
    fields,
    flag,
    list_of,
    maybe,
    number,
    plain,
    table_of,
    text,
    whole,
)

MOST_PX = 2**31
SHARE = number(0, 1)
_HW = list_of(whole(1, MOST_PX), least=2, most=2)
_TOP_LEFT = list_of(whole(0, MOST_PX), least=2, most=2)
_BOX = list_of(whole(0, MOST_PX), least=4, most=4)
_FACTOR = number(0, 100)

PADDED: Kind = fields({"image_box": _BOX, "image_hw": _HW})
"""A validation view."""
DRAWN: Kind = fields(
    {
        "resized_hw": _HW,
        "crop_tl": _TOP_LEFT,
        "size_hw": _HW,
        "flip": flag,
        "brightness": _FACTOR,
        "contrast": _FACTOR,
        "saturation": _FACTOR,
        "image_box": _BOX,
    }
)
"""A training view, or one of an unlabelled image."""

SECTION = table_of(plain)
SETTINGS: Kind = fields(dict.fromkeys(("dataset", "augment", "teacher", "cache"), SECTION))
MACHINE = {
    "device": text(),
    "num_threads": whole(1, 1_000_000),
    "versions": table_of(text()),
}
"""What a result was computed on; an older kdcache did not write it."""
INFORMATION: Kind = fields(
    {"settings": SETTINGS},
    {
        **MACHINE,
        "devices": list_of(text()),
        "teacher_miou": maybe(SHARE),
        "teacher_train_miou": maybe(SHARE),
        "teacher_per_class_iou": maybe(list_of(maybe(SHARE), most=254)),
        "scored_views": table_of(whole()),
        "fidelity": fields({}, {"views": whole()}),
    },
)
IDENTITY: Kind = fields(
    {
        **dict.fromkeys(("augment", "teacher", "arrays"), SECTION),
        "dataset": all_of(SECTION, fields({"num_classes": whole(2, 254)})),
    }
)


def list_devices(information: Mapping) -> list[str]:
    """Names of the devices that have written groups of a cache, "cpu" or that of a GPU, as its
    information says; none if an older kdcache wrote it.
    """
    last = [information["device"]] if "device" in information else []
    return information.get("devices", last)


def join_devices(information: Mapping, machine: Mapping) -> dict:
    """The field `devices` of a cache that another machine goes on with, empty as long as its one
    device says all: so a cache that CPUs wrote stays what it was, to the last byte.

    Args:
        information: so far. machine: as `describe_machine`, or nothing if it will write nothing.
    """
    names = {*list_devices(information), *list_devices(machine)}
    return {"devices": sorted(names)} if len(names) > 1 else {}


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
    absent = Phrase("absent")
    names = [*left, *(name for name in right if name not in left)]
    pairs = ((name, left.get(name, absent), right.get(name, absent)) for name in names)
    return [pair for pair in pairs if pair[1] != pair[2]]


def check_identity(where: Path, *, found: Mapping, expected: Mapping, cure: str) -> None:
    """Raise CacheMismatchError with every difference, if the identities differ."""
    differences = find_differences(found, expected)
    if not differences:
        return
    facts = "; ".join(
        f"{name} is {_say(old)}, expected {_say(new)}" for name, old, new in differences
    )
    raise CacheMismatchError(f"{where}: {facts}; {cure}")


def hash_facts(facts: Mapping) -> str:
    """sha256 (hex) of JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _say(value: object) -> str:
    """As a message shows it; of hashes the first 12 digits."""
    is_hash = isinstance(value, str) and len(value) == 64
    return show(value[:12] if is_hash else value)


def check_views(views: list, layout: SplitLayout) -> None:
    """Raise FieldError if a view cannot be one of that split: its image lies inside the array."""
    list_of(PADDED if layout.role == "val" else DRAWN)(views)
    most_hw = layout.array("image").item_shape[:2]
    for row, view in enumerate(views):
        top, left, bottom, right = view["image_box"]
        if not (top < bottom <= most_hw[0] and left < right <= most_hw[1]):
            what = f"is {list(view['image_box'])}, expected a box inside {list(most_hw)}"
            raise FieldError(what, f"views[{row}].image_box")
