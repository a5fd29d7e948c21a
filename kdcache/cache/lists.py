"""Which samples of a split are listed today, if some were added or taken out after it was built.

A split begins as one part of its own name. Samples that come later are a part of their own,
`train_2`, `train_3` and so on, with arrays, shard groups and records like a split's. Parts never
change; a list says which of their rows are samples today, and in which order.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from kdcache.cache.layout import SPLITS, UNLABELLED, Group, SplitLayout, find_role
from kdcache.data.lists import DEEP_ID

MOST_ROW = 2**31  # of a part
MOST_NOTED = 150_000  # samples whose contents a manifest notes, of all parts: below 30 MB
_PART = re.compile(rf"({'|'.join([*SPLITS, UNLABELLED])})_([2-9]|[1-9][0-9]{{1,3}})")
_ROWS = re.compile(r"([a-z]+(?:_[0-9]{1,4})?) ([0-9]{1,10}):([0-9]{1,10})")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOTED = re.compile(rf"{DEEP_ID.pattern}( [0-9a-f]{{64}}(@[2-8])?){{1,2}}")


@dataclass(frozen=True)
class Listing:
    """The samples of a split in the order of its list.

    sha256: of ids and files of these samples, as in the identity of a cache built for them.
    ranges: (part, start, stop) of stored rows, `stop` exclusive.
    """

    sha256: str
    ranges: tuple[tuple[str, int, int], ...]

    @property
    def num_samples(self) -> int:
        """How many samples are listed."""
        return sum(stop - start for _, start, stop in self.ranges)

    @property
    def parts(self) -> list[str]:
        """Names of the parts that hold listed samples."""
        return list(dict.fromkeys(part for part, _, _ in self.ranges))

    def rows(self) -> Iterator[tuple[str, int]]:
        """(part, row) of each sample, in order."""
        return ((part, row) for part, start, stop in self.ranges for row in range(start, stop))

    def to_dict(self) -> dict:
        """For the manifest."""
        rows = [f"{part} {start}:{stop}" for part, start, stop in self.ranges]
        return {"sha256": self.sha256, "rows": rows}


class Rows:
    """Where the samples of a split are stored: each in a row of a part.

    Args:
        listing: None: sample n is row n of the one part, which is the split.
    """

    def __init__(self, split: str, listing: Listing | None) -> None:
        self.listing, self.is_whole = listing, listing is None
        self.parts = (split,) if listing is None else tuple(listing.parts)

    @cached_property
    def _places(self) -> tuple[array, array]:
        """The number of the part of each sample, and its row there; asked for once all are there.

        Before that a manifest of a few bytes could ask for any memory.
        """
        number = {part: place for place, part in enumerate(self.parts)}
        parts = array("i", (number[part] for part, _ in self.listing.rows()))
        return parts, array("i", (row for _, row in self.listing.rows()))

    def find(self, sample: int) -> tuple[str, int]:
        """The part that holds a sample, and its row there."""
        if self.is_whole:
            return self.parts[0], sample
        parts, rows = self._places
        return self.parts[parts[sample]], rows[sample]

    def list_groups(self, layouts: Mapping[str, SplitLayout]) -> list[Group]:
        """The shard groups of view 0 that hold the samples, part by part."""
        if self.listing is None:
            layout = layouts[self.parts[0]]
            return [layout.group(0, index) for index in range(layout.groups_per_view)]
        found = {part: find_groups(layouts[part], [self.listing]) for part in self.parts}
        return [layouts[part].group(0, index) for part in found for index in sorted(found[part])]


@dataclass(frozen=True)
class Part:
    """What a part was made of.

    sha256: of ids and files of its samples, in its order; its records have it in their identity.
    samples: id and hashes of each row, as `Split.lines`; None for a row of which they are not
        known, and None if none are noted.
    """

    sha256: str
    samples: tuple[str | None, ...] | None = None


def hash_lines(lines: Iterable[str]) -> str:
    """The sha256 (hex) of a data set, from `Split.lines`."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def join_rows(rows: Iterable[tuple[str, int]]) -> tuple[tuple[str, int, int], ...]:
    """The ranges of a `Listing`, from (part, row) of each sample."""
    ranges: list[tuple[str, int, int]] = []
    for part, row in rows:
        if ranges and ranges[-1][0] == part and ranges[-1][2] == row:
            ranges[-1] = (part, ranges[-1][1], row + 1)
        else:
            ranges.append((part, row, row + 1))
    return tuple(ranges)


def is_part(name: str) -> bool:
    """Whether a part that was added to a split may have this name."""
    return _PART.fullmatch(name) is not None


