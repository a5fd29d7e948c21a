"""How much is measured: in full, or so little that a test can run every part in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples, pixels, rounds. `store_` is the cache that is only read; a pass reads each of its samples once."""

    store_px: int = 512
    store_samples: int = 32
    store_shard: int = 8
    batch_size: int = 8
    read_rounds: int = 7
    read_passes: int = 4
    cold_rounds: int = 3
    rival_rounds: int = 5
    rival_passes: int = 2
    train_px: int = 256
    train_gpu_px: int = 512
    tax_rounds: int = 5
    online_rounds: int = 5
    loss_rounds: int = 9
    train_steps: int = 6
    train_gpu_steps: int = 20
    build_px: int = 256
    build_train: int = 16
    build_val: int = 8
    build_rounds: int = 3
    open_samples: int = 10_000
    open_views: int = 8
    growth_small: int = 1_000
    growth_large: int = 10_000
    growth_order: tuple[str, ...] = ("small", "large", "small", "large", "small")


FULL = Sizes()
QUICK = Sizes(
    store_px=64, store_samples=16, store_shard=4, batch_size=4, read_rounds=2, read_passes=1, cold_rounds=1,
    rival_rounds=1, rival_passes=1, train_px=64, train_gpu_px=64, tax_rounds=1, loss_rounds=1, online_rounds=1, train_steps=1,
    train_gpu_steps=2, build_px=64, build_train=4, build_val=2, build_rounds=1, open_samples=64, open_views=2,
    growth_small=96, growth_large=160, growth_order=("small", "large"),
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every part gets: where to put data, how much, on which device."""

    folder: Path
    sizes: Sizes
    quick: bool

    @property
    def device(self) -> torch.device:
        """The GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def gpu(self) -> bool:
        """Whether there is one."""
        return self.device.type == "cuda"
