"""Teachers of torchvision by name: what is asked of them is what torchvision's own model says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import get_model

from kdcache.config import LayerConfig, TeacherConfig
from kdcache.config.names import FCNS, TORCHVISION
from kdcache.errors import SettingsError, TeacherError
from kdcache.models.inputs import normalize_images
from kdcache.models.teacher import Teacher, build_teacher
from tests.support.helpers import check_one_line

NUM_CLASSES, HW = 5, (64, 96)
OTHERS = [arch for arch in TORCHVISION if arch not in FCNS and "101" not in arch]
LEVELS = ["low", "mid", "high"]
RESNET = {"logits": (5, 8), "low": (256, 4), "mid": (512, 8), "high": (1024, 16)}
MOBILENET = {"low": (24, 4), "mid": (40, 8), "high": (112, 16)}
TARGETS = {
    "deeplabv3_resnet50": RESNET,
    "deeplabv3_mobilenet_v3_large": {"logits": (5, 16), **MOBILENET},
    "lraspp_mobilenet_v3_large": {"logits": (5, 8), **MOBILENET},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Weights of each, as `torch.save(model.state_dict())` leaves them."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for arch in OTHERS:
        torch.manual_seed(3)
        files[arch] = folder / f"{arch}.pth"
        torch.save(make_model(arch).state_dict(), files[arch])
    return files


def make_model(arch: str, num_classes: int = NUM_CLASSES) -> torch.nn.Module:
    return get_model(arch, weights=None, weights_backbone=None, num_classes=num_classes).eval()


def build(arch: str, weights: Path, *, num_classes: int = NUM_CLASSES, **settings) -> Teacher:
    config = TeacherConfig(arch=arch, weights=str(weights), **settings)
    device = torch.device("cpu")
    return build_teacher(config, num_classes=num_classes, levels=LEVELS, device=device)[0]


def make_images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, *HW, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("arch", OTHERS)
def test_upsampled_logits_are_torchvisions_answer_and_strides_are_found(arch, files):
    teacher, model = build(arch, files[arch]), make_model(arch)
    model.load_state_dict(torch.load(files[arch], weights_only=True))
    assert teacher.probe_targets(HW, HW) == TARGETS[arch]
    answer = teacher(make_images())
    with torch.no_grad():
        expected = model(normalize_images(make_images()))["out"]
    found = F.interpolate(answer["logits"], size=HW, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(module.training for module in teacher.model.modules())


def test_any_part_can_be_a_level(files):
    layers = LayerConfig(low="classifier.1", mid="backbone.layer2.0", high="layer4")
    targets = build("deeplabv3_resnet50", files["deeplabv3_resnet50"], layers=layers)
    assert targets.probe_targets(HW, HW) == {
        "logits": (5, 8),
        "low": (256, 8),
        "mid": (512, 8),
        "high": (2048, 16),
    }


def test_mean_and_std_normalise_the_images(files):
    arch, mean, std = "lraspp_mobilenet_v3_large", [0.5, 0.4, 0.3], [0.5, 0.25, 1.0]
    model = make_model(arch)
    model.load_state_dict(torch.load(files[arch], weights_only=True))
    x = make_images().permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        expected = model.classifier(model.backbone(x))
    found = build(arch, files[arch], mean=mean, std=std)(make_images())["logits"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arch": "deeplabv3_resnet5"}, "expected deeplabv3_resnet50, smp:NAME, transformers:NAME"),
        ({"arch": "vgg"}, "expected fcn_resnet50, fcn_resnet101, deeplabv3_resnet50"),
        ({"mean": [0.5, 0.5]}, "teacher.mean is [0.5, 0.5], expected three numbers"),
        ({"std": [0.5, 0.0, 1.0]}, "teacher.std is [0.5, 0.0, 1.0], expected three numbers from"),
        ({"mean": [float("nan"), 0.0, 0.0]}, "expected three numbers"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(SettingsError) as error:
        TeacherConfig(**settings)
    check_one_line(error, words)


@pytest.mark.parametrize("arch", OTHERS)
def test_another_number_of_classes_is_said_as_such(arch, files):
    with pytest.raises(TeacherError) as error:
        build(arch, files[arch], num_classes=4)
    check_one_line(error, "number of classes is 5 with background, expected 4")
    with pytest.raises(TeacherError) as error:
        build(arch, files[arch], num_classes=21)
    check_one_line(error, "number of classes is 5, expected 21; set dataset.num_classes")
