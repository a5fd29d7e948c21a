"""A reader with local copies of its shard files, and what it says."""

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.stage import Stage

PLENTY = 10**9


def open_staged(root, folder, *, limit_bytes=PLENTY) -> CacheReader:
    return CacheReader(
        root, read_manifest(root), "train", stage=Stage(folder, limit_bytes=limit_bytes)
    )


def read_all(reader: CacheReader) -> list:
    layout = reader.layout
    return [
        reader.read(spec.name, view, sample).tobytes()
        for view in range(reader.num_views)
        for sample in range(layout.num_samples)
        for spec in layout.arrays
    ]


def list_copies(folder) -> list:
    return sorted(path for path in folder.glob("??/*"))
