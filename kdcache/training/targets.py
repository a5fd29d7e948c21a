"""From a batch's arrays to what the loss compares with, on the training device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdcache.cache.encodings import Encoding, list_arrays, make_target
from kdcache.cache.reader import CacheReader
from kdcache.losses.target import Target
from kdcache.training.joined import LABELLED, JoinedReader


@dataclass(frozen=True)
class Targets:
    """How the answers of one cache are stored; without arguments all are float16.

    encodings: of logits and levels. bases: level -> float32 [C, R] on the training device.
    """

    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    bases: Mapping[str, Tensor] = field(default_factory=dict)

    def list_arrays(self, name: str) -> list[str]:
        """The arrays that must be read for an answer."""
        return list_arrays(name, self.encodings.get(name, Encoding()))

    def make(self, name: str, arrays: Mapping[str, Tensor]) -> Target | None:
        """The answer in a batch, None where it was not read."""
        return make_target(name, arrays, self.bases.get(name)) if name in arrays else None


def open_targets(reader: CacheReader | JoinedReader, device: torch.device) -> Targets:
    """Of a training split."""
    bases = {level: torch.from_numpy(basis).to(device) for level, basis in reader.bases.items()}
    return Targets(reader.encodings, bases)


def find_labelled(arrays: Mapping[str, Tensor]) -> Tensor | None:
    """Which rows of a batch have a label, bool [N]; None if all have one."""
    return arrays[LABELLED][:, 0].bool() if LABELLED in arrays else None
