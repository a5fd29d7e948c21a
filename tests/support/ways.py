"""Which library files a sample passes: a JPEG on its way to the disk, a chunk on its way to the
loss.

How the files that a sample passes are counted. A tiny phase one and a tiny training run under
`sys.setprofile`. A file is on
the way if one of its functions holds the sample: an array, a tensor or bytes of at least
    LEAST_BYTES among its arguments, its local names or its result, on its own or in a list, a
    tuple, a dict or a dataclass. Attributes of `self` do not count. The way to the disk is traced
    while the bar over the training samples is shown, so reading the teacher's weights is not on it;
    the way from the disk ends where the loss is called, and the student is left out, because it is
    what is trained.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import numpy as np
import torch

from kdcache.config.parser import make_config
from kdcache.data.sample_set import CLASS_NAMES, write_sample_set
from kdcache.models.teacher import build_fcn
from kdcache.precompute.build import build_cache
from kdcache.progress import Silent
from kdcache.training.distill import distill

LIBRARY = Path(__file__).parents[2] / "kdcache"
LEAST_BYTES = 1000  # the smallest array of a sample of 64x64 pixels, its logits, has 1,024
HELD_WITHIN = 3  # containers within containers that are looked into


class Trace(Silent):
    """Notes the files of the library whose functions hold a sample while a bar of that title is
    shown.

    Args:
        title: how the bar's title begins.
        left_out: rooms that are not on the way.
        ends_in: the room where the way ends: the first file there is the last one that counts.
    """

    def __init__(self, title: str, *, left_out: str = "", ends_in: str = "") -> None:
        self.title, self.left_out, self.ends_in = title, left_out, ends_in
        self.files: list[str] = []
        self.shown = False

    def __enter__(self) -> Trace:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    @contextmanager
    def start(self, title: str, *, total: int | None, unit: str):
        """A silent bar."""
        with super().start(title, total=total, unit=unit) as bar:
            self.shown = title.startswith(self.title)
            try:
                yield bar
            finally:
                self.shown = False

    def _note(self, frame: FrameType, event: str, result: object) -> None:
        file = find_file(frame) if self.shown and event in ("call", "return") else None
        if file is None or file in self.files or file.startswith(f"{self.left_out}/"):
            return
        if self.files and self.files[-1].startswith(f"{self.ends_in}/"):
            return
        values = [value for name, value in frame.f_locals.items() if name not in ("self", "cls")]
        if holds_sample([*values, result if event == "return" else None]):
            self.files.append(file)


def find_file(frame: FrameType) -> str | None:
    """`cache/reader.py` of a function of the library, None for any other."""
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(LIBRARY)) if path.is_relative_to(LIBRARY) else None


def holds_sample(value: object, *, within: int = 0) -> bool:
    """Whether a value is, or contains, an array, a tensor or bytes of LEAST_BYTES; JSON does not
    count.
    """
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.nbytes >= LEAST_BYTES
    if isinstance(value, bytes | bytearray | memoryview):
        return len(value) >= LEAST_BYTES and bytes(value[:1]) != b"{"
    if within > HELD_WITHIN:
        return False
    if isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list | tuple):
        inside = value
    else:
        inside = [getattr(value, name, None) for name in getattr(value, "__dataclass_fields__", ())]
    return any(holds_sample(each, within=within + 1) for each in inside)


def trace_ways() -> dict[str, list[str]]:
    """The files of both ways, in the order in which they are met."""
    with TemporaryDirectory() as folder:
        given = make_settings(Path(folder))
        to_disk = Trace("asking the teacher")
        with to_disk:
            build_cache(make_config(given), progress=to_disk)
        to_loss = Trace("epoch", left_out="models", ends_in="losses")
        with to_loss:
            distill(given, root=Path(folder, "cache"), progress=to_loss)
    return {"files from JPEG to disk": to_disk.files, "files from disk to loss": to_loss.files}


def make_settings(folder: Path) -> dict:
    """Settings of a cache of two groups of 64x64 pixels and of a run of one epoch, in `folder`."""
    torch.set_num_threads(1)
    logging.getLogger("kdcache").setLevel(logging.ERROR)  # this teacher knows nothing
    write_sample_set(folder, num_train=4, num_val=2, size_px=64)
    teacher = build_fcn("fcn_resnet50", num_classes=len(CLASS_NAMES), aux_head=True)
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    classes = {"num_classes": len(CLASS_NAMES), "class_names": list(CLASS_NAMES)}
    sizes = {"size": 64, "val_size": 64, "download": False}
    return {
        "dataset": {"root": str(folder), **classes, **sizes},
        "augment": {"views": 1},
        "teacher": {"weights": str(folder / "teacher.pth"), "device": "cpu"},
        "cache": {"path": str(folder / "cache"), "shard_samples": 2},
        "student": {"pretrained": False, "aspp_channels": 16},
        "train": {"epochs": 1, "batch_size": 2, "device": "cpu"},
        "run": {"dir": str(folder / "runs/kd"), "baseline": False},
    }
