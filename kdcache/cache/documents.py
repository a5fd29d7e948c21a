"""JSON documents of a cache: sealed with the sha256 of their own bytes, so that no flipped bit in them goes unseen.

The seal is the last field. It is taken over the file's bytes with 64 zeros in its place.
"""

from __future__ import annotations

import hashlib
import json
from functools import singledispatch

from kdcache import durable
from kdcache.errors import CacheCorruptError, one_line
from kdcache.storage.place import Place

MOST_BYTES = 256 << 20  # a commit record has about 0.5 kB a sample; more than this is another file
MOST_DEPTH = 64  # of what is compared, hashed and shown: Python's recursion ends near 1000
_ZEROS = b"0" * 64
_TAIL = b'"\n}\n'


def write_sealed(path: Place, document: dict) -> None:
    """Replace a document in one step."""
    durable.replace_file(path, seal(document))


def seal(document: dict) -> bytes:
    """The bytes of a sealed document."""
    body = (
        json.dumps({**document, "sha256": _ZEROS.decode()}, indent=1, allow_nan=False).encode()
        + b"\n"
    )
    return _put_seal(body, hashlib.sha256(body).hexdigest().encode())


def read_sealed(path: Place, *, cure: str) -> dict:
    """The document at `path`. Raises CacheCorruptError where it is unreadable or its bytes are not those written."""
    data = read_bytes(path, cure=cure)
    found = data[-len(_TAIL) - 64 : -len(_TAIL)]
    if (
        not data.endswith(_TAIL)
        or found != hashlib.sha256(_put_seal(data, _ZEROS)).hexdigest().encode()
    ):
        raise CacheCorruptError(
            path, "file is damaged, its sha256 is not that of its contents", cure=cure
        )
    return parse_json(path, data, cure=cure)


def read_json(path: Place, *, cure: str) -> dict:
    """The JSON object at `path`. Raises CacheCorruptError where there is none, or one nested too deep."""
    document = parse_json(path, read_bytes(path, cure=cure), cure=cure)
    if _is_deeper(document, MOST_DEPTH):
        raise CacheCorruptError(path, f"content is nested deeper than {MOST_DEPTH}", cure=cure)
    return document


@singledispatch
def read_bytes(path: Place, *, cure: str) -> bytes:
    """The contents of a small file of the cache. Raises CacheCorruptError; a link is refused, it may lead anywhere."""
    try:
        if path.is_symlink() or not path.is_file():
            what = "a link" if path.is_symlink() else "no file" if path.exists() else "missing"
            raise CacheCorruptError(path, f"file is {what}, expected a plain file", cure=cure)
        if path.stat().st_size > MOST_BYTES:
            what = f"size is {path.stat().st_size} bytes, expected {MOST_BYTES} at most"
            raise CacheCorruptError(path, what, cure=cure)
        return path.read_bytes()
    except OSError as error:
        raise CacheCorruptError(path, f"file is unreadable ({error.strerror})", cure=cure) from None


def parse_json(path: Place, data: bytes, *, cure: str) -> dict:
    """Raises CacheCorruptError where `data` is no JSON object."""
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
        raise CacheCorruptError(path, f"file is no JSON ({reason})", cure=cure) from None
    if not isinstance(document, dict):
        raise CacheCorruptError(
            path, f"content is a {type(document).__name__}, expected an object", cure=cure
        )
    return document


def _is_deeper(value: object, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(most == 0 or _is_deeper(one, most - 1) for one in inner)


def _put_seal(data: bytes, digits: bytes) -> bytes:
    return data[: -len(_TAIL) - 64] + digits + data[-len(_TAIL) :]
