"""What the rows of a cache hold: ids and hashes of the files that they were made of.

A cache notes that only once its lists have changed. Of one that never grew it is found out: its
records have the ids, and the sha256 of its data set says whether all files are as they were. If
they are not, each stored picture is compared with what would be stored today.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kdcache.cache.codecs import make_coder
from kdcache.cache.index import read_group_record
from kdcache.cache.layout import Group, find_role
from kdcache.cache.lists import Listing, hash_lines
from kdcache.cache.manifest import Manifest
from kdcache.cache.records import CommitRecord, find_committed
from kdcache.cache.shards import crc32c, find_chunks
from kdcache.data.pictures import Sample
from kdcache.errors import CacheCorruptError
from kdcache.precompute.group import draw_view
from kdcache.precompute.pipeline import Job
from kdcache.progress import Progress

COMPARE_THREADS = 4
Lines = Sequence[str | None]  # of rows, as `Split.lines`; None: not known


def read_lines(job: Job, there: Manifest, part: str, *, known: Iterable[Listing]) -> list:
    """What the manifest says about the rows of a part.

    Args:
        known: lists of its split, whose rows are today's samples if their sha256 is today's.
    """
    split, layout = job.splits[find_role(part)], there.layouts[part]
    noted = there.parts[part].samples if part in there.parts else None
    lines = list(noted or [None] * layout.num_samples)
    for listing in known:
        if listing.sha256 == split.fingerprint:
            for (name, row), line in zip(listing.rows(), split.lines, strict=True):
                if name == part:
                    lines[row] = line
    return lines


def learn_lines(
    job: Job, there: Manifest, part: str, lines: Lines, *, wanted: set[str], progress: Progress
) -> Lines:
    """The lines of a part, with those that are found out if `wanted` may be among them.

    Args:
        lines: of the part, as `read_lines`. wanted: lines of today's samples.

    Raises: CacheError, DataError.
    """
    split, layout = job.splits[find_role(part)], there.layouts[part]
    groups = [layout.group(0, index) for index in range(layout.groups_per_view)]
    open_groups = [group for group in groups if None in lines[group.start : group.stop]]
    records = {
        group: read_group_record(job.storage, there, group)
        for group in find_committed(job.storage, open_groups)
    }
    ids = [id for group in groups for id in _list_ids(group, records.get(group))]
    by_id = dict(zip((sample.id for sample in split.samples), split.lines, strict=True))
    whole = there.find_identity(part)["dataset"]["sha256"]
    for guess in ([by_id.get(id) for id in ids], split.lines[: layout.num_samples]):
        if None not in guess and hash_lines(guess) == whole:
            return guess
    row_of = {id: n for n, id in enumerate(ids) if lines[n] is None and by_id.get(id) in wanted}
    rows = [
        _Row(job, there, part, row_of[sample.id], sample)
        for sample in split.samples
        if sample.id in row_of
    ]
    same = _find_unchanged(rows, title=f"comparing {part}", progress=progress)
    return [by_id[ids[n]] if n in same else line for n, line in enumerate(lines)]


def _list_ids(group: Group, record: CommitRecord | None) -> Sequence[str | None]:
    return record.sample_ids if record else [None] * (group.stop - group.start)


def _find_unchanged(rows: list[_Row], *, title: str, progress: Progress) -> set[int]:
    """Numbers of the rows that would be stored today as they are. Raises DataError."""
    with (
        progress.start(title, total=len(rows), unit="samples") as bar,
        ThreadPoolExecutor(COMPARE_THREADS) as pool,
    ):
        found = set()
        for row, is_same in zip(rows, pool.map(_Row.is_unchanged, rows), strict=True):
            found |= {row.number} if is_same else set()
            bar.advance(1)
        return found


@dataclass(frozen=True)
class _Row:
    """A row of a part, and the sample of its id that is listed today."""

    job: Job
    there: Manifest
    part: str
    number: int
    sample: Sample

    def is_unchanged(self) -> bool:
        """Whether image and label of each view are what would be stored today. Raises DataError."""
        layout = self.there.layouts[self.part]
        index = self.number // layout.shard_samples
        views = [layout.group(view, index) for view in range(layout.num_views)]
        return all(map(self._is_as_drawn, find_committed(self.job.storage, views)))

    def _is_as_drawn(self, group: Group) -> bool:
        role, view = group.role, group.view
        image, label, _ = draw_view(self.job.config, self.sample, split=role, view=view)
        drawn = {"image": image} if label is None else {"image": image, "label": label}
        try:
            record = read_group_record(self.job.storage, self.there, group)
            return all(self._is_stored(group, record, name, x) for name, x in drawn.items())
        except (CacheCorruptError, OSError, ValueError):
            return False  # it is asked about again

    def _is_stored(self, group: Group, record: CommitRecord, name: str, drawn: np.ndarray) -> bool:
        layout, storage = self.there.layouts[group.split], self.job.storage
        spec, row = layout.array(name), self.number - group.start
        if spec.codec is None:
            chunk = np.ascontiguousarray(drawn).reshape(-1).view(np.uint8)
            return crc32c(chunk) == record.crcs[name][row]
        chunks = find_chunks(storage, layout, spec, group, file=record.files[name], cure="")
        offset, size = chunks.places[row].tolist()
        chunk, stored = np.empty(size, np.uint8), np.empty_like(drawn)
        with storage.open_file(chunks.key) as opened:
            opened.read_into(offset, [chunk])
        make_coder(spec.codec, shape=spec.item_shape, dtype=spec.dtype).decode_into(chunk, stored)
        return np.array_equal(stored, drawn)
