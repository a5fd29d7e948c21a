"""Commit records, and the sealed JSON documents that they and the manifest are.

Each shard group has one record, published last: a group without a record counts as not written.

A document is sealed with a sha256 of its own bytes, so that any flipped bit is noticed. The seal is
the last field: the sha256 of the file's bytes with 64 zeros in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kdcache.cache.facts import check_views
from kdcache.cache.layout import (
    COMMITS,
    SPLITS,
    UNLABELLED,
    ArraySpec,
    Group,
    SplitLayout,
    commit_key,
    find_role,
    index_bytes,
    record_name,
)
from kdcache.data.lists import DEEP_ID
from kdcache.errors import CacheCorruptError, CacheError, OtherCacheError, one_line
from kdcache.schema import MOST_DEPTH, parse_json
from kdcache.seals import SealError, check_json, seal_json
from kdcache.storage.base import LEASES, ShardFile, Storage
from kdcache.storage.lock import Lease

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CommitRecord:
    """What the files of a shard group must be.

    identity: sha256 (hex) of the identity of the split that the group was made for.
    sample_ids: ids of the group's samples, in order.
    files: array -> its shard file.
    crcs: array -> crc32c of each chunk's bytes; the same value is stored behind the chunk.
    views: parameters that each view was drawn with, one dict for each sample.
    """

    identity: str
    sample_ids: list[str]
    files: dict[str, ShardFile]
    crcs: dict[str, list[int]]
    views: list[dict]

    @property
    def size_bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(file.size_bytes for file in self.files.values())


def write_record(
    storage: Storage, group: Group, record: CommitRecord, *, lease: Lease | None = None
) -> None:
    """Publish a record in one step: the commit. Raises LeaseLostError, OSError."""
    storage.replace(commit_key(group), seal_record(group, record), lease=lease)


def seal_record(group: Group, record: CommitRecord) -> bytes:
    """The bytes of a record's file."""
    files = {
        name: {"size_bytes": file.size_bytes, "sha256": file.sha256}
        for name, file in record.files.items()
    }
    document = {
        "group": group.name,
        "identity": record.identity,
        "start": group.start,
        "stop": group.stop,
        "sample_ids": record.sample_ids,
        "files": files,
        "crc32c": record.crcs,
        "views": record.views,
    }
    return seal_json(document)


def has_record(storage: Storage, group: Group) -> bool:
    """Whether a file or anything else has the key of the group's record; `read_record` checks it.

    Raises CacheError if the storage does not answer: that must not look like an empty cache.
    """
    try:
        return storage.exists(commit_key(group))
    except OSError as error:
        raise _refuse_look(storage.name(commit_key(group)), "commit record", error) from None


def list_records(storage: Storage) -> set[str]:
    """Names of all files in the folder of commit records, by one listing.

    Raises CacheError if the storage does not answer.
    """
    try:
        return storage.list_names(COMMITS)
    except OSError as error:
        raise _refuse_look(storage.name(COMMITS), "commit records", error) from None


def find_begun_splits(storage: Storage) -> set[str]:
    """The splits of which a group is committed or, as far as can be seen at once, being written.

    Groups of parts that were added to a split count as its own.

    Raises CacheError if the storage does not answer.
    """
    names = list_records(storage)
    try:
        leases = {name for name in storage.list_names(LEASES) if "." not in name}  # no .partial
        names |= {name for name in leases if storage.is_held(name)}
    except OSError as error:
        raise _refuse_look(storage.name(LEASES), "leases", error) from None
    return {find_role(name.partition("-")[0]) for name in names} & {*SPLITS, UNLABELLED}


def _refuse_look(where: str, what: str, error: OSError) -> CacheError:
    return CacheError(f"{where}: {what} cannot be looked for ({error.strerror}); mend that first")


def find_committed(storage: Storage, groups: Iterable[Group]) -> list[Group]:
    """Those groups that have a record, by one listing of the folder.

    Raises CacheError if the storage does not answer.
    """
    there = list_records(storage)
    return [group for group in groups if record_name(group) in there]


