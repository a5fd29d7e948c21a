"""A study's second cache takes what its first one holds, and has the bytes of one built alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.config.parser import make_config, merge
from kdcache.models.teacher import Teacher
from kdcache.precompute.build import build_cache
from tests.study.gain import memory
from tests.study.gain.memory import remember_answers
from tests.support.quick import snapshot


@pytest.fixture
def logits_only(base_given) -> dict:
    return merge(base_given, {"cache": {"levels": []}})


def build(given: dict, path, **changes) -> dict[str, bytes]:
    build_cache(make_config(merge(given, {"cache": {"path": str(path)}, **changes})))
    return snapshot(path, documents=False)


def count_images(monkeypatch) -> list[int]:
    """Images of each question to the teacher from here on."""
    asked, call = [], Teacher.__call__

    def note(self, image_NHWC):
        asked.append(len(image_NHWC))
        return call(self, image_NHWC)

    monkeypatch.setattr(Teacher, "__call__", note)
    return asked


def test_known_images_are_not_asked_about_again(logits_only, tmp_path, monkeypatch):
    alone = build(logits_only, tmp_path / "alone")
    folder = tmp_path / "caches"
    build(logits_only, folder / "first", augment={"views": 1})
    asked = count_images(monkeypatch)
    with remember_answers(folder):
        assert build(logits_only, folder / "second") == alone
    assert sum(asked) == 1 + 10  # an empty one for the shapes, and the second view of train


def test_what_is_known_comes_to_the_device_of_the_teacher():
    """A GPU's answers are joined with those of a cache; `meta` stands for it here."""
    images = torch.randint(0, 255, (2, 8, 8, 3), dtype=torch.uint8)
    known = {memory._hash(images[0].numpy()): np.zeros((3, 1, 1), np.float16)}
    asking = Asking(torch.device("meta"))
    answer = memory.RememberingTeacher(asking, known)(images)["logits"]
    assert answer.device == asking.device and answer.shape == (2, 3, 1, 1) and asking.asked == 1


class Asking:
    """A teacher on some device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.asked = device, 0

    def __call__(self, image_NHWC: torch.Tensor) -> dict[str, torch.Tensor]:
        self.asked += len(image_NHWC)
        return {"logits": torch.zeros(len(image_NHWC), 3, 1, 1, device=self.device)}


def test_the_answers_of_another_teacher_are_not_taken(
    logits_only, tmp_path, monkeypatch, teacher_file
):
    folder, other = tmp_path / "caches", tmp_path / "other.pth"
    build(logits_only, folder / "first")
    state = torch.load(teacher_file, weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, other)
    asked = count_images(monkeypatch)
    with remember_answers(folder):
        build(logits_only, folder / "second", teacher={"weights": str(other)})
    assert sum(asked) == 1 + 10 + 10 + 5  # an empty one first, for the shapes of its answers
