"""The cache that is looked at: its manifest, readers of its complete views, and places drawn from
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator, Philox

from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.cache.records import CommitRecord


@dataclass(frozen=True, repr=False)
class Opened:
    """A cache and the seed of what is drawn from it; a split without a whole view has no reader."""

    root: Path
    manifest: Manifest
    readers: dict[str, CacheReader]
    seed: int

    @property
    def num_classes(self) -> int:
        """Classes of labels and logits."""
        return self.manifest.identity["train"]["dataset"]["num_classes"]

    def generator(self) -> Generator:
        """A new one, always the same."""
        return Generator(Philox(self.seed))

    def draw_places(self, split: str, *, count: int) -> list[tuple[int, int]]:
        """(view, sample) of `count` different stored samples, of all where there are no more."""
        reader = self.readers[split]
        total = reader.num_views * reader.layout.num_samples
        chosen = self.generator().choice(total, size=min(count, total), replace=False)
        return sorted(divmod(int(place), reader.layout.num_samples) for place in chosen)

    def find_record(self, split: str, view: int, sample: int) -> tuple[CommitRecord, int]:
        """The commit record of a sample's group, and the sample's row in it."""
        return self.readers[split].find_record(view, sample)

    def name(self, split: str, view: int, sample: int) -> str:
        """A stored sample for a message."""
        record, row = self.find_record(split, view, sample)
        return f"{split} view {view} sample {sample} ({record.sample_ids[row]})"


def open_cache_whole(root: Path, *, seed: int) -> Opened:
    """Raises CacheError if documents are damaged."""
    manifest = read_manifest(root)
    complete = {
        split: views for split in manifest.identity if (views := manifest.count_complete(split))
    }
    readers = {
        split: CacheReader(root, manifest, split, num_views=views)
        for split, views in complete.items()
    }
    return Opened(root, manifest, readers, seed)


def tell(found: list[str]) -> str:
    """The first findings, for an assertion."""
    more = [f"and {len(found) - 10} more"] if len(found) > 10 else []
    return "\n".join([*found[:10], *more])