def read_record(
    storage: Storage, layout: SplitLayout, group: Group, *, identity: str, cure: str
) -> CommitRecord:
    """Read and check the record of a committed group.

    Args:
        identity: sha256 (hex) of the split's identity.
        cure: what to do about a damaged record, for the message.

    Raises: CacheCorruptError if the record is damaged or of another group, OtherCacheError if it is
        of another cache.
    """
    path = storage.name(commit_key(group))
    document = read_sealed(storage, commit_key(group), cure=cure)
    if document.get("identity") != identity:
        found = repr(document.get("identity"))[:13]
        raise OtherCacheError(
            path, f"commit record is of another cache (identity {found}...)", cure=cure
        )
    try:
        _check_place(document, group)
        files = {
            name: ShardFile(file["size_bytes"], file["sha256"])
            for name, file in document["files"].items()
        }
        record = CommitRecord(
            document["identity"],
            document["sample_ids"],
            files,
            document["crc32c"],
            document["views"],
        )
        _check_contents(record, layout, group)
        return record
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CacheCorruptError(path, f"commit record is damaged ({reason})", cure=cure) from None


def _check_place(document: dict, group: Group) -> None:
    named = (document["group"], document["start"], document["stop"])
    if named != (group.name, group.start, group.stop):
        raise ValueError(f"it describes {str(named[0])[:40]!r}")


def _check_contents(record: CommitRecord, layout: SplitLayout, group: Group) -> None:
    count, names = group.stop - group.start, {array.name for array in layout.arrays}
    if set(record.crcs) != names or set(record.files) != names:
        raise ValueError("its arrays are not the manifest's")
    lists = {"sample_ids": record.sample_ids, "views": record.views, **record.crcs}
    wrong = next(
        (name for name, v in lists.items() if not isinstance(v, list) or len(v) != count), None
    )
    if wrong:
        raise ValueError(f"{wrong} is no list of {count}")
    if not all(
        type(crc) is int and 0 <= crc < 2**32 for crcs in record.crcs.values() for crc in crcs
    ):
        raise ValueError("a checksum is no number of 32 bits")
    if not all(isinstance(id, str) and DEEP_ID.fullmatch(id) for id in record.sample_ids):
        raise ValueError("a sample id is not letters, digits, _ - . and / between folders")
    check_views(record.views, layout)
    for name, file in record.files.items():
        _check_size(file.size_bytes, layout, layout.array(name), group)
        if not isinstance(file.sha256, str) or not _SHA256.fullmatch(file.sha256):
            raise ValueError(f"{name} has no sha256")


def _check_size(found: object, layout: SplitLayout, spec: ArraySpec, group: Group) -> None:
    """Raise ValueError if a shard file cannot have that size."""
    most = layout.shard_bytes(spec, group)
    fits = (
        found == most
        if spec.codec is None
        else type(found) is int and index_bytes(layout.shard_samples) < found <= most
    )
    if not fits:
        bound = "" if spec.codec is None else "at most "
        raise ValueError(f"{spec.name} is {repr(found)[:20]} bytes, expected {bound}{most}")


def read_sealed(storage: Storage, key: str, *, cure: str) -> dict:
    """Read a sealed document and check its seal.

    Raises CacheCorruptError if it is missing, unreadable, or its bytes are not those written.
    """
    data = storage.read_document(key, cure=cure)
    try:
        check_json(data)
    except SealError:
        raise CacheCorruptError(
            storage.name(key), "file is damaged, its sha256 is not that of its contents", cure=cure
        ) from None
    return _parse_json(storage.name(key), data, cure=cure)


def read_json(storage: Storage, key: str, *, cure: str) -> dict:
    """Read a JSON object, without checking a seal.

    Raises CacheCorruptError if it is missing, no JSON object, or nested deeper than MOST_DEPTH.
    """
    where = storage.name(key)
    document = _parse_json(where, storage.read_document(key, cure=cure), cure=cure)
    if _is_deeper(document, MOST_DEPTH):
        raise CacheCorruptError(where, f"content is nested deeper than {MOST_DEPTH}", cure=cure)
    return document


def _parse_json(where: str, data: bytes, *, cure: str) -> dict:
    """Raises CacheCorruptError if `data` is no JSON object."""
    try:
        document = parse_json(data)
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
        raise CacheCorruptError(where, f"file is no JSON ({reason})", cure=cure) from None
    if not isinstance(document, dict):
        raise CacheCorruptError(
            where, f"content is a {type(document).__name__}, expected an object", cure=cure
        )
    return document


def _is_deeper(value: object, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(most == 0 or _is_deeper(one, most - 1) for one in inner)
