"""What may happen to the files of a cache, one function a fault; each returns the names of the
groups it damages.

With `split` it meets that split; without, one of all groups or train.
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
from kdcache.config import LEVELS

Random = np.random.Generator


def pick_groups(root: Path, random: Random, count: int, *, split: str | None = None) -> list[Group]:
    """Different groups of a cache, or of a split."""
    layouts = read_manifest(root).layouts
    groups = [group for name in ([split] if split else layouts) for group in layouts[name].groups()]
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


def flip_bit(root: Path, random: Random, *, split: str | None = None) -> set[str]:
    """One bit anywhere in a shard."""
    (group,) = pick_groups(root, random, 1, split=split)
    _flip(pick_shard(root, random, group), random)
    return {group.name}


def truncate(root: Path, random: Random, *, split: str | None = None) -> set[str]:
    """A shard loses its end."""
    (group,) = pick_groups(root, random, 1, split=split)
    path = pick_shard(root, random, group)
    if path.exists() and path.stat().st_size:
        os.truncate(path, int(random.integers(path.stat().st_size)))
    return {group.name}


def lose_shard(root: Path, random: Random, *, split: str | None = None) -> set[str]:
    """A shard is deleted."""
    (group,) = pick_groups(root, random, 1, split=split)
    pick_shard(root, random, group).unlink(missing_ok=True)
    return {group.name}


def lose_record(root: Path, random: Random, *, split: str | None = None) -> set[str]:
    """A commit record is deleted."""
    (group,) = pick_groups(root, random, 1, split=split)
    (root / commit_key(group)).unlink(missing_ok=True)
    return {group.name}


def damage_record(root: Path, random: Random, *, split: str | None = None) -> set[str]:
    """One bit of a commit record."""
    (group,) = pick_groups(root, random, 1, split=split)
    _flip((root / commit_key(group)), random)
    return {group.name}


def swap_views(root: Path, random: Random, *, split: str | None = None) -> set[str]:
    """The same array of the same samples, of two views."""
    layout = read_manifest(root).layouts[split or "train"]
    spec = layout.array(LEVELS[int(random.integers(len(LEVELS)))])
    index = int(random.integers(layout.groups_per_view))
    first, second = (layout.group(view, index) for view in (0, 1))
    one, two = ((root / shard_key(spec, group)) for group in (first, second))
    if not (one.exists() and two.exists()):
        return set()
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)
    return {first.name, second.name} if one.read_bytes() != two.read_bytes() else set()


def lose_folder(root: Path, random: Random, *, split: str | None = None) -> set[str]:
    """All of an array's shards."""
    split = split or "train"
    shutil.rmtree(root / split / "mid" / "c", ignore_errors=True)
    return {group.name for group in read_manifest(root).layouts[split].groups()}


def damage_metadata(root: Path, random: Random, *, split: str | None = None) -> set[str]:
    """A zarr.json says something else; no group is to be recomputed for it."""
    path = root / (split or "train") / "low" / "zarr.json"
    path.write_text(json.dumps({"zarr_format": 3, "node_type": "array"}))
    return set()


FAULTS: list[Callable[..., set[str]]] = [
    flip_bit,
    truncate,
    lose_shard,
    lose_record,
    damage_record,
    swap_views,
    lose_folder,
    damage_metadata,
]
