"""From the teacher's answers to what a cache stores of them. Letters: N samples, C channels, R coefficients, H, W a grid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.basis import hash_basis
from kdcache.cache.encodings import STEPS, Encoding, encode
from kdcache.config import CacheConfig
from kdcache.errors import refuse

LARGEST = {
    "float16": 65_504.0,
    "int8": torch.finfo(torch.float32).max,
    "lowrank": torch.finfo(torch.float32).max,
}


class Encoder:
    """Encodes answers on the device they are on.

    Args:
        encodings: of logits and levels. bases: level -> float32 [C, R] of the lowrank ones. device: the teacher's.
    """

    def __init__(
        self,
        encodings: Mapping[str, Encoding],
        bases: Mapping[str, np.ndarray],
        device: torch.device,
    ) -> None:
        self.encodings = encodings
        self.bases = {level: torch.from_numpy(basis).to(device) for level, basis in bases.items()}

    def encode(self, answer: Mapping[str, Tensor], *, split: str) -> dict[str, Tensor]:
        """Array name -> what is stored [N, ...] of float32 answers [N, C, H, W]; of val the logits, exactly."""
        if split == "val":
            return encode("logits", answer["logits"], Encoding(), None)
        arrays = {}
        for name, values in answer.items():
            arrays |= encode(name, values, self.encodings[name], self.bases.get(name))
        return arrays

    def find_limit(self, name: str, *, split: str) -> float:
        """Largest magnitude that can be stored of an answer."""
        return LARGEST["float16" if split == "val" else self.encodings[name].kind]


def choose_encodings(config: CacheConfig, bases: Mapping[str, np.ndarray]) -> dict[str, Encoding]:
    """The encodings that the settings mean, given the bases of the lowrank levels."""
    encodings = {}
    for name, kind in config.kinds.items():
        encodings[name] = Encoding(kind)
        if kind == "lowrank":
            channels, rank = bases[name].shape
            encodings[name] = Encoding(kind, channels, rank, STEPS[name], hash_basis(bases[name]))
    return encodings


def choose_ranks(config: CacheConfig, levels: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Coefficients of each lowrank level.

    Raises: SettingsError for more than it has channels, and for an encoding of a level that is not cached.
    """
    named = config.encoding if isinstance(config.encoding, dict) else {}
    absent = [name for name in named if name not in config.kinds]
    if absent:
        raise refuse("cache.encoding", named, f"no {absent[0]}, which cache.levels does not have")
    ranks = {
        level: getattr(config.rank, level)
        for level, kind in config.kinds.items()
        if kind == "lowrank"
    }
    for level, rank in ranks.items():
        if rank > levels[level][0]:
            raise refuse(
                f"cache.rank.{level}", rank, f"1 to {levels[level][0]}, the channels of {level}"
            )
    return ranks
