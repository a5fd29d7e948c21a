"""What every exported file has: bytes as input, and who it is.

Letters: N images, H height, W width, K classes.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
from torch import Tensor, nn

from kdcache.deploy.load import TrainedStudent
from kdcache.models.inputs import IMAGENET_MEAN, IMAGENET_STD


class ByteStudent(nn.Module):
    """A student with the normalisation inside, so that nobody can forget it or do it otherwise.

    Args:
        student: normalised images [N, 3, H, W] -> logits [N, K, H, W].
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN) * 255)
        self.register_buffer("std", torch.tensor(IMAGENET_STD) * 255)
        self.eval()

    def forward(self, image_NHW3: Tensor) -> Tensor:
        """uint8 RGB -> logits float32 [N, K, H, W]; the numbers are those of `normalize_images`."""
        return self.student(((image_NHW3.float() - self.mean) / self.std).permute(0, 3, 1, 2))


def list_facts(student: TrainedStudent, *, sizes: list[str]) -> dict[str, str]:
    """What a file with the normalisation inside says of itself.

    Args:
        sizes: of the images that it takes: N, H and W as letters, or a number where it takes no other.
    """
    return {
        **name_student(student),
        "input": f"image: uint8 RGB [{', '.join(sizes)}, 3], H and W from 32; mean and standard deviation are taken inside",
        "output": "logits: float32 [N, K, H, W]; the class of a pixel is the argmax over K",
    }


def name_student(student: TrainedStudent) -> dict[str, str]:
    """Whose student it is, as text: names of classes in order, where it comes from, how good it was."""
    return {
        "class_names": json.dumps(student.config.dataset.names, ensure_ascii=False),
        "arch": student.config.student.arch,
        "cache_identity": student.cache_identity,
        "epoch": str(student.epoch),
        "miou": repr(student.miou),
        "val_size": json.dumps(student.config.dataset.val_hw),
        "kdcache": version("kdcache"),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters' notes on their own insides are not for who exports."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")
    ]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
