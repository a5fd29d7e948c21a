"""What is kept of the answers, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdcache.config.checks import check_positive, check_range, clean_address
from kdcache.config.names import KINDS, LEVELS, PRESETS, as_kind, as_preset
from kdcache.errors import refuse


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Coefficients kept of each lowrank level; more are nearer to the teacher and larger."""

    low: int = 96
    """1 to the channels of the level (layer1: 256)."""
    mid: int = 192
    """1 to the channels of the level (layer2: 512)."""
    high: int = 256
    """1 to the channels of the level (layer3: 1024)."""

    def __post_init__(self) -> None:
        for level in LEVELS:
            check_range(f"cache.rank.{level}", getattr(self, level), 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The Zarr v3 store between the two phases."""

    path: str | Path = Path("caches/voc2012")
    """Folder of the cache, a packed file (.h5) to train on, or s3://BUCKET/KEY (gs://, az://)."""
    levels: list[str] = field(default_factory=lambda: list(LEVELS))
    """Feature levels to cache, any of low, mid, high; [] caches logits only."""
    shard_samples: int = 16
    """Samples per shard file, 1 or more: the unit of work, commit and repair."""
    encoding: str | dict[str, str] = "float16"
    """How the teacher's answers are stored: a preset, exact (as float16), half or compact (a
    seventeenth); or a kind for each answer, float16, int8 or lowrank, as in {low: int8}."""
    rank: RankConfig = field(default_factory=RankConfig)
    """Coefficients of lowrank levels."""
    codec: str = "auto"
    """Lossless compression: raw, blosc-lz4 (fast), blosc-zstd (small) or another of zarr-python's
    (slow); auto is blosc-zstd if a level is lowrank, else raw."""
    check: Literal["always", "first", "never"] = "first"
    """Which reads of a sample are checked in training: always, the first of a process and the first
    after its file has changed, or never (damage may then pass unseen)."""
    stage_dir: Path | None = None
    """Folder for local copies of what training reads from slower storage, each copy verified
    (default: no copies)."""
    stage_gb: float = 100.0
    """Size limit of cache.stage_dir in GB, above 0; the least recently used copies are removed
    first, those of this run stay."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", clean_address("cache.path", self.path))
        check_range("cache.shard_samples", self.shard_samples, 1, 65_536)
        check_positive("cache.stage_gb", self.stage_gb)
        unknown = [level for level in self.levels if level not in LEVELS]
        if unknown or len(set(self.levels)) != len(self.levels):
            raise refuse("cache.levels", self.levels, "a list without repetition of low, mid, high")
        named = self.encoding if isinstance(self.encoding, dict) else {"logits": self.encoding}
        known = all(isinstance(kind, str) and kind in (*KINDS, *PRESETS) for kind in named.values())
        if not set(named) <= {"logits", *LEVELS} or not known:
            expected = (
                "exact, half or compact, or float16, int8 or lowrank for each of "
                "logits, low, mid, high"
            )
            raise refuse("cache.encoding", self.encoding, expected)
        if isinstance(self.encoding, dict) and self.kinds["logits"] == "lowrank":
            raise refuse(
                "cache.encoding", self.encoding, "float16 or int8 for logits, which have no basis"
            )

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of logits and of each cached level; float16 if `encoding` does not name it."""
        if isinstance(self.encoding, str):
            preset = as_preset(self.encoding)
            return {"logits": preset["logits"], **dict.fromkeys(self.levels, preset["features"])}
        return {
            name: as_kind(self.encoding.get(name, "float16")) for name in ("logits", *self.levels)
        }

    @property
    def codec_name(self) -> str:
        """What `codec` means: small integers of lowrank are made to be coded."""
        if self.codec != "auto":
            return self.codec
        return "blosc-zstd" if "lowrank" in self.kinds.values() else "raw"
