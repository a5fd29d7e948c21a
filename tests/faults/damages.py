"""What may happen to the files of a cache, one function a fault; each returns the names of the
groups it damages.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kdcache.cache.layout import Group, commit_key, shard_key
from kdcache.cache.manifest import read_manifest

Random = np.random.Generator


def pick_groups(root: Path, random: Random, count: int) -> list[Group]:
    """Different groups of a cache."""
    groups = [group for layout in read_manifest(root).layouts.values() for group in layout.groups()]
    return [groups[k] for k in random.permutation(len(groups))[:count]]


def pick_shard(root: Path, random: Random, group: Group) -> Path:
    """One of a group's shard files."""
    arrays = read_manifest(root).layouts[group.split].arrays
    return root / shard_key(arrays[int(random.integers(len(arrays)))], group)


def _flip(path: Path, random: Random) -> None:
    """One bit, where an earlier fault has left any."""
    data = bytearray(path.read_bytes() if path.exists() else b"")
    if data:
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        path.write_bytes(data)


def flip_bit(root: Path, random: Random) -> set[str]:
    """One bit anywhere in a shard."""
    (group,) = pick_groups(root, random, 1)
    _flip(pick_shard(root, random, group), random)
    return {group.name}


def truncate(root: Path, random: Random) -> set[str]:
    """A shard loses its end."""
    (group,) = pick_groups(root, random, 1)
    path = pick_shard(root, random, group)
    if path.exists() and path.stat().st_size:
        os.truncate(path, int(random.integers(path.stat().st_size)))
    return {group.name}


def lose_shard(root: Path, random: Random) -> set[str]:
    """A shard is deleted."""
    (group,) = pick_groups(root, random, 1)
    pick_shard(root, random, group).unlink(missing_ok=True)
    return {group.name}


def lose_record(root: Path, random: Random) -> set[str]:
    """A commit record is deleted."""
    (group,) = pick_groups(root, random, 1)
    (root / commit_key(group)).unlink(missing_ok=True)
    return {group.name}


def damage_record(root: Path, random: Random) -> set[str]:
    """One bit of a commit record."""
    (group,) = pick_groups(root, random, 1)
    _flip((root / commit_key(group)), random)
    return {group.name}


def swap_views(root: Path, random: Random) -> set[str]:
    """The same array of the same samples, of two views."""
    layout = read_manifest(root).layouts["train"]
    spec, index = (
        layout.arrays[int(random.integers(3, 6))],
        int(random.integers(layout.groups_per_view)),
    )
    first, second = (layout.group(view, index) for view in (0, 1))
    one, two = ((root / shard_key(spec, group)) for group in (first, second))
    if not (one.exists() and two.exists()):
        return set()
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)
    return {first.name, second.name} if one.read_bytes() != two.read_bytes() else set()


def lose_folder(root: Path, random: Random) -> set[str]:
    """All of an array's shards."""
    shutil.rmtree(root / "train" / "mid" / "c", ignore_errors=True)
    return {group.name for group in read_manifest(root).layouts["train"].groups()}


def damage_metadata(root: Path, random: Random) -> set[str]:
    """A zarr.json says something else; no group is to be recomputed for it."""
    path = root / "train" / "low" / "zarr.json"
    path.write_text(json.dumps({"zarr_format": 3, "node_type": "array"}))
    return set()


FAULTS: list[Callable[[Path, Random], set[str]]] = [
    flip_bit,
    truncate,
    lose_shard,
    lose_record,
    damage_record,
    swap_views,
    lose_folder,
    damage_metadata,
]
