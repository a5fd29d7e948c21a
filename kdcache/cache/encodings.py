"""How a teacher's logits and features are stored: float16, int8 with a scale, or lowrank.

lowrank stores coefficients in a basis of R directions. docs/format.md has the mathematics.
Letters: N samples, C channels, R coefficients, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from kdcache.config import KINDS

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from kdcache.losses.target import Target

Kind = Literal["float16", "int8", "lowrank"]
INT8_MOST = 127
# Quantisation step of a direction's coefficients. Measured: a finer step costs bytes, a coarser one
# loses more than a lower rank does (BENCHMARKS.md).
STEPS = {"low": 0.09, "mid": 0.05, "high": 0.03}
_FLOAT32 = 3.4028234663852886e38  # the largest there is
LARGEST = {"float16": 65_504.0, "int8": _FLOAT32, "lowrank": _FLOAT32}
"""Magnitude of a value that a kind can store."""
# Features shorter than this, in a sample scaled to a largest value of 1, do not reach length 1.
SMALLEST_LENGTH = 1e-8


@dataclass(frozen=True)
class Encoding:
    """How one target (logits or a level) is stored.

    channels, rank, step, basis_sha256: set only for lowrank: C, R, the value of one unit of a
        coefficient, and the hash of the basis (see `hash_basis`).
    """

    kind: Kind = "float16"
    channels: int | None = None
    rank: int | None = None
    step: float | None = None
    basis_sha256: str | None = None

    def to_dict(self) -> dict:
        """The fields that are set, for the identity."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, facts: Mapping) -> Encoding:
        """The inverse of `to_dict`. Raises TypeError or ValueError if `facts` is not valid."""
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
    """Names of the arrays that logits or a level are stored in."""
    return [name, scale_name(name)] if encoding.kind == "int8" else [name]


def scale_name(name: str) -> str:
    """Name of the array that holds the scales of an int8 array, float32 [C] a sample."""
    return f"{name}_scale"


def list_shapes(
    name: str, shape: tuple[int, int, int], encoding: Encoding
) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape of a sample, dtype) of each array that a target [C, H, W] is stored in."""
    if encoding.kind == "float16":
        return [(name, shape, "float16")]
    if encoding.kind == "int8":
        return [(name, shape, "int8"), (scale_name(name), shape[:1], "float32")]
    return [(name, (encoding.rank, *shape[1:]), "int8")]


def encode(
    name: str, values_NCHW: Tensor, encoding: Encoding, basis_CR: Tensor | None
) -> dict[str, Tensor]:
    """Encode float32 values [N, C, H, W] on their device.

    int8: q = round(x / s), with s = max |x| / 127 of each sample and channel (0 if all x are 0).
    lowrank: q = round(V^T x / (|x| step)) at each position. |V^T x| <= |x|, so a step of at least
    1/127 never overflows.

    Args:
        name: "logits" or a level. basis_CR: V, float32; needed for lowrank only.

    Returns: array name -> what is stored, [N, ...]; see `list_shapes`.
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
    """Scale the features at each position to length 1; zero vectors stay zero.

    Each sample is first scaled to a largest value of 1, because squares of large values would
    overflow.
    """
    import torch

    largest = values_NCHW.abs().amax((1, 2, 3), keepdim=True)
    x_NCHW = values_NCHW / torch.where(largest > 0, largest, 1.0)
    return x_NCHW / x_NCHW.norm(dim=1, keepdim=True).clamp(min=SMALLEST_LENGTH)


def make_target(name: str, arrays: Mapping[str, Tensor], basis_CR: Tensor | None) -> Target:
    """Build the target `name` from a batch's arrays (array name -> [N, ...]).

    The step of lowrank is left out: the loss uses directions, which have no length.
    """
    from kdcache.losses.target import Target

    return Target(arrays[name], arrays.get(scale_name(name)), basis_CR)


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


class Encoder:
    """Encodes answers on the device they are on.

    Args:
        encodings: of logits and levels. bases: lowrank level -> float32 [C, R].
        device: the teacher's.
    """

    def __init__(
        self,
        encodings: Mapping[str, Encoding],
        bases: Mapping[str, np.ndarray],
        device: torch.device,
    ) -> None:
        import torch

        self.encodings = encodings
        self.bases = {level: torch.from_numpy(basis).to(device) for level, basis in bases.items()}

    def encode(self, answer: Mapping[str, Tensor], *, split: str) -> dict[str, Tensor]:
        """Array name -> what is stored [N, ...], from float32 answers [N, C, H, W].

        In "val" only the logits are stored, as float16.
        """
        if split == "val":
            return encode("logits", answer["logits"], Encoding(), None)
        arrays = {}
        for name, values in answer.items():
            arrays |= encode(name, values, self.encodings[name], self.bases.get(name))
        return arrays

    def find_limit(self, name: str, *, split: str) -> float:
        """The largest magnitude of an answer that can be stored."""
        return LARGEST["float16" if split == "val" else self.encodings[name].kind]


def _to_half(values_NCHW: Tensor) -> Tensor:
    """Cast to float16 in NCHW order.

    On a GPU one kernel does both; on a CPU that would take half as long again as two steps.
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
