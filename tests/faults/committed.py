"""The files of a cache that are committed, to be compared before and after."""

from __future__ import annotations

from pathlib import Path

from kdcache.cache.index import read_group_record
from kdcache.cache.layout import Group, shard_key
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import has_record
from kdcache.storage import open_storage


def committed_files(root: Path) -> dict[Path, tuple]:
    """(inode, time of change, contents) of every file that a commit record names, and of the
    records.
    """
    if not (root / "manifest.json").is_file():
        assert not list(root.glob("commits/*.json"))
        return {}
    manifest, found = read_manifest(root), {}
    for layout in manifest.layouts.values():
        for group in filter(lambda group: has_record(open_storage(root), group), layout.groups()):
            read_group_record(open_storage(root), manifest, group)
            for path in [root / "commits" / f"{group.name}.json", *_shards(root, manifest, group)]:
                found[path] = (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
    return found


def _shards(root: Path, manifest: Manifest, group: Group) -> list[Path]:
    return [(root / shard_key(spec, group)) for spec in manifest.layouts[group.split].arrays]
