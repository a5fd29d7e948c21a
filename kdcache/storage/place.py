"""Where a cache can be: a folder, a bucket of an object store, or one file.

They are asked alike: joined with /, read through the functions of `documents`, `records` and `shard`, which know each kind.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

from kdcache.errors import refuse
from kdcache.objects.client import SCHEMES
from kdcache.objects.path import ObjectPath, parse_address
from kdcache.packed.path import PackedPath, is_packed

Place: TypeAlias = Path | ObjectPath | PackedPath


def find_place(given: object) -> Place:
    """What `cache.path` names: s3://, gs:// or az://BUCKET/KEY, a folder or a packed cache's file. Raises SettingsError."""
    text = str(given)
    if re.match(rf"({'|'.join(SCHEMES)}):/+[^/]", text) and "://" not in text:
        raise refuse(
            "cache.path",
            text,
            "s3://BUCKET/KEY, with two slashes; a folder of that name is ./" + text,
        )
    if "://" not in text:
        return _find_packed(text) if is_packed(Path(text)) else Path(text)
    if text.partition("://")[0] not in SCHEMES:
        raise refuse(
            "cache.path", text, "a path, or an address that begins with s3://, gs:// or az://"
        )
    from kdcache.objects import folder, leftovers, writer  # noqa: F401  what a folder can, a bucket learns there

    try:
        return parse_address(text)
    except ValueError as error:
        raise refuse("cache.path", text, f"s3://BUCKET/KEY ({error})") from None


def is_far(place: object) -> bool:
    """Whether each reading is a request to another machine."""
    return isinstance(place, ObjectPath)


def is_one_file(place: object) -> bool:
    """Whether all samples are in a single file."""
    return isinstance(place, PackedPath)


def _find_packed(text: str) -> PackedPath:
    from kdcache.packed import folder, shard  # noqa: F401  what a folder can, a file learns there

    return PackedPath(Path(text))
