"""zarr.json of the cache, its splits and arrays: what any Zarr v3 reader needs to get the numbers we get.

A pure function of the layout, written and compared here, so that every library version writes and accepts the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from kdcache.cache import durable
from kdcache.cache.documents import read_json
from kdcache.cache.layout import ArraySpec, SplitLayout, metadata_path
from kdcache.errors import CacheCorruptError, repair_cure

_CRC = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
_OTHERS = ("attributes", "consolidated_metadata")  # users and tools may add to these; no number depends on them


def expected_documents(root: Path, layouts: dict[str, SplitLayout]) -> Iterator[tuple[Path, dict]]:
    """Path and contents of every zarr.json of a cache."""
    yield metadata_path(root), _GROUP
    for split, layout in layouts.items():
        yield metadata_path(root, split), _GROUP
        for spec in layout.arrays:
            yield metadata_path(root, split, spec.name), _array_document(layout, spec)


def write_metadata(root: Path, layouts: dict[str, SplitLayout], *, replace: bool = False) -> list[Path]:
    """Write each zarr.json that is absent or has fewer views; with `replace`, also those that are damaged.

    Returns: what was written. Raises: CacheCorruptError where one says something else, OSError.
    """
    written = []
    for path, expected in expected_documents(root, layouts):
        durable.make_folders(path.parent, below=root)
        if path.exists() or path.is_symlink():
            try:
                if check_document(root, path, expected) >= _num_views(expected):
                    continue
            except CacheCorruptError:
                if not replace:
                    raise
        durable.replace_file(path, json.dumps(expected, indent=2).encode())
        written.append(path)
    return written


def check_document(root: Path, path: Path, expected: dict) -> int:
    """The number of views a zarr.json speaks of. Raises CacheCorruptError where it differs in anything else."""
    found = read_json(path, cure=repair_cure(root))
    names = [*expected, *(name for name in found if name not in expected)]
    for name in (name for name in names if name not in _OTHERS):
        if name == "shape" and _is_same_but_views(found.get(name), expected[name]):
            continue
        if found.get(name) != expected.get(name):
            shown = json.dumps(found.get(name, "absent"))[:120], json.dumps(expected.get(name, "absent"))[:120]
            raise CacheCorruptError(path, f"{name} is {shown[0]}, expected {shown[1]}", cure=repair_cure(root))
    return _num_views(found)


def check_metadata(root: Path, layouts: dict[str, SplitLayout]) -> None:
    """Raises CacheCorruptError at the first zarr.json that is damaged, missing, or has fewer views than the manifest."""
    for path, expected in expected_documents(root, layouts):
        found = check_document(root, path, expected)
        if found < _num_views(expected):  # more are none: a growing cache is a step ahead of its manifest
            what = f"it has {found} views, expected {_num_views(expected)}"
            raise CacheCorruptError(path, what, cure=repair_cure(root))


def _is_same_but_views(found: object, expected: list[int]) -> bool:
    return isinstance(found, list) and found[1:] == expected[1:] and type(found[0]) is int


def _num_views(document: dict) -> int:
    return document["shape"][0] if "shape" in document else 0


def _array_document(layout: SplitLayout, spec: ArraySpec) -> dict:
    plain = {"name": "bytes"} if spec.dtype == "uint8" else _LITTLE
    sharding = {
        "chunk_shape": [1, 1, *spec.item_shape],
        "codecs": [plain, _CRC],
        "index_codecs": [_LITTLE, _CRC],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [layout.num_views, layout.num_samples, *spec.item_shape],
        "data_type": spec.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [1, layout.shard_samples, *spec.item_shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["view", "sample", *(None for _ in spec.item_shape)],
        "storage_transformers": [],
    }
