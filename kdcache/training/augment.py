"""Flip and crop cached batches: image, label and teacher outputs together, on the training device.

The flipped or cropped output of the teacher only approximates its output for the flipped or cropped
image (BENCHMARKS.md has the errors). Crops start at multiples of 16 pixels, the coarsest stride, so
that every grid is cut between cells. Arrays that the loss upsamples bilinearly (logits, and
features if the student's grid is finer) differ within half a cell of a
crop's border: interpolation in the whole view had a neighbour there, in the crop it repeats the
last cell.

Letters: B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kdcache.config import STRIDE, Config
from kdcache.training.batches import Batch
from kdcache.training.order import raw_words

# image is BHWC and label BHW; teacher outputs are BCHW. The scales of int8 arrays are BC: no rows
ROWS_AXIS = {"image": 1, "label": 1}


@dataclass(frozen=True)
class Move:
    """Crop and flip of one sample.

    top, left: corner of the crop in pixels, multiples of 16. flip: whether it is mirrored.
    """

    top: int
    left: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Draws a crop and a flip for each sample in each epoch, and applies them.

    Args:
        seed: of all draws. flip: probability of a flip, 0 to 1.
        view_hw: height and width of the cached views in pixels, multiples of 16.
        crop_hw: height and width of the crops in pixels, multiples of 16, at most view_hw.
    """

    seed: int
    flip: float
    view_hw: tuple[int, int]
    crop_hw: tuple[int, int]

    def draw(self, sample_id: str, *, epoch: int) -> Move:
        """The crop and flip of a sample in an epoch.

        A pure function of the arguments and the fields: resumed runs, baselines, other batch sizes
        and other orders draw the same.
        """
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
        """The batch with each sample cropped and flipped.

        Arrays with rows and columns are new tensors [B, ...] of the crop's size; others are shared
        with `batch`.
        """
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
    """The augmentation that `train.flip` and `train.crop` ask for; None if they ask for none."""
    view_hw, flip = config.dataset.size_hw, config.train.flip
    crop_hw = config.train.crop_hw or view_hw
    if not flip and crop_hw == view_hw:
        return None
    return Augmentation(seed=config.train.seed, flip=flip, view_hw=view_hw, crop_hw=crop_hw)
