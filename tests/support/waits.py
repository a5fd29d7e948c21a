"""What would make the host wait for a GPU, counted on a CPU."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ("nonzero", "_local_scalar_dense", "bincount", "masked_select", "unique")
"""Operations that need a value on the host: a number that is read, a size that values decide."""


class Waits(TorchDispatchMode):
    """Notes the names of such operations.

    >>> import torch
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
        return func(*args, **(kwargs or {}))
