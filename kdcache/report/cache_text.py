"""A cache as plain values and as text: what it holds, how far its building is, and what checks of
it found: damage and repairs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.cache.basis import basis_name, count_basis_bytes
from kdcache.cache.layout import Group, SplitLayout, shard_key
from kdcache.cache.lists import Listed
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import find_committed
from kdcache.errors import MEND, is_forbidden
from kdcache.progress import Progress, Say, join_lines
from kdcache.storage import Storage, open_storage
from kdcache.storage.base import LEASES

if TYPE_CHECKING:
    from kdcache.cache.verify import Damage, Findings
    from kdcache.precompute.repair import Repair

MOST_ROWS = 40
TITLES = ("split", "view", "array", "sample", "file", "what is wrong")


def describe_cache(place: Storage | str | Path) -> dict:
    """Identity, completeness and bytes per array of a cache, JSON values. Raises CacheError."""
    root = open_storage(place)
    manifest = read_manifest(root)
    return {
        "path": str(root),
        "identity_sha256": manifest.identity_hash,
        "splits": {
            split: _describe_split(root, manifest, layout)
            for split, layout in manifest.listed.items()
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
        lines += _format_growth(split)
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


def _describe_split(root: Storage, manifest: Manifest, listed: SplitLayout) -> dict:
    """A split by its samples of today; bytes are those of all its parts."""
    parts = {n: one for n, one in manifest.layouts.items() if one.role == listed.split}
    needed = {group for part in parts for group in manifest.list_groups(part)}
    there = find_committed(root, [group for one in parts.values() for group in one.groups()])
    arrays = {
        spec.name: {
            "dtype": spec.dtype,
            "item_shape": list(spec.item_shape),
            "codec": spec.codec.to_dict() if spec.codec else None,
            "bytes": root.sum_sizes([shard_key(spec, group) for group in there]),
        }
        for spec in listed.arrays
    }
    return {
        "num_samples": listed.num_samples,
        "num_views": listed.num_views,
        "shard_samples": listed.shard_samples,
        "groups": len(needed),
        "groups_committed": len(needed & set(there)),
        **_describe_growth(manifest, listed.split, there),
        "arrays": arrays,
        "bases": count_basis_bytes(manifest.encodings) if listed.split == "train" else {},
        "identity": manifest.identity[listed.split],
    }


def _describe_growth(manifest: Manifest, split: str, there: list[Group]) -> dict:
    """What a split has that grew: parts, samples that are not listed, and how many will be.

    Args:
        there: its committed groups.
    """
    if split not in manifest.parts:
        return {}
    stored, listed, num_listed = Counter[str](), Listed(*manifest.find_lists(split)), 0
    for group in (group for group in there if group.view == 0):
        stored[group.split] += _count(group)
        num_listed += listed.count(group.split, group.start, group.stop)
    facts = {"parts": dict(stored), "not_listed": stored.total() - num_listed}
    growing = manifest.growing.get(split)
    return facts | ({"growing_to": growing.num_samples} if growing else {})


def _format_growth(split: dict) -> list[str]:
    if "parts" not in split:
        return []
    parts = ", ".join(f"{part} {count}" for part, count in split["parts"].items())
    growing = split.get("growing_to")
    return [
        f"  parts: {parts}; {split['not_listed']} of these samples are not listed",
        *([f"  growing: to {growing} samples; these are those of before"] if growing else []),
    ]


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
    manifest = read_manifest(root)
    layouts = manifest.layouts
    missing = {group for part in layouts for group in manifest.list_groups(part)}
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


def describe_findings(findings: Findings, root: Storage) -> dict:
    """JSON values: every damage, and what is still to be written."""
    return {
        "path": str(root),
        "sound": not findings.damage,
        "complete": not findings.unwritten,
        "groups": findings.num_groups,
        "data_bytes": findings.num_bytes,
        "damage": [_describe(damage) for damage in findings.damage],
        "damaged_groups": [group.name for group in findings.damaged_groups],
        "unwritten_groups": [group.name for group in findings.unwritten],
        "repair": root.repair_command if findings.damage and not _is_forbidden(findings) else None,
    }


def format_findings(findings: Findings, root: Storage) -> str:
    """A verdict, a table of damage, and what to do."""
    read = "structure only, --data reads all bytes"
    if findings.num_bytes:
        read = f"{findings.num_bytes / 1e6:.1f} MB of data read"
    lines = [f"{root}: {_format_verdict(findings)}; {findings.num_groups} shard groups, {read}"]
    if findings.damage:
        lines += _format_table(findings.damage)
        cure = f"to repair it: {root.repair_command or root.repair_cure}"
        lines.append(MEND if _is_forbidden(findings) else cure)
    if findings.unwritten:
        count, first = len(findings.unwritten), findings.unwritten[0].name
        missing = f"{count} shard groups are not written yet, the first {first}"
        lines.append(f"half-built: {missing}; `python -m cache_teacher` with its settings goes on")
    return join_lines(lines)


def _is_forbidden(findings: Findings) -> bool:
    """Whether all that was found is that files may not be read."""
    return all(is_forbidden(damage.what) for damage in findings.damage)


def format_repair(repair: Repair, root: Storage, *, dry_run: bool) -> str:
    """What was repaired, or would be."""
    if not (repair.groups or repair.documents or repair.left):
        return f"{root}: sound, nothing to repair"
    would = "would be " if dry_run else ""
    lines = _format_table(repair.findings.damage) if repair.findings.damage else []
    lines += [f"{path}: {would}written anew" for path in repair.documents]
    for group in repair.groups:
        samples = f"samples {group.start} to {group.stop - 1}"
        lines.append(f"{group.name}: {samples}, {would}recomputed")
    for group in repair.left:
        why = "it holds samples that are not listed or have changed, and is taken back"
        lines.append(f"{group.name}: {why}; `python -m cache_teacher` asks about the others again")
    return join_lines([*lines, f"{root}: {len(repair.groups)} shard groups {would}recomputed"])


def _format_verdict(findings: Findings) -> str:
    if not findings.damage:
        return "sound"
    num_groups = len(findings.damaged_groups)
    return f"DAMAGED in {len(findings.damage)} places, {num_groups} shard groups"


def _describe(damage: Damage) -> dict:
    group = damage.group
    return {
        "split": group.split if group else None,
        "view": group.view if group else None,
        "group": group.name if group else None,
        "array": damage.array,
        "sample": damage.sample_id,
        "file": damage.key,
        "what": damage.what,
    }


def _format_table(damage: list[Damage]) -> list[str]:
    """A row per file and kind of damage."""
    alike = groupby(damage, key=lambda one: (one.key, one.what))
    rows = [TITLES, *(_list_cells(list(same)) for _, same in alike)]
    shown = rows[: MOST_ROWS + 1]
    widths = [max(map(len, column)) for column in zip(*rows[:MOST_ROWS], strict=True)]
    widths[-1] = 0
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in shown]
    hidden = len(rows) - len(shown)
    return lines + ([f"... and {hidden} more rows; --json lists all"] if hidden else [])


def _list_cells(alike: list[Damage]) -> tuple[str, ...]:
    """A row of samples with the same kind of damage in the same file."""
    facts, first = _describe(alike[0]), alike[0].sample_id
    more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    view = "" if facts["view"] is None else str(facts["view"])
    samples = "" if first is None else f"{first}{more}"
    array = facts["array"] or ""
    return facts["split"] or "", view, array, samples, facts["file"], facts["what"]