def name_part(role: str, parts: Iterable[str]) -> str:
    """The name of the next part of a split, besides those there are."""
    taken = [int(part.rpartition("_")[2]) for part in parts if is_part(part)]
    return f"{role}_{max(taken, default=1) + 1}"


def with_data(identity: Mapping, sha256: str) -> dict:
    """The identity of the same split for other samples."""
    return {**identity, "dataset": {**identity["dataset"], "sha256": sha256}}


def find_groups(layout: SplitLayout, listings: Iterable[Listing]) -> set[int]:
    """Indices of the shard groups of a part that hold a sample of one of the lists."""
    size, found = layout.shard_samples, set()
    for listing in listings:
        for part, start, stop in listing.ranges:
            if part == layout.split:
                found |= set(range(start // size, (stop - 1) // size + 1))
    return found


class Listed:
    """Counts the rows of parts that are in one of some lists."""

    def __init__(self, *listings: Listing) -> None:
        self._ends: dict[str, list[tuple[int, int]]] = {}
        """Part -> (start, stop) of its listed rows, in order and apart."""
        for part, start, stop in sorted(one for listing in listings for one in listing.ranges):
            ends = self._ends.setdefault(part, [])
            if ends and start <= ends[-1][1]:
                start, stop = ends[-1][0], max(stop, ends.pop()[1])
            ends.append((start, stop))

    def count(self, part: str, start: int, stop: int) -> int:
        """How many of these rows of a part are listed."""
        ends = self._ends.get(part, [])
        first = max(bisect_right(ends, (start, MOST_ROW)) - 1, 0)
        total = 0
        for begin, end in islice(ends, first, None):
            if begin >= stop:
                break
            total += max(min(end, stop) - max(begin, start), 0)
        return total


Lists = dict[str, Listing]


def read_lists(
    document: Mapping, identity: Mapping[str, Mapping], layouts: Mapping[str, SplitLayout]
) -> tuple[Lists, Lists, dict[str, Part]]:
    """The lists, the growing lists and the parts of splits with such, in a manifest's document.

    Args:
        identity: of each split and part.

    Raises: ValueError, KeyError and the like if they cannot be.
    """
    lists, growing = (
        {role: _read_listing(one, role, layouts) for role, one in document.get(name, {}).items()}
        for name in ("lists", "growing")
    )
    grown = {*lists, *growing, *(find_role(name) for name in layouts if is_part(name))}
    if not grown <= set(layouts):
        raise ValueError("it has lists of splits that are not there")
    parts = {
        name: _read_part(identity[name], document["splits"][name].get("samples"), layout)
        for name, layout in layouts.items()
        if layout.role in grown
    }
    return lists, growing, parts


def _read_listing(stored: Mapping, role: str, layouts: Mapping[str, SplitLayout]) -> Listing:
    """A list of the manifest. Raises ValueError or KeyError if it is none of these parts."""
    if not isinstance(stored["sha256"], str) or not _SHA256.fullmatch(stored["sha256"]):
        raise ValueError(f"list of {role} has no sha256")
    found = [_ROWS.fullmatch(rows) for rows in stored["rows"]]
    if not found or not all(found):
        raise ValueError(f"list of {role} has rows that are none")
    ranges = tuple((rows[1], int(rows[2]), int(rows[3])) for rows in found)
    last = ("", 0)
    for part, start, stop in sorted(ranges):
        least = last[1] if last[0] == part else 0
        known = part in layouts and find_role(part) == role
        if not (known and least <= start < stop <= layouts[part].num_samples):
            raise ValueError(f"list of {role} has rows {part} {start}:{stop}")
        last = (part, stop)
    return Listing(stored["sha256"], ranges)


def _read_part(identity: Mapping, samples: object, layout: SplitLayout) -> Part:
    """What the manifest says about a part. Raises ValueError or KeyError if it cannot be so."""
    if not _SHA256.fullmatch(identity["dataset"]["sha256"]):
        raise ValueError(f"{layout.split} has no sha256 of its samples")
    if samples is None:
        return Part(identity["dataset"]["sha256"])
    if not isinstance(samples, list) or len(samples) != layout.num_samples:
        raise ValueError(f"samples of {layout.split} are not {layout.num_samples}")
    if not all(line is None or _NOTED.fullmatch(line) for line in samples):
        raise ValueError(f"samples of {layout.split} are not ids with their hashes")
    return Part(identity["dataset"]["sha256"], tuple(samples))


def spare_notes(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts, without notes if these would be too long for a manifest."""
    count = sum(len(part.samples or ()) for part in parts.values())
    if count <= MOST_NOTED:
        return dict(parts)
    return {name: replace(part, samples=None) for name, part in parts.items()}
