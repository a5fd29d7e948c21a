"""How much is measured: in full, or so little that a test can run every part in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class BuildSizes:
    """What phase one is measured with: square pictures of `px`, so many of each split, `views` of
    each training picture.
    """

    px: int
    train: int
    val: int
    views: int = 1

    @property
    def num_samples(self) -> int:
        """Samples of both splits."""
        return self.train * self.views + self.val


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples, pixels, rounds. `store_` is the cache that is only read; a pass reads
    each of its samples once.
    """

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
    build: BuildSizes = BuildSizes(px=256, train=16, val=8)
    # 80 groups of a batch, where 11 may be on the way at once (16 cores): 9.2 GB, and no more than
    # 136 pictures to make.
    build_gpu: BuildSizes = BuildSizes(px=512, train=72, val=64, views=8)
    build_rounds: int = 3
    scaling: BuildSizes = BuildSizes(px=256, train=40, val=8)
    scaling_rounds: int = 3
    real_train: int = 32
    real_val: int = 4
    real_asked: int = 24
    open_samples: int = 10_000
    open_views: int = 8
    growth_small: int = 1_000
    growth_large: int = 10_000
    growth_order: tuple[str, ...] = ("small", "large", "small", "large", "small")


FULL = Sizes()
QUICK = Sizes(
    store_px=64,
    store_samples=16,
    store_shard=4,
    batch_size=4,
    read_rounds=2,
    read_passes=1,
    cold_rounds=1,
    rival_rounds=1,
    rival_passes=1,
    train_px=64,
    train_gpu_px=64,
    tax_rounds=1,
    loss_rounds=1,
    online_rounds=1,
    train_steps=1,
    train_gpu_steps=2,
    build=BuildSizes(px=64, train=4, val=2, views=2),
    build_gpu=BuildSizes(px=64, train=8, val=4, views=2),
    build_rounds=1,
    scaling=BuildSizes(px=64, train=4, val=4),
    scaling_rounds=1,
    real_train=6,
    real_val=2,
    real_asked=4,
    open_samples=64,
    open_views=2,
    growth_small=96,
    growth_large=160,
    growth_order=("small", "large"),
)


@dataclass(frozen=True)
class Bench:
    """What every part gets: where to put data, how much, on which device."""

    folder: Path
    sizes: Sizes
    quick: bool
    real: dict | None = None  # settings of a real teacher and real images

    @property
    def device(self) -> torch.device:
        """The GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def gpu(self) -> bool:
        """Whether there is one."""
        return self.device.type == "cuda"

    @property
    def build(self) -> BuildSizes:
        """What phase one is measured with here: a GPU needs more of it until drawing, asking and
        writing are in step.
        """
        return self.sizes.build_gpu if self.gpu else self.sizes.build
