"""Checks that an array's zarr.json says what the manifest says, so that any Zarr reader gets the numbers we get."""

from __future__ import annotations

from pathlib import Path

from kdcache.cache.layout import ArraySpec, SplitLayout
from kdcache.cache.manifest import read_json
from kdcache.errors import CacheCorruptError, describe

_CRC = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def check_array_metadata(root: Path, layout: SplitLayout, spec: ArraySpec) -> None:
    """Raises CacheCorruptError where zarr.json differs from the manifest in a fact that decides the numbers."""
    path = root / layout.split / spec.name / "zarr.json"
    stored = read_json(path)
    found = _pick_facts(stored) if isinstance(stored, dict) else {}
    for field, expected in _expected_facts(layout, spec).items():
        value = found.get(field)
        if field == "shape" and _covers(value, expected):
            continue  # views are appended: the array may be ahead of the manifest
        if value != expected:
            cure = "restore zarr.json from a copy or rebuild the cache"
            raise CacheCorruptError(describe(path, field=field, found=value, expected=expected, cure=cure))


def _covers(found: object, expected: list[int]) -> bool:
    return (
        isinstance(found, list) and found[1:] == expected[1:] and isinstance(found[0], int) and found[0] >= expected[0]
    )


def _expected_facts(layout: SplitLayout, spec: ArraySpec) -> dict:
    plain = {"name": "bytes"} if spec.dtype == "uint8" else _LITTLE
    return {
        "zarr_format": 3,
        "shape": [layout.num_views, layout.num_samples, *spec.item_shape],
        "data_type": spec.dtype,
        "shard": [1, layout.shard_samples, *spec.item_shape],
        "chunk": [1, 1, *spec.item_shape],
        "codecs": [plain, _CRC],
        "index_codecs": [_LITTLE, _CRC],
        "index_location": "end",
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }


def _pick_facts(stored: dict) -> dict:
    try:
        sharding = stored["codecs"][0]["configuration"]
        return {
            "zarr_format": stored["zarr_format"],
            "shape": stored["shape"],
            "data_type": stored["data_type"],
            "shard": stored["chunk_grid"]["configuration"]["chunk_shape"],
            "chunk": sharding["chunk_shape"],
            "codecs": [_drop_empty(codec) for codec in sharding["codecs"]],
            "index_codecs": [_drop_empty(codec) for codec in sharding["index_codecs"]],
            "index_location": sharding.get("index_location", "end"),
            "chunk_key_encoding": stored["chunk_key_encoding"],
        }
    except (KeyError, IndexError, TypeError):
        return {}


def _drop_empty(codec: dict) -> dict:
    """zarr versions write an empty configuration or none."""
    return {key: value for key, value in codec.items() if value != {}}
