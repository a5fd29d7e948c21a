"""What a cache holds, as plain values and as text."""

from __future__ import annotations

from pathlib import Path

from kdcache.cache.basis import basis_name, count_basis_bytes
from kdcache.cache.layout import SplitLayout, shard_path
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import find_committed
from kdcache.cache.shard import sum_sizes


def describe_cache(root: Path) -> dict:
    """Identity, completeness and bytes per array of a cache, JSON values. Raises CacheError."""
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
    """The same for a person."""
    lines = [f"{info['path']}  identity {info['identity_sha256'][:12]}"]
    for name, split in info["splits"].items():
        done, total = split["groups_committed"], split["groups"]
        state = "complete" if done == total else f"half-built: {total - done} groups missing"
        lines.append(
            f"{name}: {split['num_samples']} samples x {split['num_views']} views, {done}/{total} shard groups, {state}"
        )
        for array, facts in split["arrays"].items():
            shape = "x".join(map(str, facts["item_shape"]))
            coded = f", {_name_codec(facts['codec'])}" if facts["codec"] else ""
            lines.append(
                f"  {array:<12} {facts['dtype']:<8} {shape:<14} {facts['bytes'] / 1e6:>12.1f} MB{coded}"
            )
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
    return "\n".join(lines)


def _describe_split(root: Path, manifest: Manifest, layout: SplitLayout) -> dict:
    committed = find_committed(root, layout.groups())
    arrays = {
        spec.name: {
            "dtype": spec.dtype,
            "item_shape": list(spec.item_shape),
            "codec": spec.codec.to_dict() if spec.codec else None,
            "bytes": sum_sizes(root, [shard_path(root, spec, group) for group in committed]),
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
    """blosc zstd."""
    return " ".join([codec["name"], *filter(None, [codec.get("configuration", {}).get("cname")])])


def _flat(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{key} {inner[:12] if isinstance(inner, str) else inner}" for key, inner in value.items()
    )
