"""A student as an ONNX file: any number and size of images in bytes, the answers of PyTorch, and
who it is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import own_student
import pytest
import torch
from torch import nn

from kdcache.data.sample_set import CLASS_NAMES
from kdcache.deploy.export import export_student
from kdcache.deploy.onnx import open_session, write
from kdcache.deploy.predict import find_images
from kdcache.deploy.student import ByteStudent, TrainedStudent, load_student
from kdcache.errors import TrainingError
from kdcache.models.inputs import normalize_images
from kdcache.models.student import OwnStudent
from tests.support.helpers import check_one_line
from train_student.cli import main


@pytest.fixture
def own(run) -> TrainedStudent:
    """A small student of the user's, in a folder of its own, not trained."""
    torch.manual_seed(0)
    return replace(load_student(run), module=OwnStudent(own_student.plain(8, width=4)).eval())


def ask(path: Path, image_NHW3: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(open_session(path).run(None, {"image": image_NHW3})[0])


def draw_images(count: int, *hw: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *hw, 3), np.uint8)


def test_the_built_in_student_is_exported_for_images_of_any_number_and_size(run, capsys):
    assert main(["export", str(run), "--to", "onnx"]) == 0
    out = capsys.readouterr()
    assert (
        "student.onnx: " in out.out and "11 images asked of onnxruntime" in out.out and not out.err
    )
    student, path = load_student(run), run / "student.onnx"
    for images in (draw_images(2, 48, 48), draw_images(1, 33, 71), draw_images(3, 128, 32)):
        logits = ask(path, images)
        assert (
            logits.shape == (len(images), 8, *images.shape[1:3]) and logits.dtype == torch.float32
        )
        torch.testing.assert_close(logits, student.ask(images), rtol=0, atol=1e-4)
    assert not list(run.glob("*.partial"))


def test_the_file_says_whose_it_is_and_nothing_of_the_machine_it_came_from(own, capsys):
    path = export_student(own, to="onnx", find_images=lambda: find_images(own, []), say=print)
    model = onnx.load(path)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (
        json.loads(facts["class_names"]) == list(CLASS_NAMES)
        and facts["cache_identity"] == own.cache_identity
    )
    assert "uint8 RGB [N, H, W, 3]" in facts["input"] and float(facts["miou"]) == own.miou
    image, logits = model.graph.input[0].type.tensor_type, model.graph.output[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8 and logits.elem_type == onnx.TensorProto.FLOAT
    assert [size.dim_param or size.dim_value for size in image.shape.dim] == ["N", "H", "W", 3]
    assert b".py" not in path.read_bytes()
    assert "same class on 100.0000 % of the pixels" in capsys.readouterr().out


def test_a_student_for_one_size_is_exported_for_that_and_says_so(run, caplog, tmp_path):
    caplog.set_level("WARNING")
    student = replace(load_student(run), module=OwnStudent(own_student.OneSize(8)).eval())
    write(student, tmp_path / "one.onnx")
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "one.onnx").metadata_props}
    assert "uint8 RGB [N, 48, 48, 3]" in facts["input"]
    assert "is exported for images [N, 48, 48, 3] only" in caplog.text
    images = draw_images(3, 48, 48)
    torch.testing.assert_close(
        ask(tmp_path / "one.onnx", images), student.ask(images), rtol=0, atol=1e-4
    )


def test_a_file_that_answers_otherwise_is_not_left_behind(own, monkeypatch):
    monkeypatch.setattr("kdcache.deploy.student.IMAGENET_MEAN", (0.5, 0.5, 0.5))
    with pytest.raises(TrainingError) as error:
        export_student(own, to="onnx", find_images=lambda: find_images(own, []))
    check_one_line(
        error, "largest difference of a logit is", "expected 0.001 at most", "nothing was kept"
    )
    assert not list(own.folder.glob("student.*"))


def test_what_cannot_be_exported_is_one_line(own, tmp_path):
    class Odd(nn.Module):
        def forward(self, image_NCHW):
            return torch.linalg.lstsq(image_NCHW, image_NCHW)[0], {}

    with pytest.raises(TrainingError) as error:
        write(replace(own, module=OwnStudent(Odd())), tmp_path / "odd.onnx")
    check_one_line(
        error, str(own.folder), "student cannot be exported to ONNX (", "mend student.arch"
    )


def test_normalisation_inside_has_the_numbers_of_training():
    images = torch.from_numpy(draw_images(2, 8, 8))
    assert torch.equal(ByteStudent(nn.Identity())(images), normalize_images(images))
