"""bfloat16 where it is safe: scores are upsampled and compared in float32, in every reader of them.

Letters: N batch, K classes, H, W height and width.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import kdcache
from kdcache.cache.reader import open_split
from kdcache.config.parser import merge
from kdcache.deploy.predict import find_classes
from kdcache.deploy.student import load_student
from kdcache.metrics import count_confusion, evaluate_segmentation
from kdcache.models import fit_loop
from kdcache.models.inputs import resize_to
from kdcache.models.networks import wrap_torchvision
from kdcache.models.student import LightweightSegmentationModel, OwnStudent
from kdcache.report.panels import Predictor
from kdcache.training.checkpoint import read_checkpoint
from kdcache.training.distill import distill
from kdcache.training.run_folder import BEST
from tests.support.tiny_teacher import build_tiny_fcn

K = 8


@pytest.fixture(scope="module")
def outcome(base_given, built_root, tmp_path_factory):
    """A run of one epoch whose student computes in bfloat16."""
    changes = {
        "cache": {"path": str(built_root)},
        "train": {"precision": "bfloat16", "epochs": 1},
        "run": {"baseline": False, "dir": str(tmp_path_factory.mktemp("runs") / "half")},
    }
    return distill(merge(base_given, changes), root=built_root)


def test_epoch_report_predict_and_served_batches_count_the_same_pixels(outcome, built_root):
    expected = read_checkpoint(outcome.folder / BEST)["confusion"]
    student, panels = load_student(outcome.folder), Predictor(outcome.config, outcome.folder / BEST)
    reader = open_split(built_root, "val")
    shown, predicted = torch.zeros(2, K, K, dtype=torch.int64)
    for number in range(len(reader.sample_ids)):
        image, label = (reader.read(name, 0, number) for name in ("image", "label"))
        shown += count(panels.predict(image), label)
        predicted += count(find_classes(student, image, size=None), label)
    batches = kdcache.open_cache(built_root).val.batches(batch_size=3, device="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        served = evaluate_segmentation(student.module, batches, num_classes=K).confusion_KK
    assert torch.equal(shown, expected) and torch.equal(predicted, expected)
    assert torch.equal(served, expected)


def count(classes_HW: np.ndarray, label_HW: np.ndarray) -> Tensor:
    both = torch.from_numpy(classes_HW)[None], torch.from_numpy(label_HW)[None]
    return count_confusion(*both, num_classes=K)


class Grid(nn.Module):
    """Scores on a grid of stride 8, in the dtype of autocast."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Conv2d(3, 21, 8, stride=8)

    def forward(self, image_NCHW):
        return self.scores(image_NCHW), {}


@pytest.mark.parametrize("make", [Grid, lambda: LightweightSegmentationModel(21, pretrained=False)])
def test_upsampled_scores_break_no_ties_of_bfloat16(make):
    torch.manual_seed(0)
    module = make()
    student = OwnStudent(module) if isinstance(module, Grid) else module
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = student.eval()(image)
        coarse = student(image, full_size=False)
    assert coarse.dtype == torch.bfloat16 and found.dtype == torch.float32
    assert torch.equal(found, resize_to(coarse.float(), (64, 64)))
    ties = resize_to(coarse, (64, 64)).argmax(1) != found.argmax(1)
    assert ties.any()  # what upsampling in bfloat16 would have changed


class Upsampling(TorchDispatchMode):
    """Notes the dtype of everything that is upsampled, backwards, too."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "upsample" in str(func):
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_a_student_upsamples_in_float32_forwards_and_backwards():
    student = LightweightSegmentationModel(K, pretrained=False)
    with Upsampling() as seen:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = student(torch.randn(2, 3, 64, 64))
        scores.sum().backward()
    assert len(seen.dtypes) >= 6 and set(seen.dtypes) == {torch.float32}


@pytest.fixture
def tiny_fcn():
    torch.manual_seed(0)
    model = build_tiny_fcn("fcn_resnet50", num_classes=K, aux_head=True)
    return wrap_torchvision(model, num_classes=K)


def test_a_teacher_in_fit_upsamples_in_float32(tiny_fcn):
    with Upsampling() as seen:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = fit_loop.ask_heads(tiny_fcn, torch.randn(2, 3, 64, 64))
        sum(scores.sum() for scores in answer.values()).backward()
    assert len(seen.dtypes) == 4 and set(seen.dtypes) == {torch.float32}


def test_the_heads_of_a_teacher_say_what_its_forward_says(tiny_fcn):
    image = torch.randn(2, 3, 40, 56)
    expected, found = tiny_fcn.module.eval()(image), fit_loop.ask_heads(tiny_fcn, image)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
