"""Teachers as a user would bring them: ones that work, and all ways in which one may not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Logits at stride 4; an encoder of three stages, the last one a grid of tokens."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layer1 = _stage(3, width, stride=4)
        self.encoder.layer2 = _stage(width, 2 * width, stride=2)
        self.encoder.tokens = Tokens(2 * width, 3 * width)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, image_NCHW: Tensor) -> object:
        low = self.encoder.layer1(image_NCHW)
        self.encoder.tokens(self.encoder.layer2(low))
        return self.answer(self.classifier(low))

    def answer(self, logits: Tensor) -> object:
        return {"out": logits}


class Tokens(nn.Module):
    """[N, 1 + L, C] at half the grid, behind a class token."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)


def _stage(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(0.5))


def _answering(name: str, answer: object) -> type:
    return type(name, (Net,), {"answer": staticmethod(answer)})


KINDS = {
    "out": Net,
    "logits": _answering("Logits", lambda x: {"logits": x}),
    "tensor": _answering("Plain", lambda x: x),
    "pair": _answering("Pair", lambda x: (x, {"low": x})),
    "nothing": _answering("Nothing", lambda x: None),
    "classes": _answering("Classes", lambda x: x.argmax(1)),
    "more": _answering("More", lambda x: torch.cat([x, x[:, :1]], 1)),
    "nan": _answering("Nan", lambda x: x * float("nan")),
    "uneven": _answering("Uneven", lambda x: F.interpolate(x, size=(7, 9))),
    "odd": _answering("Odd", lambda x: F.interpolate(x, size=(2, 2))),
    "drawn": _answering("Drawn", lambda x: F.dropout(x, training=True)),
    "other": _answering("Other", lambda x: {"masks": x}),
}


class Modes(Net):
    """Logits while it is trained, classes of each pixel while it is asked."""

    def answer(self, logits: Tensor) -> Tensor:
        return logits if self.training else logits.argmax(1, keepdim=True)


class Waking(Net):
    """Goes back into training mode by itself."""

    def forward(self, image_NCHW: Tensor) -> object:
        answer = super().forward(image_NCHW)
        self.train()
        return answer


class Late(Net):
    """Fails at the images of a data set alone."""

    def forward(self, image_NCHW: Tensor) -> object:
        if len(image_NCHW) > 1:
            raise RuntimeError("boom\nand more")
        return super().forward(image_NCHW)


class TwoHeads(Net):
    """Its second head counts, though it is called as torchvision's, which does not."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__(num_classes, width)
        self.aux_classifier = nn.Conv2d(num_classes, num_classes, 1)

    def answer(self, logits: Tensor) -> Tensor:
        return self.aux_classifier(logits)


KINDS |= {"modes": Modes, "waking": Waking, "late": Late, "two heads": TwoHeads}


def plain(num_classes: int, width: int = 8, kind: str = "out") -> nn.Module:
    return KINDS[kind](num_classes, width)


def half(num_classes: int) -> nn.Module:
    """Of weights in half precision."""
    return plain(num_classes).half()


def bare(num_classes: int) -> nn.Module:
    """Without a part that is its backbone."""
    return nn.Conv2d(3, num_classes, 4, 4)


def no_module(num_classes: int) -> str:
    return "a teacher"


def leaving(num_classes: int) -> nn.Module:
    raise SystemExit(3)


def broken(num_classes: int) -> nn.Module:
    module = plain(num_classes)
    nn.init.constant_(module.classifier.bias, float("inf"))
    return module


def scripted(num_classes: int) -> nn.Module:
    return torch.jit.trace(plain(num_classes, kind="tensor").eval(), torch.zeros(1, 3, 64, 64))
