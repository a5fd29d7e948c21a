"""A look at a teacher before it is asked about a data set: what it gives can be stored, and again.

Letters: H, W height and width of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdcache.models.networks import Network, refuse_network
from kdcache.models.parts import STRIDES, find_stride, refuse_layer

Answers = dict[str, Tensor]
SAME = 1e-3  # of the largest value: what two answers to one image may differ by, on any device
_STRIDES = f"{', '.join(map(str, STRIDES[:-1]))} or {STRIDES[-1]} pixels"


def probe(
    ask: Callable[[Tensor], Answers], network: Network, layers: dict[str, str], sizes: list
) -> dict[str, tuple[int, int]]:
    """Logits and each level -> (channels, stride in pixels).

    Args:
        ask: uint8 images [N, H, W, 3] -> float32 answers by name.
        layers: level -> part, for messages.
        sizes: (H, W) of the images that are asked about; levels count in the first.

    Raises: TeacherError for logits that cannot be stored, SettingsError for a level.
    """
    found: dict[str, tuple[int, int]] = {}
    for hw in sizes:
        image = _draw(hw)
        answers = ask(image)
        if not network.one_stride:  # else torchvision's, which is known
            _check_values(network, answers, again=ask(image))
        names = ("logits",) if found else ("logits", *layers)
        strides = {name: find_stride(answers[name].shape[2:], hw) for name in names}
        for name, stride in strides.items():
            shape = (answers[name].shape[1], stride)
            if stride not in STRIDES or found.setdefault(name, shape) != shape:
                raise _refuse_grid(network, name, layers, answers[name], hw)
    return found


def _draw(hw: tuple[int, int]) -> Tensor:
    """An image [1, H, W, 3] of all values, the same each time."""
    return (torch.arange(3 * hw[0] * hw[1]) * 7919 % 251).to(torch.uint8).reshape(1, *hw, 3)


def _check_values(network: Network, answers: Answers, *, again: Answers) -> None:
    """Check that answers are finite and the same again, and that the network is as it was."""
    if any(module.training for module in network.module.modules()):
        found = "in training mode after it was asked"
        raise refuse_network(network.name, found, "a module that stays in eval mode")
    for name, values in answers.items():
        if not torch.isfinite(values).all():
            raise refuse_network(network.name, f"giving {name} that are not finite", "numbers")
        if (values - again[name]).abs().max() > SAME * values.abs().max():
            found = f"giving other {name} for the same image"
            raise refuse_network(network.name, found, "one answer: draw nothing, keep nothing")


def _refuse_grid(
    network: Network, name: str, layers: dict[str, str], values: Tensor, hw: tuple[int, int]
) -> Exception:
    found = f"giving {name} {list(values.shape)} for images of {hw[0]}x{hw[1]}"
    expected = f"one cell every {_STRIDES}, for training and validation views alike"
    if name == "logits":
        return refuse_network(network.name, found, f"{expected} (or other dataset.size)")
    return refuse_layer(name, layers[name], found, f"{expected} (high alone is resized)")
