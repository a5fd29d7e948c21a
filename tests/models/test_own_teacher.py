"""`teacher.arch package.module:function`: a teacher of the user's, asked like a built-in one."""

from __future__ import annotations

import warnings

import own_teacher
import pytest
import torch
from torch import Tensor

from kdcache.config import LayerConfig, TeacherConfig
from kdcache.config.parser import make_config, merge
from kdcache.errors import KdcacheError, SettingsError, TeacherError
from kdcache.models.inputs import normalize_images
from kdcache.models.networks import hash_network
from kdcache.models.own_code import hash_source
from kdcache.models.teacher import Teacher, build_teacher
from kdcache.models.weights import hash_weights, read_teacher_weights, take_weights
from kdcache.precompute.build import build_cache
from tests.support.helpers import check_one_line

NUM_CLASSES, HW = 8, (64, 96)
LAYERS = {"low": "encoder.layer1", "mid": "layer2", "high": "encoder.tokens"}


def build(function: str = "plain", *, levels: list | None = None, **settings) -> Teacher:
    given = {"weights": "as_built", "layers": LayerConfig(**LAYERS), **settings}
    config = TeacherConfig(arch=f"own_teacher:{function}", **given)
    levels, device = list(LAYERS) if levels is None else levels, torch.device("cpu")
    return build_teacher(config, num_classes=NUM_CLASSES, levels=levels, device=device)[0]


def make_images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, *HW, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", ["out", "logits", "tensor", "pair"])
def test_logits_are_found_and_parts_are_features(kind):
    teacher = build(options={"kind": kind, "width": 4})
    assert teacher.probe_targets(HW, (48, 48)) == {
        "logits": (NUM_CLASSES, 4),
        "low": (4, 4),
        "mid": (8, 8),
        "high": (12, 16),
    }
    answer, net = teacher(make_images()), teacher.model
    with torch.no_grad():
        low = net.encoder.layer1(normalize_images(make_images()))
        mid = net.encoder.layer2(low)
        expected = {"low": low, "mid": mid, "high": net.encoder.tokens.conv(mid)}
        expected["logits"] = net.classifier(low)
    for name, values in expected.items():
        torch.testing.assert_close(answer[name], values)
    assert not any(p.requires_grad for p in net.parameters()) and not net.training


def test_a_teacher_of_half_precision_is_asked_in_float32():
    teacher = build("half", levels=["low"])
    assert teacher.probe_targets(HW, HW)["logits"] == (NUM_CLASSES, 4)
    kept = {name: x.half().float() for name, x in build(levels=["low"]).model.state_dict().items()}
    assert all(torch.equal(x, kept[name]) for name, x in teacher.model.state_dict().items())
    assert teacher(make_images())["logits"].dtype == torch.float32


def test_weights_come_from_a_file_or_from_the_function(tmp_path):
    as_built = build()
    torch.manual_seed(1)
    same = build()  # what a function draws does not depend on what was drawn before
    assert hash_weights(as_built.model.state_dict()) == hash_weights(same.model.state_dict())
    other = own_teacher.plain(NUM_CLASSES)
    torch.save(
        {"state_dict": {f"model.{n}": v for n, v in other.state_dict().items()}}, tmp_path / "t"
    )
    loaded = build(weights=str(tmp_path / "t"))
    assert hash_weights(loaded.model.state_dict()) == hash_weights(other.state_dict())
    torch.save({**other.state_dict(), "classifier.bias": torch.zeros(9)}, tmp_path / "t")
    with pytest.raises(TeacherError) as error:
        build(weights=str(tmp_path / "t"))
    check_one_line(error, "number of classes is 9 with background, expected 8")


def test_every_head_of_a_module_of_yours_counts(tmp_path):
    two_heads = {"kind": "two heads"}
    as_built, hashes = build(options=two_heads), set()
    state = dict(as_built.model.state_dict())
    for bias in (0.0, 1.0):
        state["aux_classifier.bias"] = torch.full((NUM_CLASSES,), bias)
        torch.save(state, tmp_path / "t")
        loaded = build(weights=str(tmp_path / "t"), options=two_heads)
        hashes.add(hash_weights(read_teacher_weights("own_teacher:plain", str(tmp_path / "t"))))
        found = loaded.model.aux_classifier.bias
        assert torch.equal(found, state["aux_classifier.bias"])
    hashes.add(hash_weights(take_weights(as_built.model, where="")))
    assert len(hashes) == 3


