"""JSON documents of a cache, sealed with a sha256 of their own bytes: any flipped bit is noticed.

The seal is the last field. It is the sha256 of the file's bytes with 64 zeros in its place.
"""

from __future__ import annotations

import hashlib
import json

from kdcache.errors import CacheCorruptError, one_line
from kdcache.storage.base import Storage

MOST_DEPTH = 64  # levels of nesting; Python's recursion ends near 1000
_ZEROS = b"0" * 64
_TAIL = b'"\n}\n'


def seal(document: dict) -> bytes:
    """Serialise a JSON object, with its seal. Raises ValueError for NaN or infinity."""
    body = (
        json.dumps({**document, "sha256": _ZEROS.decode()}, indent=1, allow_nan=False).encode()
        + b"\n"
    )
    return _put_seal(body, hashlib.sha256(body).hexdigest().encode())


def read_sealed(storage: Storage, key: str, *, cure: str) -> dict:
    """Read a sealed document and check its seal.

    Raises CacheCorruptError if it is missing, unreadable, or its bytes are not those written.
    """
    data = storage.read_document(key, cure=cure)
    found = data[-len(_TAIL) - 64 : -len(_TAIL)]
    if (
        not data.endswith(_TAIL)
        or found != hashlib.sha256(_put_seal(data, _ZEROS)).hexdigest().encode()
    ):
        raise CacheCorruptError(
            storage.name(key), "file is damaged, its sha256 is not that of its contents", cure=cure
        )
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
        document = json.loads(data.decode())
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


def _put_seal(data: bytes, digits: bytes) -> bytes:
    return data[: -len(_TAIL) - 64] + digits + data[-len(_TAIL) :]
