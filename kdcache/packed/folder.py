"""What a cache does with its folder, done with one file: each function of the folder's that differs has its other half here.

Whatever would change the file is refused: its offsets are taken once, and its export can be repeated.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from kdcache.cache import chunks, documents, folder, leftovers, records, shard
from kdcache.cache.chunks import Chunks
from kdcache.cache.layout import COMMITS, ArraySpec, Group, SplitLayout, commit_path
from kdcache.cache.shard import ShardFile, read_at
from kdcache.errors import CacheCorruptError, CacheError, repair_command, repair_cure
from kdcache.packed.path import PackedPath
from kdcache.packed.table import CURE, read_table
from kdcache.storage.lock import hold_folder


@repair_command.register(PackedPath)
def find_command(root: PackedPath) -> None:
    """Nothing is recomputed in a file."""


@repair_cure.register(PackedPath)
def say_cure(root: PackedPath) -> str:
    """What mends a file."""
    return CURE


@documents.read_bytes.register(PackedPath)
def read_bytes(path: PackedPath, *, cure: str) -> bytes:
    """As of a file."""
    table = path.table
    if path.inner not in table.documents:
        raise CacheCorruptError(path, "file is missing, expected a plain file", cure=cure)
    offset, size = table.documents[path.inner]
    if size > documents.MOST_BYTES:
        raise CacheCorruptError(
            path, f"size is {size} bytes, expected {documents.MOST_BYTES} at most", cure=cure
        )
    room = np.empty(size, np.uint8)
    try:
        with shard.open_plain(table.file) as descriptor:
            got = read_at(descriptor, offset, [room])
    except OSError as error:
        raise CacheCorruptError(path, f"file is unreadable ({error.strerror})", cure=cure) from None
    if got != size:
        raise CacheCorruptError(path, f"size is {got} bytes, expected {size}", cure=cure)
    return room.tobytes()


@chunks.find_chunks.register(PackedPath)
def find_chunks(
    root: PackedPath,
    layout: SplitLayout,
    spec: ArraySpec,
    group: Group,
    *,
    file: ShardFile,
    cure: str,
) -> Chunks:
    """As in a folder, from the table; no checksum stands behind a chunk."""
    table = root.table
    array, shape = (
        table.arrays.get(f"{layout.split}/{spec.name}"),
        (layout.num_views, layout.num_samples, *spec.item_shape),
    )
    if array is None or (array.shape, array.dtype) != (shape, spec.dtype):
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise CacheCorruptError(
            root,
            f"dataset {layout.split}/{spec.name} is {found}, expected {spec.dtype} {shape}",
            cure=cure,
        )
    places = array.places[group.view, group.start : group.stop]
    least, most = (1, spec.most_chunk_bytes) if spec.codec else (spec.item_bytes, spec.item_bytes)
    if not ((least <= places[:, 1]) & (places[:, 1] <= most)).all():
        raise CacheCorruptError(
            root,
            f"chunks of {layout.split}/{spec.name} have another size than their array",
            cure=cure,
        )
    return Chunks(table.file, places, checksums=False)


@shard.check_inside.register(PackedPath)
def check_inside(root: PackedPath, path: PackedPath, *, cure: str) -> None:
    """There are no links."""


@shard.sum_sizes.register(PackedPath)
def sum_sizes(root: PackedPath, files: list[PackedPath]) -> int:
    """Documents, and arrays as a whole: a packed cache is complete."""
    table = root.table
    arrays = {"/".join(path.inner.split("/")[:2]) for path in files} & set(table.arrays)
    sizes = [table.documents[path.inner][1] for path in files if path.inner in table.documents]
    return sum(sizes) + sum(int(table.arrays[name].places[:, :, 1].sum()) for name in arrays)


@records.has_record.register(PackedPath)
def has_record(root: PackedPath, group: Group) -> bool:
    """As in a folder."""
    return commit_path(root, group).exists()


@records.list_records.register(PackedPath)
def list_records(root: PackedPath) -> set[str]:
    """As in a folder."""
    prefix = f"{COMMITS}/"
    return {name.removeprefix(prefix) for name in root.table.documents if name.startswith(prefix)}


@hold_folder.register(PackedPath)
@leftovers.collect_leftovers.register(PackedPath)
@folder.check_changeable.register(PackedPath)
def refuse_change(root: PackedPath, **_: object) -> NoReturn:
    """Raises CacheError, of another kind where a file is there that is no packed cache."""
    if not root.exists():
        raise CacheError(
            f"{root}: cache.path is the name of a packed cache, expected a folder to build in; build there, and "
            "`python -m cache_teacher export` packs it"
        )
    read_table(root.file)
    raise CacheError(
        f"{root}: cache is one file, expected a folder, since a packed cache is never changed; change the folder it was "
        "exported from (`python -m cache_teacher import` makes one again) and export that anew"
    )
