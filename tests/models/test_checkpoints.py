"""Checkpoints of others: each container gives the same teacher, and what is wrong is said in words
of those who trained it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import get_model

from kdcache.config import TeacherConfig
from kdcache.config.parser import make_config, merge
from kdcache.errors import KdcacheError, SettingsError, TeacherError
from kdcache.models.fit import fit_teacher
from kdcache.models.teacher import build_teacher
from kdcache.models.weights import hash_weights, read_teacher_weights
from tests.support.helpers import Trap, check_one_line, without_aux
from tests.support.tiny_teacher import build_tiny_fcn

NUM_CLASSES = 8
ARGS = argparse.Namespace(model="fcn_resnet50", lr=0.01, data_path=Path("coco"), output_dir=None)


class Lightning(nn.Module):
    """A module with the model as one of its parts, as LightningModules have it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(7)
    return build_tiny_fcn("fcn_resnet50", num_classes=NUM_CLASSES, aux_head=True)


def averaged(model: nn.Module) -> dict:
    return AveragedModel(nn.DataParallel(model).module, use_buffers=True).state_dict()


def compiled(model: nn.Module) -> dict:
    """As torch.compile names them, of a whole and of a part."""
    return {f"_orig_mod.{n.replace('bone.', 'bone._orig_mod.', 1)}": v for n, v in state(model)}


def state(model: nn.Module):
    return model.state_dict().items()


FOUND = {
    "reference script": lambda m: {"model": m.state_dict(), "optimizer": {}, "args": ARGS},
    "model_state": lambda m: {"model_state": m.state_dict(), "epoch": 3},
    "net": lambda m: {"net": m.state_dict(), "acc": 0.5},
    "teacher": lambda m: {"student": {"weight": torch.ones(2)}, "teacher": m.state_dict()},
    "model_ema": lambda m: {"model_ema": averaged(m), "model": {"hidden": 3}},
    "ddp": lambda m: {f"module.{name}": value for name, value in state(m)},
    "compile": compiled,
    "averaged": averaged,
    "lightning": lambda m: {"state_dict": Lightning(m).state_dict(), "epoch": 3},
    "ddp in lightning": lambda m: {"state_dict": Lightning(nn.DataParallel(m)).state_dict()},
    "no counters": lambda m: {n: v for n, v in state(m) if "num_batches" not in n},
    "twice": lambda m: {"model": {"state_dict": m.state_dict()}, "weight": torch.ones(1)},
}


def build(path: Path, *, num_classes: int = NUM_CLASSES, key: str | None = None, **settings):
    config = TeacherConfig(weights=str(path), weights_key=key, **settings)
    return build_teacher(
        config, num_classes=num_classes, levels=["low"], device=torch.device("cpu")
    )


@pytest.mark.parametrize("name", FOUND)
def test_each_container_gives_the_same_teacher(name, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    torch.save(FOUND[name](model), tmp_path / "found.pth")
    plain, found = build(tmp_path / "plain.pth"), build(tmp_path / "found.pth")
    assert (
        hash_weights(found[1])
        == hash_weights(plain[1])
        == hash_weights(without_aux(model.state_dict()))
    )
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    answers = plain[0](image), found[0](image)
    assert all(torch.equal(answers[0][part], answers[1][part]) for part in answers[0])


def test_what_was_taken_of_a_file_is_said(model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "kdcache"):
        torch.save(FOUND["model_ema"](model), tmp_path / "a.pth")
        build(tmp_path / "a.pth")
        torch.save({"state_dict": model.state_dict()}, tmp_path / "b.pth")
        build(tmp_path / "b.pth")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/a.pth: teacher.weights are the tensors under 'model_ema' without the prefix "
        "'module.'"
    ]


def test_of_several_one_is_chosen_by_the_user(model, tmp_path):
    path, other = tmp_path / "both.pth", {n: v + 1 for n, v in state(model)}
    torch.save({"model": other, "model_ema": averaged(model)}, path)
    with pytest.raises(TeacherError) as error:
        build(path)
    check_one_line(
        error,
        "both.pth: teacher.weights is model and model_ema, expected one of them",
        "set teacher.weights_key model, or another",
    )
    expected = hash_weights(without_aux(model.state_dict()))
    assert hash_weights(build(path, key="model_ema")[1]) == expected
    assert hash_weights(build(path, key="model")[1]) != expected
    with pytest.raises(TeacherError) as error:
        build(path, key="model_em")
    check_one_line(error, "teacher.weights_key is 'model_em', expected model, model_ema")


