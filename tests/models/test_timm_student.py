"""`student.arch timm:NAME`: the built-in student's head over a backbone of timm."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from kdcache.config import StudentConfig
from kdcache.config.parser import make_config, merge
from kdcache.deploy.student import load_student
from kdcache.errors import SettingsError
from kdcache.models.student import build_student, find_channels, recall_student
from kdcache.training.distill import distill
from tests.support.helpers import check_one_line

timm = pytest.importorskip("timm", reason="the extra timm is not installed")

LEVELS = ("low", "mid", "high")
CHANNELS = {
    "resnet18": {"low": 64, "mid": 128, "high": 256},
    "mobilenetv3_small_050": {"low": 8, "mid": 16, "high": 24},
    "convnext_atto": {"low": 40, "mid": 80, "high": 160},
}


def build(name: str, **options: object) -> torch.nn.Module:
    config = StudentConfig(arch=f"timm:{name}", options=options, aspp_channels=16, pretrained=False)
    return build_student(config, num_classes=5)


@pytest.mark.parametrize("name", CHANNELS)
def test_features_are_the_stages_at_strides_4_8_and_16(name):
    student, hw = build(name).eval(), (64, 96)
    found = find_channels(student, LEVELS, arch=f"timm:{name}", num_classes=5, hw=hw)
    assert found == CHANNELS[name]
    with torch.no_grad():
        logits, features = student(torch.rand(2, 3, *hw), return_features=True)
    assert logits.shape == (2, 5, *hw)
    assert [features[level].shape[-1] for level in LEVELS] == [24, 12, 6]


def test_gradients_reach_every_parameter():
    student = build("mobilenetv3_small_050").train()
    logits = student(torch.rand(4, 3, 64, 64))
    (
        logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    ).sum().backward()
    reached = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained == reached and "backbone.blocks.3.0.conv_pw.weight" in trained
    assert not any(name.startswith("backbone.blocks.4") for name in trained)  # stride 32


def test_it_is_trained_and_loaded_like_the_built_in_one(built_root, given):
    student = {"arch": "timm:resnet18", "aspp_channels": 16, "pretrained": False}
    changes = {"student": student, "run": {"baseline": False}, "train": {"epochs": 1}}
    outcome = distill(merge(given, changes), root=built_root)
    facts = outcome.student["hyperparameters"]
    assert facts["student.arch"] == "timm:resnet18" and facts["student.aspp_channels"] == 16
    assert "student.source" not in facts and recall_student(facts).aspp_channels == 16
    run = load_student(make_config(given).run.dir)
    assert sum(p.numel() for p in run.module.parameters()) == outcome.student["params"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_is_built_where_no_gradients_are_wanted(context):
    wanted = {name: x.requires_grad for name, x in build("resnet18").named_parameters()}
    with context():
        student = build("resnet18")
    assert {name: x.requires_grad for name, x in student.named_parameters()} == wanted


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet", {}, "student.arch timm:resnet is failing ("),
        ("vit_tiny_patch16_224", {}, "giving stages at [16, 16, 16], expected stages at strides 4"),
        ("resnet18", {"depth": 3}, "student.arch timm:resnet18 is failing ("),
        ("resnet18", {"checkpoint_path": "a.pth"}, "is given checkpoint_path, expected none"),
        ("resnet18", {"pretrained_cfg": "a"}, "is given pretrained_cfg, expected none"),
    ],
)
def test_what_timm_lacks_is_one_line(name, options, words):
    with pytest.raises(SettingsError) as error:
        build(name, **options)
    check_one_line(error, words, "change student.arch")


def test_a_missing_library_is_one_line(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "timm" else find(name)
    )
    with pytest.raises(SettingsError) as error:
        build("resnet18")
    check_one_line(error, "student.arch is 'timm:resnet18', expected timm to be installed")
