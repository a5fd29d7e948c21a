"""What would make the host wait for a GPU, counted on a CPU."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ("nonzero", "_local_scalar_dense", "bincount", "masked_select", "unique")
"""Operations that need a value on the host: a number that is read, a size that values decide."""


def is_mask(index: object) -> bool:
    """Whether an index chooses by True and False."""
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


class Waits(TorchDispatchMode):
    """Notes the names of such operations.

    >>> with Waits() as waits:
    ...     label = torch.tensor([0, 255])
    ...     kept = label[label != 255].sum().item()
    >>> waits.seen
    ['nonzero', '_local_scalar_dense']
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += [name for name in NAMES if name in str(func)]
        if "aten.index" in str(func) and any(map(is_mask, args[1])):
            self.seen.append("nonzero")  # of a mask, which a kernel asks for by itself
        return func(*args, **(kwargs or {}))
