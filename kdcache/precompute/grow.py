"""A data set that grows: today's lists on the cache that is there.

A sample is known by its id and the contents of its files. What the cache holds stays where it is;
the others become a new part of their split, and the teacher is asked about those alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kdcache.cache.layout import find_role, record_name
from kdcache.cache.lists import (
    Listed,
    Listing,
    Part,
    hash_lines,
    join_rows,
    name_part,
    spare_notes,
    with_data,
)
from kdcache.cache.manifest import Manifest
from kdcache.cache.merge import find_begun
from kdcache.cache.records import list_records
from kdcache.data.pictures import Split
from kdcache.precompute.contents import Lines, learn_lines, read_lines
from kdcache.precompute.pipeline import Job
from kdcache.progress import Progress

Row = tuple[str, int]  # of the cache: a part, and the row in it


@dataclass(frozen=True)
class Placed:
    """Where today's samples of a split are.

    lines: part -> what is known of its rows, as `Split.lines`. rows: line -> where it is stored.
    """

    split: Split
    lines: dict[str, Lines]
    rows: dict[str, Row]

    @property
    def new(self) -> list[str]:
        """The lines of samples that are not stored."""
        return [line for line in self.split.lines if line not in self.rows]


def follow_lists(job: Job, progress: Progress) -> Job:
    """The job for the cache that is there, of which a split may have another list today.

    A job for a new cache stays as it is. So does one whose cache has other settings, or no sample
    of a split's list: opening it will refuse that.

    Raises: CacheError, DataError.
    """
    there = find_begun(job.storage)
    if there is None or not _is_alike(there, job.manifest):
        return job
    shared = [role for role in job.splits if role in there.identity]
    same = all(there.identity[role] == job.manifest.identity[role] for role in shared)
    if same and not (there.parts or there.growing):
        return job
    placed = {role: _place_samples(job, there, role, progress) for role in shared}
    if not all(one.rows for one in placed.values()):
        return job
    return _extend(job, there, placed)


def _is_alike(there: Manifest, wanted: Manifest) -> bool:
    """Whether both have the same settings and teacher, whatever their samples are."""
    return all(
        with_data(facts, "") == with_data(there.identity[role], "")
        for role, facts in wanted.identity.items()
        if role in there.identity
    )


def _place_samples(job: Job, there: Manifest, role: str, progress: Progress) -> Placed:
    split = job.splits[role]
    known = [there.find_list(role), *([there.growing[role]] if role in there.growing else [])]
    lines = {part: read_lines(job, there, part, known=known) for part in _list_parts(there, role)}
    today, rows = set(split.lines), {}
    wanted = today.difference(*lines.values())
    for part in lines if wanted else ():
        lines[part] = learn_lines(job, there, part, lines[part], wanted=wanted, progress=progress)
    usable = _find_usable(job, there, lines, today)
    listed = (row for listing in known for row in listing.rows())
    for part, row in [*listed, *usable]:
        line = lines[part][row]
        if line in today and (part, row) in usable:
            rows.setdefault(line, (part, row))
    return Placed(split, lines, rows)


def _list_parts(manifest: Manifest, role: str) -> list[str]:
    return [part for part in manifest.layouts if find_role(part) == role]


def _find_usable(
    job: Job, there: Manifest, lines: Mapping[str, Lines], today: set[str]
) -> dict[Row, None]:
    """The rows that need no other place, in order.

    Their group is committed in all views that are wanted; or it is to be written, and all of its
    samples are listed today.
    """
    records, found = list_records(job.storage), {}
    for part, known in lines.items():
        role, layout = find_role(part), there.layouts[part]
        listed = Listed(*there.find_lists(part))
        views = range(_count_views(job, there, role))
        for index in range(layout.groups_per_view):
            group = layout.group(0, index)
            rows = range(group.start, group.stop)
            names = [record_name(replace(group, view=view)) for view in views]
            may_be_written = not there.complete_views[part] or listed.count(
                part, group.start, group.stop
            )
            if all(name in records for name in names) or (
                may_be_written and all(known[row] in today for row in rows)
            ):
                found |= dict.fromkeys((part, row) for row in rows)
    return found


def _count_views(job: Job, there: Manifest, role: str) -> int:
    return max(job.manifest.layouts[role].num_views, there.listed[role].num_views)


def _extend(job: Job, there: Manifest, placed: Mapping[str, Placed]) -> Job:
    """The job whose manifest has today's lists, and a new part for samples that no part holds."""
    fresh = job.manifest
    layouts, complete = dict(there.layouts), dict(there.complete_views)
    growing = {role: one for role, one in there.growing.items() if role not in placed}
    parts = dict(there.parts)
    for role, one in placed.items():
        rows, num_views = dict(one.rows), _count_views(job, there, role)
        if one.new:
            part = name_part(role, there.layouts)
            whole = replace(there.layouts[role], split=part, num_samples=len(one.new))
            layouts[part], complete[part] = whole, 0
            parts[part] = Part(hash_lines(one.new), tuple(one.new))
            rows |= {line: (part, row) for row, line in enumerate(one.new)}
        ranges = join_rows(rows[line] for line in one.split.lines)
        listing = Listing(one.split.fingerprint, ranges)
        layouts |= {part: replace(layouts[part], num_views=num_views) for part in listing.parts}
        if listing != there.find_list(role):
            growing[role] = listing
            parts |= {
                part: Part(there.find_identity(part)["dataset"]["sha256"], tuple(lines))
                for part, lines in one.lines.items()
            }
    added = {role: facts for role, facts in fresh.identity.items() if role not in there.identity}
    manifest = replace(
        there,
        identity={**there.identity, **added},
        layouts={**layouts, **{role: fresh.layouts[role] for role in added}},
        complete_views={**complete, **dict.fromkeys(added, 0)},
        information=fresh.information,
        growing=growing,
        parts=spare_notes(parts),
    )
    return replace(job, manifest=manifest, parts=_line_up(job, manifest, placed))


def _line_up(job: Job, manifest: Manifest, placed: Mapping[str, Placed]) -> dict[str, Split]:
    """Part -> its samples in stored order, None where a row is not listed today."""
    found = {role: split for role, split in job.splits.items() if role not in placed}
    for role, one in placed.items():
        samples = dict(zip(one.split.lines, one.split.samples, strict=True))
        lines = {**one.lines}
        lines |= {p: one.new for p in _list_parts(manifest, role) if p not in lines}
        for part, known in lines.items():
            rows = tuple(samples.get(line) for line in known)
            found[part] = replace(one.split, samples=rows)
    return found
