"""What verifying and repairing found, as text and as plain values."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.cache.verify import Damage, Findings
from kdcache.errors import repair_command, repair_cure

if TYPE_CHECKING:
    from kdcache.precompute.repair import Repair

MOST_ROWS = 40
_TITLES = ("split", "view", "array", "sample", "file", "what is wrong")


def describe_findings(findings: Findings, root: Path) -> dict:
    """JSON values: every damage, and what is still to be written."""
    return {
        "path": str(root),
        "sound": not findings.damage,
        "complete": not findings.unwritten,
        "groups": findings.num_groups,
        "data_bytes": findings.num_bytes,
        "damage": [_describe(damage, root) for damage in findings.damage],
        "damaged_groups": [group.name for group in findings.damaged_groups],
        "unwritten_groups": [group.name for group in findings.unwritten],
        "repair": repair_command(root) if findings.damage else None,
    }


def format_findings(findings: Findings, root: Path) -> str:
    """A verdict, a table of damage, and what to do."""
    read = (
        f"{findings.num_bytes / 1e6:.1f} MB of data read"
        if findings.num_bytes
        else "structure only, --data reads all bytes"
    )
    lines = [f"{root}: {_verdict(findings)}; {findings.num_groups} shard groups, {read}"]
    if findings.damage:
        lines += [
            *_format_table(findings.damage, root),
            f"to repair it: {repair_command(root) or repair_cure(root)}",
        ]
    if findings.unwritten:
        names = f"{len(findings.unwritten)} shard groups are not written yet, the first {findings.unwritten[0].name}"
        lines.append(f"half-built: {names}; `python -m cache_teacher` with its settings goes on")
    return "\n".join(lines)


def format_repair(repair: Repair, root: Path, *, dry_run: bool) -> str:
    """What was done, or would be."""
    if not (repair.groups or repair.documents):
        return f"{root}: sound, nothing to repair"
    would = "would be " if dry_run else ""
    lines = _format_table(repair.findings.damage, root) if repair.findings.damage else []
    lines += [f"{path.relative_to(root)}: {would}written anew" for path in repair.documents]
    lines += [
        f"{group.name}: samples {group.start} to {group.stop - 1}, {would}recomputed"
        for group in repair.groups
    ]
    return "\n".join([*lines, f"{root}: {len(repair.groups)} shard groups {would}recomputed"])


def _verdict(findings: Findings) -> str:
    if not findings.damage:
        return "sound"
    return f"DAMAGED in {len(findings.damage)} places, {len(findings.damaged_groups)} shard groups"


def _describe(damage: Damage, root: Path) -> dict:
    return {
        "split": damage.group.split if damage.group else None,
        "view": damage.group.view if damage.group else None,
        "group": damage.group.name if damage.group else None,
        "array": damage.array,
        "sample": damage.sample_id,
        "file": str(damage.path.relative_to(root)),
        "what": damage.what,
    }


def _format_table(damage: list[Damage], root: Path) -> list[str]:
    """A row a file and kind of damage."""
    rows = [_TITLES]
    for _, same in groupby(damage, key=lambda d: (d.path, d.what)):
        alike = list(same)
        facts, ids = _describe(alike[0], root), [one.sample_id for one in alike]
        samples = (
            ""
            if ids[0] is None
            else ids[0]
            if len(ids) == 1
            else f"{ids[0]} and {len(ids) - 1} more"
        )
        view = "" if facts["view"] is None else str(facts["view"])
        rows.append(
            (
                facts["split"] or "",
                view,
                facts["array"] or "",
                samples,
                facts["file"],
                facts["what"],
            )
        )
    widths = [
        max(len(row[column]) for row in rows[:MOST_ROWS]) for column in range(len(_TITLES) - 1)
    ] + [0]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    more = (
        [f"... and {len(lines) - 1 - MOST_ROWS} more rows; --json lists all"]
        if len(lines) > MOST_ROWS + 1
        else []
    )
    return lines[: MOST_ROWS + 1] + more
