"""What is wrong with a cache's files and commit records beyond what `verify_cache` looks for."""

from __future__ import annotations

from pathlib import Path

from numpy.random import Generator, Philox

from kdcache.cache.index import read_group_record
from kdcache.cache.layout import Group, SplitLayout, shard_key
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import has_record
from kdcache.cache.verify import Choose
from kdcache.disk import PARTIAL
from kdcache.storage import open_storage


def choose_within(manifest: Manifest, *, size_bytes: int, seed: int) -> Choose:
    """As many groups, in random order, as have that many bytes of data together; always one."""

    def choose(groups: list[Group]) -> list[Group]:
        chosen, left = [], size_bytes
        for index in Generator(Philox(seed)).permutation(len(groups)):
            left -= manifest.layouts[groups[index].split].group_bytes(groups[index])
            if chosen and left < 0:
                break
            chosen.append(groups[index])
        return chosen

    return choose


def find_missing_records(root: Path, manifest: Manifest) -> list[str]:
    """Groups of views that were complete once, without commit record."""
    return [
        f"{group.name}: commit record is missing"
        for split, layout in manifest.layouts.items()
        for group in layout.groups()
        if group.view < manifest.complete_views[split] and not has_record(open_storage(root), group)
    ]


def find_id_disorder(root: Path, manifest: Manifest) -> list[str]:
    """Groups whose samples are not those of the same group in other views, and ids that occur twice
    in a split.

    With both absent the order of ids is the same in all views.
    """
    return [
        line
        for layout in manifest.layouts.values()
        for line in _find_id_disorder(root, manifest, layout)
    ]


def _find_id_disorder(root: Path, manifest: Manifest, layout: SplitLayout) -> list[str]:
    first: dict[int, Group] = {}
    ids: dict[int, list[str]] = {}
    found = []
    for group in filter(lambda group: has_record(open_storage(root), group), layout.groups()):
        these = read_group_record(open_storage(root), manifest, group).sample_ids
        if ids.setdefault(group.index, these) != these:
            found.append(f"{group.name}: its samples are not those of {first[group.index].name}")
        first.setdefault(group.index, group)
    seen: dict[str, int] = {}
    for index in sorted(ids):
        twice = [
            id for place, id in enumerate(ids[index]) if id in seen or id in ids[index][:place]
        ]
        found += [
            f"{first[index].name}: sample {id!r} occurs twice in {layout.split}" for id in twice
        ]
        seen |= dict.fromkeys(ids[index], index)
    return found


def find_strays(root: Path, manifest: Manifest) -> list[str]:
    """Files where only shards may lie that are no shard of the grid; what a killed run left
    half-written is `gc`'s.
    """
    grid = {
        (root / shard_key(spec, group))
        for layout in manifest.layouts.values()
        for group in layout.groups()
        for spec in layout.arrays
    }
    files = (
        path
        for split in manifest.layouts
        for path in (root / split).glob("*/c/**/*")
        if not path.is_dir()
    )
    strays = [path for path in files if path not in grid and path.suffix != PARTIAL]
    return [f"{path.relative_to(root)}: file is beyond the grid" for path in sorted(strays)]
