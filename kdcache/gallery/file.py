"""Where a gallery may be written: into a new file or over an older gallery, never into a cache."""

from __future__ import annotations

from pathlib import Path

from kdcache.cache.layout import COMMITS, manifest_path
from kdcache.durable import partial_path
from kdcache.errors import CacheError
from kdcache.storage.place import Place, is_one_file

MARK = '<header id="kdcache-gallery">'
HEAD_BYTES = 64_000  # the mark stands behind the style sheets


def name_cache(place: Place) -> str:
    """What a cache is called: the last name of its folder, key or file."""
    path = Path(str(place)).resolve()
    return path.stem if is_one_file(place) else path.name


def check_out(out: Path) -> None:
    """Before anything is read. Raises CacheError."""
    folder = out.parent.resolve()
    if not folder.is_dir():
        raise CacheError(
            f"{out}: folder {out.parent} is missing, expected one to write into; make it first"
        )
    cache = next((above for above in (folder, *folder.parents) if _is_cache(above)), None)
    if cache:
        raise CacheError(
            f"{out}: folder is inside the cache {cache}, expected another; choose it with --out"
        )
    if out.exists() and not _is_gallery(out):
        raise CacheError(
            f"{out}: file is there and no gallery, expected a new name; choose it with --out, or remove it first"
        )


def write_page(out: Path, html: str) -> int:
    """Returns the size in bytes; the name is taken once all is written. Raises CacheError."""
    partial, data = (
        partial_path(out),
        html.encode(errors="backslashreplace"),
    )  # paths may hold bytes that are no text
    try:
        partial.write_bytes(data)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CacheError(
            f"{out}: gallery cannot be written ({error.strerror}); mend that or choose another --out"
        ) from None
    return len(data)


def _is_cache(folder: Path) -> bool:
    return manifest_path(folder).is_file() and (folder / COMMITS).is_dir()


def _is_gallery(out: Path) -> bool:
    try:
        with out.open("rb") as file:
            return MARK.encode() in file.read(HEAD_BYTES)
    except OSError:
        return False
