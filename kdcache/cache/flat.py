"""A cache that grew as the plain cache of today's lists: what a build for them alone would store.

It has one part a split, in the order of the list, and the same chunks; its records are made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from kdcache.cache.layout import CRC_BYTES, ArraySpec, Group
from kdcache.cache.manifest import Manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.records import CommitRecord
from kdcache.cache.shards import list_tail
from kdcache.storage.base import ShardFile


def flatten_manifest(manifest: Manifest) -> Manifest:
    """The manifest of the plain cache; `manifest` itself if it is one."""
    if not (manifest.lists or manifest.parts):
        return manifest
    complete = {split: manifest.count_complete(split) for split in manifest.identity}
    information = manifest.information
    return Manifest(manifest.identity, manifest.listed, complete, information)


def flatten_record(reader: CacheReader, manifest: Manifest, group: Group) -> CommitRecord:
    """The commit record of a group of the plain cache; if it grew, its chunks are read for that.

    Args:
        reader: of the split in the cache as it is. manifest: of the plain cache.

    Raises: CacheCorruptError.
    """
    if reader.is_plain:
        return reader.read_record(group)
    rows = find_rows(reader, group.view, range(group.start, group.stop))
    arrays = manifest.layouts[group.split].arrays
    crcs = {spec.name: [record.crcs[spec.name][row] for record, row in rows] for spec in arrays}
    return CommitRecord(
        manifest.split_hash(group.split),
        [record.sample_ids[row] for record, row in rows],
        {spec.name: _hash_shard(reader, spec, group, crcs[spec.name]) for spec in arrays},
        crcs,
        [record.views[row] for record, row in rows],
    )


def find_rows(
    reader: CacheReader, view: int, samples: Iterable[int]
) -> list[tuple[CommitRecord, int]]:
    """The commit record of each sample's group, and its row there. Raises CacheCorruptError."""
    places = [reader.find_group(view, sample) for sample in samples]
    records = {group: reader.read_record(group) for group in {group for group, _ in places}}
    return [(records[group], row) for group, row in places]


def _hash_shard(reader: CacheReader, spec: ArraySpec, group: Group, crcs: list[int]) -> ShardFile:
    """The shard file that a group's chunks make."""
    total, sizes = hashlib.sha256(), []
    for sample, crc in zip(range(group.start, group.stop), crcs, strict=True):
        chunk = reader.read_stored(spec.name, group.view, sample)
        total.update(chunk)
        total.update(crc.to_bytes(CRC_BYTES, "little"))
        sizes.append(chunk.size)
    tail = list_tail(sizes, shard_samples=reader.layout.shard_samples)
    for part in tail:
        total.update(part)
    size_bytes = sum(sizes) + CRC_BYTES * len(sizes) + sum(map(len, tail))
    return ShardFile(size_bytes, total.hexdigest())
