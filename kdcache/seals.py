"""Seals: a sha256 with each file of a run, a teacher or an export, compared before it is used.

A document of JSON has it as its last field, a file of torch.save as the comment of its archive, so
that file and seal are replaced in one step and any other program reads the file as before. A file
of another kind has it beside it, as `sha256sum` writes it. A sealed file says in a second place
that it is sealed: one whose seal was lost is damaged, not of before.

Seals tell damage. Whoever rewrites a file on purpose can seal it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Mapping
from typing import BinaryIO

log = logging.getLogger("kdcache")
FIELD = "sealed"  # the second place: a field of the document, or of what a file of tensors holds
BESIDE = ".sha256"
NO_JSON_SEAL = "seal is missing or damaged, expected a sha256 as the last field"
_MARK = b"kdcache seal sha256 "  # then 64 digits, of all bytes before them
_DIGITS = 64
_END_BYTES, _END = 22, b"PK\x05\x06"  # the last part of an archive without a comment
_ZEROS = b"0" * _DIGITS
_TAIL = b'"\n}\n'
_BLOCK_BYTES = 1 << 20
_told: set[str] = set()


class SealError(ValueError):
    """A file is not what was sealed, or its seal is gone; the message does not name the file."""


def tell_unsealed(where: object) -> None:
    """Warn that a file cannot be checked; once until `forget_told`, not once a file."""
    if not _told:
        _told.add(str(where))
        log.warning("%s: unsealed (before 0.2), damage to it would pass unseen", where)


def forget_told() -> None:
    """Begin a new command, which warns anew."""
    _told.clear()


def compare_digests(found: str, expected: str) -> None:
    """Raise SealError if a sha256 is another one."""
    if found != expected:
        raise SealError(f"sha256 is {found[:12]}, expected {expected[:12]} as it was written")


def seal_json(document: Mapping) -> bytes:
    """Serialise a JSON object, with its seal. Raises ValueError for NaN or infinity."""
    text = json.dumps({**document, "sha256": _ZEROS.decode()}, indent=1, allow_nan=False)
    body = text.encode() + b"\n"
    return _put_digits(body, hashlib.sha256(body).hexdigest().encode())


def has_json_seal(data: bytes) -> bool:
    """Whether a document ends as those of `seal_json` do."""
    return data.endswith(_TAIL) and _is_digest(data[-len(_TAIL) - _DIGITS : -len(_TAIL)])


def check_json(data: bytes) -> None:
    """Raise SealError unless a document of `seal_json` is what was written."""
    if not has_json_seal(data):
        raise SealError(NO_JSON_SEAL)
    found = hashlib.sha256(_put_digits(data, _ZEROS)).hexdigest()
    compare_digests(found, data[-len(_TAIL) - _DIGITS : -len(_TAIL)].decode())


class SealedArchive:
    """A file that torch.save writes to: it keeps the parts of the archive and takes their sha256.

    Call `finish` once; then `parts` are those of the sealed file.
    """

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Keep a part. A part is hashed when the next one comes: `finish` changes the last one."""
        if self.parts:
            self._sha256.update(self.parts[-1])
        self.parts.append(bytes(data))
        return len(self.parts[-1])

    def flush(self) -> None:
        """Do nothing: the file is in memory."""

    @property
    def size_bytes(self) -> int:
        """Size of what was written."""
        return sum(map(len, self.parts))

    def finish(self) -> list[bytes]:
        """Add the seal as the archive's comment; returns the parts of the file."""
        last = self.parts.pop()
        if last[-_END_BYTES:-18] != _END or last[-2:] != bytes(2):
            raise RuntimeError("torch.save has written no archive")
        last = last[:-2] + struct.pack("<H", len(_MARK) + _DIGITS) + _MARK
        self._sha256.update(last)
        self.parts += [last, self._sha256.hexdigest().encode()]
        return self.parts


def has_archive_seal(file: BinaryIO) -> bool:
    """Whether a file ends as a sealed archive does; it is left at its beginning. Raises OSError."""
    return _find_archive_digest(file) is not None


def check_archive(file: BinaryIO) -> bool:
    """Compare an archive with its seal; the file is left at its beginning.

    Returns: whether it has a seal. Raises: SealError if it is damaged; OSError.
    """
    expected = _find_archive_digest(file)
    if expected is None:
        return False
    sha256, left = hashlib.sha256(), file.seek(0, 2) - _DIGITS
    file.seek(0)
    while left and (block := file.read(min(left, _BLOCK_BYTES))):
        sha256.update(block)
        left -= len(block)
    file.seek(0)
    compare_digests(sha256.hexdigest(), expected)
    return True


def check_contents(contents: object, *, is_sealed: bool) -> None:
    """Raise SealError if what a file holds says that it is sealed, and the file has no seal."""
    if not is_sealed and isinstance(contents, dict) and FIELD in contents:
        raise SealError(
            f"seal is missing, expected one as its field {FIELD!r} says; leave that out if you "
            "have saved it anew"
        )


def format_beside(digest: str, name: str) -> bytes:
    """The contents of a seal beside a file, as `sha256sum -c` reads them."""
    return f"{digest}  {name}\n".encode()


def check_beside(text: str, digest: str) -> None:
    """Raise SealError if a seal beside a file is damaged or another file's."""
    expected = text[:_DIGITS]
    if not _is_digest(expected.encode()):
        raise SealError(f"seal beside it is damaged, expected a sha256 in a file *{BESIDE}")
    compare_digests(digest, expected)


def _find_archive_digest(file: BinaryIO) -> str | None:
    """The digest at the end of a sealed archive; the file is left at its beginning."""
    size = file.seek(0, 2)
    file.seek(max(0, size - len(_MARK) - _DIGITS))
    end = file.read()
    file.seek(0)
    digest = end[-_DIGITS:]
    return digest.decode() if end.startswith(_MARK) and _is_digest(digest) else None


def _is_digest(text: bytes) -> bool:
    return len(text) == _DIGITS and not text.strip(b"0123456789abcdef")


def _put_digits(data: bytes, digits: bytes) -> bytes:
    return data[: -len(_TAIL) - _DIGITS] + digits + data[-len(_TAIL) :]
