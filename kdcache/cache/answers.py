"""What the teacher says about one shard group: views drawn, teacher asked, float16 checked."""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.layout import Group
from kdcache.cache.writer import GroupContents
from kdcache.config import Config
from kdcache.data.augment import apply, draw, fit_inside
from kdcache.data.voc import Sample, Split, read_sample
from kdcache.errors import TeacherError
from kdcache.models.teacher import Teacher

FLOAT16_MAX = 65_504.0


def compute_group(
    config: Config, group: Group, *, splits: dict[str, Split], teacher: Teacher, pool: Executor
) -> GroupContents:
    """Everything a group stores; a pure function of its samples, the settings and the weights.

    Raises: DataError, TeacherError naming the sample.
    """
    samples = splits[group.split].samples[group.start : group.stop]
    made = list(pool.map(lambda sample: _make_view(config, sample, group), samples))
    images, labels, views = (list(part) for part in zip(*made, strict=True))
    arrays = {"image": np.stack(images), "label": np.stack(labels)}
    ids = [sample.id for sample in samples]
    arrays |= _ask(teacher, arrays["image"], ids=ids, batch_size=config.teacher.batch_size, split=group.split)
    return GroupContents(arrays, ids, views)


def _make_view(config: Config, sample: Sample, group: Group) -> tuple[np.ndarray, np.ndarray, dict]:
    """Image, label and parameters of one stored sample."""
    image, label = read_sample(config.dataset, sample)
    if group.split == "train":
        view = draw(
            config.augment, sample_id=sample.id, view=group.view, image_hw=label.shape, size_hw=config.dataset.size_hw
        )
        return *apply(view, image, label), {**view.to_dict(), "image_box": view.image_box}
    padded_image, padded_label, shrunk_hw = fit_inside(image, label, size_hw=config.dataset.val_hw)
    return padded_image, padded_label, {"image_box": (0, 0, *shrunk_hw), "image_hw": label.shape}


def _ask(teacher: Teacher, images: np.ndarray, *, ids: list[str], batch_size: int, split: str) -> dict[str, np.ndarray]:
    """The teacher's answers for one shard group as float16."""
    answers: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), batch_size):
        answer = teacher(torch.from_numpy(images[start : start + batch_size]))
        names = ids[start : start + batch_size]
        for name in answer if split == "train" else ("logits",):
            _check_float16(answer[name], name=name, ids=names)
            answers.setdefault(name, []).append(answer[name].half().contiguous().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in answers.items()}


def _check_float16(values: Tensor, *, name: str, ids: list[str]) -> None:
    """Raises TeacherError naming the sample whose answer float16 cannot hold."""
    peak = values.abs().amax(dim=(1, 2, 3))
    bad = ~(peak <= FLOAT16_MAX)  # NaN, too
    if bad.any():
        row = int(bad.nonzero()[0])
        raise TeacherError(
            f"sample {ids[row]!r}: teacher's {name} reaches {peak[row].item():g}, expected finite values up to {FLOAT16_MAX:g}; "
            "float16 cannot hold it: check the weights, teacher.precision and teacher.layers"
        )
