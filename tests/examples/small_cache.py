"""A small cache for the examples: 24 generated images, and a teacher of random weights, so that it
takes seconds.

Of a data set and a teacher of yours, `python -m cache_teacher --config FILE` makes one. A teacher
that nobody fitted answers
exactly but without sense: the examples show what is computed from its answers, and never a gain.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import kdcache
from kdcache.config.parser import make_config
from kdcache.data.sample_set import CLASS_NAMES, write_sample_set
from kdcache.models.teacher import build_fcn
from kdcache.precompute.build import build_cache
from kdcache.training.serving import Cache

STUDENT_CHANNELS = {"low": 16, "mid": 24, "high": 48}  # of kdcache.LightweightSegmentationModel
SIZE_PX = 48


@contextmanager
def small_cache() -> Iterator[Cache]:
    """16 training images in one view, 8 for validation, 8 classes; its folder goes away with it."""
    torch.set_num_threads(1)  # tiny tensors gain nothing from more
    torch.manual_seed(0)
    logging.getLogger("kdcache").setLevel(
        logging.ERROR
    )  # it would say that this teacher knows nothing
    with TemporaryDirectory() as folder:
        write_sample_set(Path(folder), num_train=16, num_val=8, size_px=SIZE_PX)
        teacher = build_fcn("fcn_resnet50", num_classes=len(CLASS_NAMES), aux_head=True)
        torch.save(teacher.state_dict(), f"{folder}/teacher.pth")
        build_cache(make_config(_settings(folder)))
        yield kdcache.open_cache(f"{folder}/cache")


def _settings(folder: str) -> dict:
    classes = {"num_classes": len(CLASS_NAMES), "class_names": list(CLASS_NAMES)}
    return {
        "dataset": {
            "root": folder,
            **classes,
            "size": SIZE_PX,
            "val_size": SIZE_PX,
            "download": False,
        },
        "augment": {"views": 1},
        "teacher": {"weights": f"{folder}/teacher.pth", "device": "cpu"},
        "cache": {"path": f"{folder}/cache", "shard_samples": 8},
    }
