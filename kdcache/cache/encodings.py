"""How a teacher's answer is stored: exactly (float16), by one byte a number (int8), or by its
coefficients in a basis (lowrank).

Letters: N samples, C channels, R coefficients, H, W height and width. FORMAT.md has the
mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kdcache.config import KINDS

if TYPE_CHECKING:
    from torch import Tensor

    from kdcache.losses.target import Target

Kind = Literal["float16", "int8", "lowrank"]
INT8_MOST = 127
# Of a direction's coefficients; measured: finer ones cost bytes, coarser ones more than a lower rank (BENCHMARKS.md)
STEPS = {"low": 0.09, "mid": 0.05, "high": 0.03}
# Of a position's features, where the sample's largest number is 1; shorter ones come out shorter than 1
SMALLEST_LENGTH = 1e-8


@dataclass(frozen=True)
class Encoding:
    """How one target (logits or a level) is stored.

    channels, rank, step, basis_sha256: of lowrank: C, R, what one unit of a coefficient is, and
    which basis they are of (hex, over its little-endian float32 [C, R]).
    """

    kind: Kind = "float16"
    channels: int | None = None
    rank: int | None = None
    step: float | None = None
    basis_sha256: str | None = None

    def to_dict(self) -> dict:
        """For the identity: what is set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, facts: Mapping) -> Encoding:
        """The inverse of `to_dict`. Raises TypeError or ValueError for anything else."""
        encoding = cls(**facts)
        kinds = {"channels": int, "rank": int, "step": float, "basis_sha256": str}
        wanted = kinds if encoding.kind == "lowrank" else {}
        if (
            encoding.kind not in KINDS
            or {name: type(facts[name]) for name in facts if name != "kind"} != wanted
        ):
            raise ValueError(f"encoding is {str(dict(facts))[:80]}")
        return encoding


def list_arrays(name: str, encoding: Encoding) -> list[str]:
    """Names of the arrays a target is stored in."""
    return [name, scale_name(name)] if encoding.kind == "int8" else [name]


def scale_name(name: str) -> str:
    """The array that holds what one unit of an int8 array is."""
    return f"{name}_scale"


def list_shapes(
    name: str, shape: tuple[int, int, int], encoding: Encoding
) -> list[tuple[str, tuple[int, ...], str]]:
    """(array, shape of a sample, dtype) of what a target [C, H, W] is stored in."""
    if encoding.kind == "float16":
        return [(name, shape, "float16")]
    if encoding.kind == "int8":
        return [(name, shape, "int8"), (scale_name(name), shape[:1], "float32")]
    return [(name, (encoding.rank, *shape[1:]), "int8")]


def encode(
    name: str, values_NCHW: Tensor, encoding: Encoding, basis_CR: Tensor | None
) -> dict[str, Tensor]:
    """What is stored of float32 answers, on their device.

    int8: q = round(x / s), s = max |x| / 127 of each sample and channel (0 where the channel is 0).
    lowrank: q = round(V^T x / (|x| step)) at each position: |V^T x| <= |x|, so a step of at least
    1/127 never overflows.
    """
    import torch

    if encoding.kind == "float16":
        return {name: _to_half(values_NCHW)}
    if encoding.kind == "int8":
        scale_NC = values_NCHW.abs().amax((2, 3)) / INT8_MOST
        divisor = torch.where(scale_NC > 0, scale_NC, 1.0)[:, :, None, None]
        return {name: _round(values_NCHW / divisor), scale_name(name): scale_NC}
    return {
        name: _round(
            torch.einsum("cr,nchw->nrhw", basis_CR, find_directions(values_NCHW)) / encoding.step
        )
    }


def find_directions(values_NCHW: Tensor) -> Tensor:
    """Features of length 1 at each position, 0 where they are 0; squares of large ones would
    overflow, so each sample is brought to a largest value of 1 first.
    """
    import torch

    largest = values_NCHW.abs().amax((1, 2, 3), keepdim=True)
    x_NCHW = values_NCHW / torch.where(largest > 0, largest, 1.0)
    return x_NCHW / x_NCHW.norm(dim=1, keepdim=True).clamp(min=SMALLEST_LENGTH)


def make_target(name: str, arrays: Mapping[str, Tensor], basis_CR: Tensor | None) -> Target:
    """A target from a batch's arrays.

    The step of lowrank is left out: a direction has no length.
    """
    from kdcache.losses.target import Target

    return Target(arrays[name], arrays.get(scale_name(name)), basis_CR)


def _to_half(values_NCHW: Tensor) -> Tensor:
    """On a GPU cast and brought into NCHW order by one kernel; on a CPU that takes half as long
    again as one by one.
    """
    if not values_NCHW.is_cuda:
        return values_NCHW.half()
    import torch

    return torch.empty(values_NCHW.shape, dtype=torch.float16, device=values_NCHW.device).copy_(
        values_NCHW
    )


def _round(x: Tensor) -> Tensor:
    import torch

    return x.round().clamp(-INT8_MOST, INT8_MOST).to(torch.int8)