def test_a_module_of_jit_has_no_parts():
    with pytest.raises(SettingsError) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it is deprecated
        build("scripted", levels=["low"])
    check_one_line(error, "teacher.layers.low encoder.layer1 is compiled by torch.jit")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing", "is giving nothing in eval mode, expected logits [1, 8, height, width]"),
        ("classes", "is giving [1, 16, 24] in eval mode, expected logits [1, 8, height, width]"),
        (
            "more",
            "is giving [1, 9, 16, 24] in eval mode, expected logits [1, 8, height, width] for",
        ),
        ("modes", "is giving [1, 1, 16, 24] in eval mode"),
        ("other", "is giving a dict of masks in eval mode"),
        ("nan", "is giving logits that are not finite"),
        ("uneven", "is giving logits [1, 8, 7, 9] for images of 64x96, expected one cell every"),
        ("odd", "is giving logits [1, 8, 2, 2] for images of 64x96"),
        ("drawn", "is giving other logits for the same image, expected one answer"),
        ("waking", "is in training mode after it was asked"),
    ],
)
def test_what_is_no_answer_is_one_line(kind, words):
    teacher = build(options={"kind": kind}, levels=["low"])
    with pytest.raises(TeacherError) as error:
        teacher.probe_targets(HW, HW)
    check_one_line(error, f"settings: teacher.arch own_teacher:plain {words}")


@pytest.mark.parametrize(
    ("function", "settings", "words"),
    [
        ("absent", {}, "is no such function (AttributeError"),
        ("no_module", {}, "giving a str, expected a function that gives a torch.nn.Module"),
        ("leaving", {}, "failing (SystemExit: 3), expected a function of num_classes and teacher."),
        ("plain", {"options": {"depth": 3}}, "failing (TypeError: plain() got an unexpected"),
        ("broken", {}, "teacher.arch own_teacher:broken: tensor classifier.bias is not finite"),
        ("plain", {"layers": LayerConfig()}, "teacher.layers.high is 'layer3', expected one of"),
        ("plain", {"weights": "none.pth"}, "none.pth: teacher.weights is missing"),
    ],
)
def test_what_is_no_teacher_is_one_line(function, settings, words):
    with pytest.raises(KdcacheError) as error:
        build(function, **settings)
    check_one_line(error, words)


def test_a_grid_that_is_stored_divides_16():
    layers = LayerConfig(low="encoder.tokens", mid="layer2", high="encoder.tokens")
    teacher = build(layers=layers, options={"kind": "tensor"})
    assert teacher.probe_targets(HW, HW)["low"] == (24, 16)
    teacher.model.encoder.tokens.conv = torch.nn.Conv2d(16, 5, 4, 4).eval()
    with pytest.raises(SettingsError) as error:
        teacher.probe_targets(HW, (64, 64))
    check_one_line(error, "teacher.layers.low encoder.tokens is giving low [1, 5, 2, 3]")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arch": "fcn_resnet50", "options": {"width": 4}}, "expected nothing for fcn_resnet50"),
        ({"arch": "fcn_resnet50", "weights": "as_built"}, "fcn_resnet50 is built without weights"),
        (
            {"arch": "a:b", "options": {"x": float("nan")}},
            "teacher.options is",
        ),
        ({"arch": "a b:c"}, "expected fcn_resnet50, fcn_resnet101"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(SettingsError) as error:
        TeacherConfig(**settings)
    check_one_line(error, words)


def test_what_it_raises_at_the_images_is_one_line(given):
    own = {"arch": "own_teacher:plain", "options": {"kind": "late"}, "weights": "as_built"}
    with pytest.raises(TeacherError) as error:
        build_cache(make_config(merge(given, {"teacher": own, "cache": {"levels": []}})))
    check_one_line(error, "failing at an image of 48x48 (RuntimeError: boom)")


def test_its_file_is_known_without_importing_it():
    config = TeacherConfig(arch="own_teacher:plain")
    assert hash_network(config) == hash_source("own_teacher:plain")
    assert hash_network(TeacherConfig(arch="no_such_module:plain")) == "unknown"
    assert hash_network(TeacherConfig()) is None