def test_a_key_also_chooses_by_prefix(model, tmp_path):
    named = {f"teacher.{name}": value for name, value in state(model)}
    torch.save({"state_dict": {**named, "student.w": torch.ones(2)}}, tmp_path / "two.ckpt")
    found = build(tmp_path / "two.ckpt", key="state_dict.teacher")[1]
    assert hash_weights(found) == hash_weights(without_aux(model.state_dict()))


def test_safetensors_are_read_and_a_missing_reader_is_one_line(model, tmp_path, monkeypatch):
    path = tmp_path / "teacher.safetensors"
    save_file({name: value.contiguous() for name, value in state(model)}, path)
    assert hash_weights(build(path)[1]) == hash_weights(without_aux(model.state_dict()))
    path.write_bytes(path.read_bytes()[:999])
    with pytest.raises(TeacherError) as error:
        build(path)
    check_one_line(error, "teacher.safetensors: teacher.weights is unreadable as plain tensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(SettingsError) as error:
        build(path)
    check_one_line(error, "expected safetensors to be installed", "pip install 'kdcache[safet")


def test_code_in_the_args_of_a_script_is_not_run(model, tmp_path):
    args = argparse.Namespace(callback=Trap(tmp_path / "executed"))
    torch.save({"model": model.state_dict(), "args": args}, tmp_path / "trap.pth")
    with pytest.raises(TeacherError) as error:
        build(tmp_path / "trap.pth")
    check_one_line(error, "trap.pth: teacher.weights is unreadable as plain tensors")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_told_by_its_tensor(bad, model, tmp_path):
    broken = {name: value.clone() for name, value in state(model)}
    broken["backbone.layer2.0.weight"].view(-1)[5] = bad
    torch.save({"model": broken}, tmp_path / "bad.pth")
    with pytest.raises(TeacherError) as error:
        read_teacher_weights("fcn_resnet50", str(tmp_path / "bad.pth"))
    check_one_line(error, "bad.pth: tensor backbone.layer2.0.weight is not finite")


OTHERS = {
    "deeplabv3_resnet50": "teacher is a DeepLabV3 over a ResNet-50, expected an FCN over a ResNet",
    "lraspp_mobilenet_v3_large": "teacher is an LR-ASPP, expected an FCN over a ResNet",
    "resnet50": "teacher is a ResNet-50 alone, without a head for segmentation, expected an FCN",
    "mobilenet_v3_large": "teacher is a classifier of images, expected an FCN over a ResNet",
}


@pytest.mark.parametrize("arch", OTHERS)
def test_another_model_is_told_by_its_name(arch, tmp_path):
    extra = {"weights_backbone": None} if "_" in arch and "net_v3_large" not in arch[:12] else {}
    other = get_model(arch, weights=None, num_classes=NUM_CLASSES, **extra)
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    with pytest.raises(TeacherError) as error:
        build(tmp_path / "other.pth")
    check_one_line(error, "other.pth", OTHERS[arch], "use weights of teacher.arch, or set it")


def test_classes_with_background_are_said(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "eight.pth")
    with pytest.raises(TeacherError) as error:
        build(tmp_path / "eight.pth", num_classes=7)
    check_one_line(error, "number of classes is 8 with background, expected 7")


def test_fit_starts_from_a_backbone_alone(given, model, tmp_path):
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in state(model)
        if name.startswith("backbone.") and "num_batches" not in name
    }
    path, said = tmp_path / "resnet.pth", []
    torch.save({"model": {**backbone, "fc.weight": torch.ones(9, 9)}}, path)
    out = {"fit": {"epochs": 1, "out": str(tmp_path / "fitted.pth")}}
    fit_teacher(
        make_config(merge(merge(given, out), {"teacher": {"weights": str(path)}})), say=said.append
    )
    assert said[0] == f"from {path}, with a new head for 8 classes"


def test_fit_says_of_which_model_other_weights_are(given, tmp_path):
    other = get_model("deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(KdcacheError) as error:
        fit_teacher(
            make_config(merge(given, {"teacher": {"weights": str(tmp_path / "other.pth")}}))
        )
    check_one_line(
        error, "weights are not those of a fcn_resnet50 but of a DeepLabV3 over a MobileNet"
    )


def test_a_key_finds_tensors_whose_names_are_numbers(tmp_path):
    torch.save({"model": {1: torch.ones(1)}}, tmp_path / "t.pth")
    with pytest.raises(TeacherError) as error:
        build(tmp_path / "t.pth", key="model")
    check_one_line(error, "t.pth: tensor ", "use weights of teacher.arch")
