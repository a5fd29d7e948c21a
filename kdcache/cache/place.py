"""Where a cache can be: a folder, a bucket of an object store, or one file.

They are asked alike: joined with /, read through the functions of `documents`, `records` and `shard`, which know each kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kdcache.checks import refuse
from kdcache.objects.client import SCHEMES

if TYPE_CHECKING:
    from kdcache.objects.path import ObjectPath

Place: TypeAlias = "Path | ObjectPath"


def find_place(given: object) -> Place:
    """What `cache.path` names: s3://, gs:// or az://BUCKET/KEY, or a path. Raises SettingsError."""
    text = str(given)
    if "://" not in text:
        return Path(text) if isinstance(given, str) else given
    if text.partition("://")[0] not in SCHEMES:
        raise refuse("cache.path", text, "a path, or an address that begins with s3://, gs:// or az://")
    from kdcache.objects import folder, leftovers, writer  # noqa: F401  what a folder can, a bucket learns there
    from kdcache.objects.path import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        raise refuse("cache.path", text, f"s3://BUCKET/KEY ({error})") from None


def is_far(place: object) -> bool:
    """Whether each reading is a request to another machine."""
    return not isinstance(place, Path)
