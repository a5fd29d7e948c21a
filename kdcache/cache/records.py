"""Commit records: one JSON file a shard group, published last. What has no record was never written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from kdcache.cache.layout import Group, SplitLayout, commit_path
from kdcache.cache.manifest import read_json, write_json
from kdcache.errors import CacheCorruptError, CacheIncompleteError


@dataclass(frozen=True)
class CommitRecord:
    """What a group's files must be.

    sample_ids: ids of the group's samples, in order.
    file_bytes: array -> size of its shard file.
    crcs: array -> crc32c of each sample's bytes (the value stored behind the chunk, too).
    views: parameters each view was drawn with, one dict a sample.
    """

    sample_ids: list[str]
    file_bytes: dict[str, int]
    crcs: dict[str, list[int]]
    views: list[dict]


def crc32c(array: np.ndarray) -> int:
    """crc32c of a contiguous array's bytes."""
    return int(google_crc32c.value(array.reshape(-1).view(np.uint8)))


def write_record(root: Path, group: Group, record: CommitRecord) -> None:
    """Publish a record by rename: that rename is the commit."""
    document = {
        "group": group.name,
        "start": group.start,
        "stop": group.stop,
        "sample_ids": record.sample_ids,
        "file_bytes": record.file_bytes,
        "crc32c": record.crcs,
        "views": record.views,
    }
    write_json(commit_path(root, group), document)


def has_record(root: Path, group: Group) -> bool:
    """Whether the group was committed."""
    return commit_path(root, group).is_file()


def read_record(root: Path, layout: SplitLayout, group: Group) -> CommitRecord:
    """Raises CacheIncompleteError where there is none, CacheCorruptError where it does not describe this group."""
    path = commit_path(root, group)
    if not path.is_file():
        raise CacheIncompleteError(f"{root}: shard group {group.name} is missing; run `python -m cache_teacher` again")
    document = read_json(path)
    try:
        _check_document(document, layout, group)
        return CommitRecord(document["sample_ids"], document["file_bytes"], document["crc32c"], document["views"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheCorruptError(
            f"{path}: commit record is damaged ({error}); delete it and run `python -m cache_teacher` again"
        ) from None


def _check_document(document: dict, layout: SplitLayout, group: Group) -> None:
    named = (document["group"], document["start"], document["stop"])
    if named != (group.name, group.start, group.stop):
        raise ValueError(f"it describes {named[0]}")
    count, names = group.stop - group.start, {array.name for array in layout.arrays}
    lists = [document["sample_ids"], document["views"], *document["crc32c"].values()]
    if any(not isinstance(entries, list) or len(entries) != count for entries in lists):
        raise ValueError(f"a list is not {count} long")
    if set(document["crc32c"]) != names or set(document["file_bytes"]) != names:
        raise ValueError("its arrays are not the manifest's")
    if not all(isinstance(crc, int) for crcs in document["crc32c"].values() for crc in crcs):
        raise ValueError("a checksum is no number")
