"""A key in a bucket, joined and asked like a path; what it holds is read and written here, whole or in ranges.

Every error is an OSError with words of its own, so that whoever handles those of a disk handles these.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from kdcache.objects.client import ask, check_size

Tag = tuple[str | None, str | None]
"""What a store calls a version: ETag and, where it has them, number."""


class AlreadyThereError(FileExistsError):
    """An object of that key exists, or is no longer the version that was to be replaced."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """One key, or what all keys below it have in common.

    bucket: with its scheme, s3://bucket. key: without / at either end; "" is the bucket itself.
    """

    bucket: str
    key: str

    def __truediv__(self, name: object) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{name}" if self.key else str(name))

    def __reduce__(self) -> tuple:
        """In another process, too, a place is found, and with it what can be done there."""
        from kdcache.storage.place import find_place

        return find_place, (str(self),)

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"

    def joinpath(self, *names: str) -> ObjectPath:
        """As of a path."""
        return self / "/".join(names) if names else self

    @property
    def name(self) -> str:
        """What follows the last /."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """Without the last name."""
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def relative_to(self, above: ObjectPath) -> str:
        """The key below another one."""
        return self.key.removeprefix(f"{above.key}/") if above.key else self.key

    def exists(self) -> bool:
        """Whether there is an object of this key."""
        return self.find_tag() is not None

    is_file = exists

    def is_dir(self) -> bool:
        """Whether there are keys below this one. Raises OSError, also for a bucket that is not there."""
        prefix = f"{self.key}/" if self.key else None
        return ask(
            self,
            lambda bucket: any(len(batch) for batch in bucket.list(prefix=prefix, chunk_size=1)),
        )

    def is_symlink(self) -> bool:
        """There are no links in a bucket."""
        return False

    def iterdir(self) -> list[ObjectPath]:
        """What is directly below. Raises OSError."""
        names = {path.relative_to(self).partition("/")[0] for path, _ in self.walk()}
        return [self / name for name in sorted(names)]

    # --- reading

    def read_bytes(self) -> bytes:
        """All of it. Raises FileNotFoundError, OSError."""
        return ask(self, lambda bucket: bytes(bucket.get(self.key).bytes()))

    def read_into(self, offset: int, room: memoryview) -> int:
        """Fill `room` from a position; returns the number of bytes got. Raises FileNotFoundError, OSError."""
        data = memoryview(
            ask(self, lambda bucket: bucket.get_range(self.key, start=offset, length=len(room)))
        )
        room[: len(data)] = data
        return len(data)

    def size(self) -> int:
        """Bytes. Raises FileNotFoundError, OSError."""
        return ask(self, lambda bucket: bucket.head(self.key)["size"])

    def find_tag(self) -> Tag | None:
        """The version that is there, None where nothing is. Raises OSError."""
        if not self.key:  # the bucket itself
            return None
        try:
            return _get_tag(ask(self, lambda bucket: bucket.head(self.key)))
        except FileNotFoundError:
            return None

    def walk(self) -> list[tuple[ObjectPath, int]]:
        """Every object below this key with its size, as the store lists them. Raises OSError."""
        prefix = f"{self.key}/" if self.key else None
        found = ask(
            self, lambda bucket: [one for batch in bucket.list(prefix=prefix) for one in batch]
        )
        return [(ObjectPath(self.bucket, one["path"]), one["size"]) for one in found]

    # --- writing

    def put(self, data: bytes) -> None:
        """Write it, whatever was there. Raises OSError."""
        check_size(self, data)
        ask(self, lambda bucket: bucket.put(self.key, data, use_multipart=False))

    def create(self, data: bytes) -> Tag:
        """Write it where nothing is; returns its tag. Raises AlreadyThereError, OSError."""
        return self._put_if(data, "create")

    def replace(self, data: bytes, *, tag: Tag) -> Tag:
        """Write it where that version still is; returns the new tag. Raises AlreadyThereError, OSError."""
        known = {
            name: part
            for name, part in zip(("e_tag", "version"), tag, strict=True)
            if part is not None
        }
        return self._put_if(data, known)

    def _put_if(self, data: bytes, mode: str | dict) -> Tag:
        def put(bucket: object) -> dict:
            return bucket.put(self.key, data, mode=mode, use_multipart=False)

        check_size(self, data)
        return _get_tag(ask(self, put, conflict=AlreadyThereError))

    def remove(self) -> None:
        """Remove it, absent ones too. Raises OSError."""
        with suppress(FileNotFoundError):
            ask(self, lambda bucket: bucket.delete(self.key))


def _get_tag(facts: dict) -> Tag:
    return facts["e_tag"], facts["version"]


def parse_address(text: str) -> ObjectPath:
    """s3://bucket/key -> its path. Raises ValueError where there is no bucket."""
    scheme, _, rest = text.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise ValueError(f"{text!r} names no bucket")
    return ObjectPath(f"{scheme}://{bucket}", "/".join(part for part in key.split("/") if part))


def fill(path: ObjectPath, offset: int, slots: list[np.ndarray]) -> int:
    """Fill contiguous arrays one after the other by one request; returns the number of bytes got. Raises OSError."""
    views = [memoryview(slot.reshape(-1).view(np.uint8)) for slot in slots]
    if len(views) == 1:
        return path.read_into(offset, views[0])
    room = memoryview(bytearray(sum(map(len, views))))
    count, start = path.read_into(offset, room), 0
    for view in views:
        part = room[start : min(start + len(view), count)]
        view[: len(part)] = part
        start += len(view)
    return count
