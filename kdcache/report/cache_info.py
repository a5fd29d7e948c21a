"""What a cache holds, as plain values and as text, and how far its building is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from kdcache.cache.basis import basis_name, count_basis_bytes
from kdcache.cache.layout import Group, SplitLayout, shard_key
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import find_committed
from kdcache.progress import Progress, Say, join_lines
from kdcache.storage import Storage, open_storage
from kdcache.storage.base import LEASES


def describe_cache(place: Storage | str | Path) -> dict:
    """Identity, completeness and bytes per array of a cache, JSON values. Raises CacheError."""
    root = open_storage(place)
    manifest = read_manifest(root)
    return {
        "path": str(root),
        "identity_sha256": manifest.identity_hash,
        "splits": {
            split: _describe_split(root, manifest, layout)
            for split, layout in manifest.layouts.items()
        },
        "information": manifest.information,
    }


def format_info(info: dict) -> str:
    """The facts of `describe_cache` as text."""
    lines = [f"{info['path']}  identity {info['identity_sha256'][:12]}"]
    for name, split in info["splits"].items():
        done, total = split["groups_committed"], split["groups"]
        state = "complete" if done == total else f"half-built: {total - done} groups missing"
        size = f"{split['num_samples']} samples x {split['num_views']} views"
        lines.append(f"{name}: {size}, {done}/{total} shard groups, {state}")
        for array, facts in split["arrays"].items():
            lines.append(_format_array(array, facts))
        lines += [
            f"  {basis_name(level):<12} {size / 1e6:>36.1f} MB"
            for level, size in split["bases"].items()
        ]
        lines += [
            f"  {key}: {_flat(value)}"
            for key, value in split["identity"].items()
            if key != "arrays"
        ]
    for where, name in (("val", "teacher_miou"), ("training views", "teacher_train_miou")):
        miou = info["information"].get(name)
        lines.append(
            f"teacher's mIoU on {where}: {'not measured yet' if miou is None else f'{miou:.4f}'}"
        )
    return join_lines(lines)


def _format_array(name: str, facts: dict) -> str:
    shape = "x".join(map(str, facts["item_shape"]))
    coded = f", {_name_codec(facts['codec'])}" if facts["codec"] else ""
    size = f"{facts['bytes'] / 1e6:>12.1f} MB"
    return f"  {name:<12} {facts['dtype']:<8} {shape:<14} {size}{coded}"


def _describe_split(root: Storage, manifest: Manifest, layout: SplitLayout) -> dict:
    committed = find_committed(root, layout.groups())
    arrays = {
        spec.name: {
            "dtype": spec.dtype,
            "item_shape": list(spec.item_shape),
            "codec": spec.codec.to_dict() if spec.codec else None,
            "bytes": root.sum_sizes([shard_key(spec, group) for group in committed]),
        }
        for spec in layout.arrays
    }
    return {
        "num_samples": layout.num_samples,
        "num_views": layout.num_views,
        "shard_samples": layout.shard_samples,
        "groups": layout.num_groups,
        "groups_committed": len(committed),
        "arrays": arrays,
        "bases": count_basis_bytes(manifest.encodings) if layout.split == "train" else {},
        "identity": manifest.identity[layout.split],
    }


def _name_codec(codec: dict) -> str:
    """The codec in words, as in `blosc zstd`."""
    return " ".join([codec["name"], *filter(None, [codec.get("configuration", {}).get("cname")])])


def _flat(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{key} {inner[:12] if isinstance(inner, str) else inner}" for key, inner in value.items()
    )


def watch_cache(
    place: Storage | str | Path,
    *,
    every_s: float,
    progress: Progress,
    say: Say,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show how many samples are committed until all are, whichever machines write them.

    Only the cache's folder is read: its writers are not asked. Views that are added meanwhile are
    not waited for.

    Args:
        every_s: seconds between two looks at the commit records.

    Raises: CacheError if `root` is no cache or cannot be read.
    """
    root = open_storage(place)
    layouts = read_manifest(root).layouts
    missing = {group for layout in layouts.values() for group in layout.groups()}
    total = sum(map(_count, missing))
    missing -= set(find_committed(root, missing))
    left = sum(map(_count, missing))
    say(f"{root}: {total - left} of {total} samples are there{_name_writers(root)}")
    with progress.start("committed", total=left, unit="samples") as bar:
        while missing:
            sleep(every_s)
            read_manifest(root)  # it may have been moved away
            new = find_committed(root, missing)
            missing -= set(new)
            files = [
                shard_key(spec, group) for group in new for spec in layouts[group.split].arrays
            ]
            bar.advance(sum(map(_count, new)), size_bytes=root.sum_sizes(files))


def _name_writers(root: Storage) -> str:
    """Processes that hold leases, with the number of their groups.

    Those of other machines too, if the file system tells of them.
    """
    names = [name for name in root.list_names(LEASES) if root.is_held(name)]
    holders = Counter(root.read_holder(name) for name in names)
    told = ", ".join(f"{holder} ({count})" for holder, count in sorted(holders.items()))
    return f"; writing now, with so many shard groups: {told}" if told else "; nobody is writing"


def _count(group: Group) -> int:
    return group.stop - group.start
