"""Where a cache can be: a folder, a bucket of an object store, or one packed file.

`open_storage` turns `cache.path` into one of the three subclasses of `Storage`. The rest of the
library uses the methods of `Storage` and never asks which subclass it has.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kdcache.config.names import clean_address, expand_path
from kdcache.storage.base import ShardFile as ShardFile
from kdcache.storage.base import Storage as Storage
from kdcache.storage.local import LocalFolder as LocalFolder

PACKED_SUFFIXES = (".h5", ".hdf5")


def open_storage(place: Storage | str | Path) -> Storage:
    """The storage at an address; a `Storage` is returned as it is. Nothing is read yet.

    Args:
        place: s3://BUCKET/KEY (gs://, az://), a folder, or the file of a packed cache (.h5).

    Raises: SettingsError if the address is not valid.
    """
    if isinstance(place, Storage):
        return place
    address = clean_address("cache.path", place)
    if isinstance(address, str):
        from kdcache.storage.bucket import Bucket

        return Bucket.at(address)
    if _is_packed(address):
        from kdcache.storage.packed import PackedFile

        return PackedFile(address)
    return LocalFolder(address)


def open_given(place: Storage | str | Path) -> Storage:
    """The storage at an address as a person writes it: ~ and $HOME are put in, else `open_storage`.

    Raises: SettingsError if the address is not valid.
    """
    return open_storage(
        place if isinstance(place, Storage) else expand_path("cache.path", str(place))
    )


def _is_packed(path: Path) -> bool:
    """Whether a path is a file, or has a packed cache's suffix and is no folder."""
    with suppress(OSError):
        return path.is_file() or (path.suffix in PACKED_SUFFIXES and not path.is_dir())
    return False
