"""Bands of rows: coarse scores upsampled a part at a time, and the way back for their gradient.

Upsampling is two matrix products, so nothing of full size is ever in memory.

Letters: N images, K classes, h, w coarse grids, H, W full size, R rows of a band.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# numbers of one band: few enough for the L2 cache of a CPU, many enough to keep a GPU busy
BAND_NUMBERS = {"cpu": 1 << 17, "cuda": 1 << 26}


def split_bands(
    x_NKhw: Tensor, hw: tuple[int, int]
) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Slices of images, and the bands of rows of each slice, that are computed together."""
    num, classes = x_NKhw.shape[:2]
    row_numbers = classes * hw[1]
    most_rows = max(1, BAND_NUMBERS.get(x_NKhw.device.type, BAND_NUMBERS["cuda"]) // row_numbers)
    images = max(1, most_rows // hw[0])
    step = min(most_rows, hw[0])
    rows = [(start, min(start + step, hw[0])) for start in range(0, hw[0], step)]
    return ((slice(n, n + images), rows) for n in range(0, num, images))


class Upsampled:
    """Coarse scores upsampled a band of rows at a time, and the way back for their gradient.

    Args:
        x_NKhw: float32 scores.
        hw: full size; values equal those of `kdcache.models.inputs.resize_to`.
    """

    def __init__(self, x_NKhw: Tensor, hw: tuple[int, int]) -> None:
        self.num, self.classes, height, width = x_NKhw.shape
        self.rows = _matrix(height, hw[0], x_NKhw.device)
        self.columns = _matrix(width, hw[1], x_NKhw.device)
        x_hNKw = x_NKhw.permute(2, 0, 1, 3)
        wide = x_hNKw.contiguous() if width == hw[1] else x_hNKw @ self.columns.T
        self.wide = wide.reshape(height, -1)
        self.gradient_wide: Tensor | None = None

    def band(self, start: int, stop: int) -> Tensor:
        """Rows start to stop at full size, [R, N, K, W], a new tensor."""
        weights, used = self._weights(start, stop)
        return (weights @ self.wide[used]).view(stop - start, self.num, self.classes, -1)

    def add_gradient(self, start: int, stop: int, gradient_RNKW: Tensor) -> None:
        """Add the gradient of `band(start, stop)`, `gradient_RNKW`, to that of the whole."""
        if self.gradient_wide is None:
            self.gradient_wide = torch.zeros_like(self.wide)
        weights, used = self._weights(start, stop)
        self.gradient_wide[used].addmm_(weights.T, gradient_RNKW.reshape(stop - start, -1))

    def gradient(self) -> Tensor:
        """The gradient of the coarse scores, [N, K, h, w], from all bands."""
        wide = self.gradient_wide.view(len(self.wide), self.num, self.classes, -1)
        narrow = wide if wide.shape[-1] == self.columns.shape[1] else wide @ self.columns
        return narrow.permute(1, 2, 0, 3)

    def _weights(self, start: int, stop: int) -> tuple[Tensor, slice]:
        """Weights of the rows, and the slice of coarse rows whose weights are not 0."""
        size_out, size_in = self.rows.shape
        first, last = ((row + 0.5) * size_in / size_out - 0.5 for row in (start, stop - 1))
        used = slice(max(int(first), 0), min(int(last) + 2, size_in))
        return self.rows[start:stop, used], used


@lru_cache(maxsize=64)
def _matrix(size_in: int, size_out: int, device: torch.device) -> Tensor:
    """Weights [size_out, size_in] of torch's linear interpolation without align_corners."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(size_in)[None]
        return (
            F.interpolate(unit, size=size_out, mode="linear", align_corners=False)[0]
            .T.contiguous()
            .to(device)
        )
