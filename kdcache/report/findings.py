"""What checks of a cache found, as text and as plain values: damage, repairs, and its fidelity."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from kdcache.progress import join_lines

if TYPE_CHECKING:
    from kdcache.cache.verify import Damage, Findings
    from kdcache.precompute.repair import Repair
    from kdcache.storage import Storage

MOST_ROWS = 40
TITLES = ("split", "view", "array", "sample", "file", "what is wrong")


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
        "repair": root.repair_command if findings.damage else None,
    }


def format_findings(findings: Findings, root: Storage) -> str:
    """A verdict, a table of damage, and what to do."""
    read = "structure only, --data reads all bytes"
    if findings.num_bytes:
        read = f"{findings.num_bytes / 1e6:.1f} MB of data read"
    lines = [f"{root}: {_format_verdict(findings)}; {findings.num_groups} shard groups, {read}"]
    if findings.damage:
        lines += _format_table(findings.damage)
        lines.append(f"to repair it: {root.repair_command or root.repair_cure}")
    if findings.unwritten:
        count, first = len(findings.unwritten), findings.unwritten[0].name
        missing = f"{count} shard groups are not written yet, the first {first}"
        lines.append(f"half-built: {missing}; `python -m cache_teacher` with its settings goes on")
    return join_lines(lines)


def format_repair(repair: Repair, root: Storage, *, dry_run: bool) -> str:
    """What was repaired, or would be."""
    if not (repair.groups or repair.documents):
        return f"{root}: sound, nothing to repair"
    would = "would be " if dry_run else ""
    lines = _format_table(repair.findings.damage) if repair.findings.damage else []
    lines += [f"{path}: {would}written anew" for path in repair.documents]
    for group in repair.groups:
        samples = f"samples {group.start} to {group.stop - 1}"
        lines.append(f"{group.name}: {samples}, {would}recomputed")
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


def format_fidelity(result: dict, root: object) -> str:
    """A comparison with the live teacher: answers, gradients of students, what is beyond its limit.

    Args:
        result: as `measure_fidelity` gives it. root: the cache.
    """
    views = f"{result['samples']} samples of {result['views']} views"
    asked = f"{views} (seed {result['seed']}, {result['device']})"
    lines = [f"{root}: cached against live answers of {asked}"]
    if result["views"] < result["planned_views"]:
        there = f"{result['views']} of {result['planned_views']} views"
        lines.append(f"  half-built: {there} are looked at")
    for name, facts in result["answers"].items():
        least = f"expected: cosine {result['least_cosines'][name]:g} or more"
        lines.append(f"{_format_answer(name, facts)}; {least}")
    for name, terms in result["students"].items():
        for term, facts in terms.items():
            is_judged = name == result["judged"]
            limit = f"expected: {_format_limit(result['limits'][term])}"
            gradients = _format_gradients(name, term, facts)
            lines.append(f"{gradients}; {limit if is_judged else 'not judged'}")
    failures = [f"BEYOND ITS LIMIT: {failure}" for failure in result["failures"]]
    return join_lines(lines + (failures or ["faithful: every limit is kept"]))


def format_fidelity_line(result: dict) -> str:
    """The line about fidelity at the end of phase one."""
    judged = result["judged"]
    felt = result["students"][judged]
    told = ", ".join(f"{term} {felt[term]['grad_cos']:.7f}" for term in result["limits"])
    return (
        f"fidelity of {result['samples']} samples: cosine of the gradients that a student "
        f"{judged} receives, cached against live: {told}"
    )


def _format_answer(name: str, facts: dict) -> str:
    error = f"error {facts['relative']:.1e} of the values, at most {facts['max_abs']:.2g}"
    line = f"  {name:<7} {facts['encoding']:<8} cosine {facts['cosine']:.7f}, {error}"
    if "kl" in facts:
        kl = f"KL at T={facts['temperature']:g} {facts['kl']:.1e}"
        line += f"; {kl}, same class {100 * facts['agreement']:.2f} %"
    return line


def _format_gradients(student: str, term: str, facts: dict) -> str:
    loss = f"{term} loss differs by {facts['loss_rel']:.1e}"
    line = f"  student {student}: {loss}, gradient's cosine {facts['grad_cos']:.7f}"
    if "align_grad_cos" in facts:
        line += f", projections' {facts['align_grad_cos']:.7f}"
    return line


def _format_limit(limit: dict) -> str:
    loss = "" if limit["loss_rel"] is None else f", loss within {limit['loss_rel']:g}"
    return f"cosine {limit['grad_cos']:g} or more{loss}"
