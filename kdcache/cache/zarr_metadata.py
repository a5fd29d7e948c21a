"""zarr.json of the cache, its splits and arrays, for any Zarr v3 reader.

It is a pure function of the layout and written here, so that it does not change with the version of
zarr-python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from kdcache.cache.basis import basis_name
from kdcache.cache.encodings import Encoding
from kdcache.cache.layout import ArraySpec, SplitLayout, metadata_key
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import read_json
from kdcache.errors import CacheCorruptError
from kdcache.storage.base import Storage

_CRC = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
# what users and other tools may add; our reader uses neither
_OTHERS = ("attributes", "consolidated_metadata")


@dataclass(frozen=True)
class Document:
    """One zarr.json.

    least_views: the fewest views its shape may have while views are being added to the cache.
    """

    key: str
    contents: dict
    least_views: int = 0


def list_metadata(
    manifest: Manifest, *, splits: tuple[str, ...] | None = None
) -> Iterator[Document]:
    """Every zarr.json of a cache, or of some splits."""
    yield Document(metadata_key(), _GROUP)
    for split in manifest.layouts if splits is None else splits:
        layout, complete = manifest.layouts[split], manifest.complete_views[split]
        yield Document(metadata_key(split), _GROUP)
        for spec in layout.arrays:
            contents = _array_document(layout, spec)
            yield Document(metadata_key(split, spec.name), contents, complete or 1)
        for level, encoding in manifest.encodings.items() if split == "train" else ():
            if encoding.kind == "lowrank":
                contents = _basis_document(encoding)
                yield Document(metadata_key(split, basis_name(level)), contents, encoding.channels)


def write_metadata(
    storage: Storage,
    manifest: Manifest,
    *,
    splits: tuple[str, ...] | None = None,
    replace: bool = False,
) -> None:
    """Write each zarr.json that is missing or has another number of views.

    Args:
        splits: whose; None: of all.
        replace: also replace those that are damaged.

    Raises: CacheCorruptError if one is damaged and `replace` is false, OSError.
    """
    for document in list_metadata(manifest, splits=splits):
        folder = document.key.rpartition("/")[0]
        storage.check_inside(folder, cure="remove the link")
        storage.make_folders(folder)
        if storage.exists(document.key):
            try:
                if _read_views(storage, document) == _num_views(document.contents):
                    storage.flush_folder(folder)  # its writer may have been killed before that
                    continue
            except CacheCorruptError:
                if not replace:
                    raise
        storage.replace(document.key, json.dumps(document.contents, indent=2).encode())


def check_document(storage: Storage, document: Document) -> None:
    """Raise CacheCorruptError if a zarr.json is missing or has other contents."""
    found, most = _read_views(storage, document), _num_views(document.contents)
    # fewer are right while views are being added
    if not document.least_views <= found <= most and most:
        what = f"it has {found} views, expected {most}"
        raise CacheCorruptError(storage.name(document.key), what, cure=storage.repair_cure)


def _read_views(storage: Storage, document: Document) -> int:
    """The number of views in the shape of a zarr.json, 0 for that of a group.

    Raises CacheCorruptError if anything else differs.
    """
    expected, cure = document.contents, storage.repair_cure
    storage.check_inside(document.key, cure=cure)
    found = read_json(storage, document.key, cure=cure)
    names = [*expected, *(name for name in found if name not in expected)]
    for name in (name for name in names if name not in _OTHERS):
        if name == "shape" and _is_same_but_views(found.get(name), expected.get(name)):
            continue
        if found.get(name) != expected.get(name):
            where, ours, theirs = _find_difference(
                name, found.get(name, "absent"), expected.get(name, "absent")
            )
            shown = json.dumps(ours)[:120], json.dumps(theirs)[:120]
            what = f"{where} is {shown[0]}, expected {shown[1]}"
            raise CacheCorruptError(storage.name(document.key), what, cure=cure)
    return _num_views(found)


def _find_difference(where: str, found: object, expected: object) -> tuple[str, object, object]:
    """(dotted name, found, expected) of the first difference inside two JSON values.

    A name is, for example, codecs.0.configuration.codecs.1.name.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [*expected, *(key for key in found if key not in expected)]
        pairs = [(key, found.get(key, "absent"), expected.get(key, "absent")) for key in keys]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = list(zip(range(len(found)), found, expected, strict=True))
    else:
        return where, found, expected
    key, ours, theirs = next(pair for pair in pairs if pair[1] != pair[2])
    return _find_difference(f"{where}.{key}", ours, theirs)


def _is_same_but_views(found: object, expected: list[int] | None) -> bool:
    # the zarr.json of a group has no shape
    lists = isinstance(found, list) and isinstance(expected, list)
    return lists and found[1:] == expected[1:] and type(found[0]) is int


def _num_views(contents: dict) -> int:
    """0 for the zarr.json of a group, which has no shape."""
    return contents["shape"][0] if contents.get("shape") else 0


def _basis_document(encoding: Encoding) -> dict:
    """zarr.json of a basis: one chunk, without a view or sample axis."""
    shape = [encoding.channels, encoding.rank]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [_LITTLE, _CRC],
        "attributes": {},
        "dimension_names": ["channel", "coefficient"],
        "storage_transformers": [],
    }


def _array_document(layout: SplitLayout, spec: ArraySpec) -> dict:
    # one byte has no byte order
    plain = {"name": "bytes"} if spec.dtype in ("uint8", "int8") else _LITTLE
    sharding = {
        "chunk_shape": [1, 1, *spec.item_shape],
        "codecs": [plain, *([spec.codec.to_dict()] if spec.codec else []), _CRC],
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
