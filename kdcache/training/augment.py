"""Flips and crops of cached batches: image, label and the teacher's answers are moved together, on the training device.

A flip is not what the teacher would have said of the flipped image, nor is a crop: it is close (BENCHMARKS.md has the errors).
Grids are cut where their cells are, at multiples of 16 pixels. What is upsampled bilinearly in the loss (logits, and features
where the student's grid is finer) differs within half a cell of a crop's border: there the whole view had a neighbour, and the
crop repeats its last cell. That belongs to cropping on a coarse grid.

Letters: B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kdcache.config import STRIDE, Config
from kdcache.training.batches import Batch, raw_words

ROWS_AXIS = {
    "image": 1,
    "label": 1,
}  # BHWC and BHW; answers are BCHW, and what one unit of an int8 one is, BC, has no place


@dataclass(frozen=True)
class Move:
    """Of one sample: the crop's top left corner in pixels, multiples of 16, and whether the crop is flipped left-right."""

    top: int
    left: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Draws a move for each sample in each epoch, and makes it.

    Args:
        seed: of all draws. flip: probability, 0 to 1.
        view_hw, crop_hw: size of the cached views, and of what is cut from them, in pixels, multiples of 16.
    """

    seed: int
    flip: float
    view_hw: tuple[int, int]
    crop_hw: tuple[int, int]

    def draw(self, sample_id: str, *, epoch: int) -> Move:
        """A pure function of the arguments and the fields: the same in a resumed run, a baseline, any batch and any order."""
        *words, flip = (
            int(word) for word in raw_words(f"moves/{self.seed}/{epoch}/{sample_id}", 3)
        )
        places = [
            (view - crop) // STRIDE + 1
            for view, crop in zip(self.view_hw, self.crop_hw, strict=True)
        ]
        top, left = (STRIDE * (word % count) for word, count in zip(words, places, strict=True))
        return Move(top, left, (flip >> 11) * 2.0**-53 < self.flip)

    def apply(self, batch: Batch, *, epoch: int) -> Batch:
        """The batch with each sample moved; spatial arrays are new tensors, others are those of `batch`."""
        moves = [self.draw(sample_id, epoch=epoch) for sample_id in batch.sample_ids]
        return Batch(
            {name: self._move(name, values, moves) for name, values in batch.arrays.items()},
            batch.sample_ids,
        )

    def _move(self, name: str, values: Tensor, moves: list[Move]) -> Tensor:
        axis = ROWS_AXIS.get(name, 2)
        if values.dim() <= axis:
            return values
        before, grid, after = (
            values.shape[:axis],
            values.shape[axis : axis + 2],
            values.shape[axis + 2 :],
        )
        strides = [view // cells for view, cells in zip(self.view_hw, grid, strict=True)]
        height, width = (crop // stride for crop, stride in zip(self.crop_hw, strides, strict=True))
        moved = values.new_empty((*before, height, width, *after))
        for sample, target, move in zip(values, moved, moves, strict=True):
            rows = sample.narrow(axis - 1, move.top // strides[0], height)
            part = rows.narrow(axis, move.left // strides[1], width)
            target.copy_(part.flip(axis) if move.flip else part)
        return moved


def make_augmentation(config: Config) -> Augmentation | None:
    """What `train.flip` and `train.crop` ask for; None where that is nothing."""
    view_hw, flip = config.dataset.size_hw, config.train.flip
    crop_hw = config.train.crop_hw or view_hw
    if not flip and crop_hw == view_hw:
        return None
    return Augmentation(seed=config.train.seed, flip=flip, view_hw=view_hw, crop_hw=crop_hw)
