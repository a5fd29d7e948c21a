"""The grid of a split in manifest.json: counts of views and samples, and its arrays."""

from __future__ import annotations

from collections.abc import Mapping

from kdcache.cache.codecs import make_coder
from kdcache.cache.encodings import Encoding, list_shapes, scale_name
from kdcache.cache.layout import (
    DTYPES,
    MOST_GROUPS,
    MOST_ITEM_BYTES,
    UNLABELLED,
    ArraySpec,
    Codec,
    SplitLayout,
    drop_label,
    find_role,
)
from kdcache.config import LEVELS

TARGETS = ("logits", *LEVELS)
_MOST = {"num_views": 10_000, "num_samples": 2**31, "shard_samples": 65_536}


def read_layout(split: str, stored: dict) -> SplitLayout:
    """The grid of a split or part. Raises ValueError, KeyError and the like if it is none."""
    counts = {name: read_count(stored, name, 1, most) for name, most in _MOST.items()}
    arrays = tuple(_read_array(array) for array in stored["arrays"])
    names = [array.name for array in arrays]
    known = {*LEVELS, *(scale_name(target) for target in TARGETS)}
    first = ["image", "logits"] if find_role(split) == UNLABELLED else ["image", "label", "logits"]
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
        read_count({"item_shape": px}, "item_shape", 1, 2**20) for px in stored["item_shape"]
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


def array_to_dict(array: ArraySpec) -> dict:
    """The inverse, for one array."""
    facts = {"name": array.name, "item_shape": array.item_shape, "dtype": array.dtype}
    return facts | ({"codec": array.codec.to_dict()} if array.codec else {})


def read_count(stored: dict, name: str, least: int, most: int) -> int:
    """A whole number of that name. Raises ValueError if it is out of range, KeyError."""
    if type(stored[name]) is not int or not least <= stored[name] <= most:
        raise ValueError(f"{name} is {repr(stored[name])[:40]}, expected {least} to {most}")
    return stored[name]


def check_grids(layouts: Mapping[str, SplitLayout], encodings: Mapping[str, Encoding]) -> None:
    """Raise ValueError if arrays are not those of the encodings; unlabelled has those of train."""
    found = [(array.name, array.item_shape, array.dtype) for array in layouts["train"].arrays]
    expected, shapes = found[:2], {name: shape for name, shape, _ in found}
    for name, encoding in encodings.items():
        expected += list_shapes(name, shapes[name], encoding)
        if encoding.kind == "lowrank" and encoding.rank > encoding.channels:
            raise ValueError(
                f"{name} has {encoding.rank} coefficients of {encoding.channels} channels"
            )
    if found != expected or any(len(shapes[name]) != 3 for name in encodings):
        raise ValueError("its arrays are not those of its encodings")
    if UNLABELLED in layouts and layouts[UNLABELLED].arrays != drop_label(layouts["train"].arrays):
        raise ValueError("arrays of unlabelled are not those of train without label")
    for part, layout in layouts.items():
        whole = layouts[layout.role]
        if (layout.arrays, layout.shard_samples) != (whole.arrays, whole.shard_samples):
            raise ValueError(f"grid of {part} is not that of {layout.role}")
