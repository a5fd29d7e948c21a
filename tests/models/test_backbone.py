"""Weights of a backbone from a file: by name, by order, or refused; each is said."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

from kdcache.config import StudentConfig
from kdcache.config.parser import merge
from kdcache.errors import KdcacheError, OtherRunError, SettingsError, TeacherError
from kdcache.models.backbone import (
    demand_backbone,
    find_backbone,
    hash_backbone,
    load_backbone,
)
from kdcache.models.checkpoints import WeightsAbsentError
from kdcache.models.student import build_student
from kdcache.training.distill import distill
from kdcache.training.run import TrainingEvents
from tests.support.helpers import check_one_line

FACTS = {"owner": "my:net", "field": "teacher.backbone_weights"}


def make_part(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    nn.init.normal_(part[1].running_mean)
    return part


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As another library would call them, in the same order, with the head behind them."""
    words = {"0": "_stem", "1": "_bn", "2": "_point"}
    named = {f"{words[name[0]]}{name[1:]}": value for name, value in state.items()}
    return {**named, "_fc.weight": torch.ones(5, 4), "_fc.bias": torch.ones(5)}


def find_values(part: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in part.state_dict().items() if "num_batches" not in name}


def check_same(part: nn.Module, other: nn.Module) -> None:
    for name, value in find_values(other).items():
        assert torch.equal(part.state_dict()[name], value), name


def save(path, state: dict[str, Tensor]):
    torch.save(state, path)
    return path


@pytest.mark.parametrize("prefix", ["", "features.", "student.module.encoder."])
def test_names_are_matched_behind_any_prefix(tmp_path, prefix):
    part, other = make_part(), make_part(1)
    state = {f"{prefix}{name}": value for name, value in reversed(other.state_dict().items())}
    path = save(tmp_path / "a.pth", {**state, "classifier.weight": torch.ones(3)})
    line = load_backbone(part, path, **FACTS)
    check_same(part, other)
    behind = f", behind '{prefix}'" if prefix else ""
    expected = f"all 8 tensors of the backbone, by name{behind}; not taken: classifier.weight"
    assert line == f"{path}: {expected}"


def test_other_names_are_matched_by_order_and_it_is_said(tmp_path):
    part, other = make_part(), make_part(1)
    path = save(tmp_path / "a.pth", rename(other.state_dict()))
    line = load_backbone(part, path, **FACTS)
    check_same(part, other)
    said = "all 8 tensors of the backbone, by order and shape, since names differ"
    assert line == f"{path}: {said}; not taken: _fc.weight, _fc.bias"


def test_counters_are_not_needed_and_not_taken(tmp_path):
    part, other = make_part(), make_part(1)
    state = {n: v for n, v in rename(other.state_dict()).items() if "num_batches" not in n}
    load_backbone(part, save(tmp_path / "a.pth", state), **FACTS)
    check_same(part, other)
    assert part[1].num_batches_tracked == 0


def spoil(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = list(state)
    if kind == "half of the names":
        return {name: state[name] for name in names[:4]}
    if kind == "one name less":
        return {name: value for name, value in state.items() if name != "2.bias"}
    if kind == "another shape":
        return {**state, "2.weight": torch.ones(8, 4, 1, 1)}
    renamed = rename(state)
    if kind == "another order":  # of equal shapes: mean and variance
        swapped = list(renamed)
        swapped[4], swapped[5] = swapped[5], swapped[4]
        return {name: renamed[name] for name in swapped}
    if kind == "another shape, renamed":
        return {**renamed, "_point.weight": torch.ones(8, 4, 1, 1)}
    if kind == "half, renamed":
        return dict(list(renamed.items())[:4])
    assert kind == "a name that stands elsewhere"  # by order it would be another tensor
    return {"1.weight": renamed.pop("_stem.weight"), **renamed}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("half of the names", "tensor 1.running_mean is missing, expected [4]; set"),
        ("one name less", "tensor 2.bias is missing, expected [4]"),
        ("another shape", "tensor 2.weight is [8, 4, 1, 1], expected [4, 4, 1, 1]"),
        ("another order", "tensor _bn.running_var is [4], expected [4] of 1.running_mean"),
        ("half, renamed", "tensor count is 4, expected 8"),
        (
            "another shape, renamed",
            "tensor _point.weight is [8, 4, 1, 1], expected [4, 4, 1, 1]",
        ),
        ("a name that stands elsewhere", "tensor 0.weight is missing"),
    ],
)
def test_what_is_not_all_of_the_backbone_is_refused_and_nothing_is_loaded(tmp_path, kind, words):
    part, before = make_part(), make_part()
    path = save(tmp_path / "a.pth", spoil(kind, make_part(1).state_dict()))
    with pytest.raises(TeacherError) as error:
        load_backbone(part, path, **FACTS)
    check_one_line(error, f"a.pth: {words}", "set teacher.backbone_weights to one of my:net (")
    check_same(part, before)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (None, "teacher.backbone_weights is missing, expected a file"),
        (b"no weights", "teacher.backbone_weights is unreadable"),
        ({"a": {"b": 1}}, "teacher.backbone_weights is a dict"),
        ({"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}}, "is model and ema"),
        ({"0.weight": torch.full((4, 3, 3, 3), torch.nan)}, "tensor 0.weight is not finite"),
    ],
)
def test_what_is_no_file_of_weights_is_one_line(tmp_path, contents, words):
    path = tmp_path / "a.pth"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, path)
    with pytest.raises(KdcacheError) as error:
        load_backbone(make_part(), path, **FACTS)
    check_one_line(error, words)
    assert "weights_key" not in str(error.value) and "torchvision" not in str(error.value)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that carries weights, as some do; to import it would fail."""
    (tmp_path / "mini_model" / "models").mkdir(parents=True)
    (tmp_path / "mini_model" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "mini_model"


def test_weights_in_an_installed_package_are_taken_without_importing_it(package):
    part, other = make_part(), make_part(1)
    path = save(package / "models" / "mini-1.pth", other.state_dict())
    assert load_backbone(part, "package:mini_model", **FACTS).startswith(f"{path}: all 8 tensors")
    check_same(part, other)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_backbone("package:mini_model", field=FACTS["field"]) == digest


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("package:mini_model", "is package:mini_model, in which are 2 .pth files, expected an"),
        ("package:not_here", "is package:not_here, expected an installed package with one .pth"),
        ("package:a.b", "is package:a.b, expected an installed package"),
        ("package:", "is package:, expected an installed package"),
    ],
)
def test_what_is_no_package_with_one_file_is_one_line(package, given, words):
    for name in ("a", "b"):
        save(package / f"{name}.pth", {})
    with pytest.raises(SettingsError) as error:
        load_backbone(make_part(), given, **FACTS)
    check_one_line(error, f"teacher.backbone_weights {words}")


def test_a_backbone_is_the_part_of_that_name():
    module = nn.Module()
    assert find_backbone(module) is None
    with pytest.raises(SettingsError) as error:
        demand_backbone(module, **FACTS)
    check_one_line(error, "teacher.backbone_weights is set, and my:net has no backbone")
    module.encoder = make_part()
    assert find_backbone(module) == "encoder"
    module.backbone = make_part()
    assert demand_backbone(module, **FACTS) == "backbone"


# --- students


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory):
    """As torchvision's file has it, with the classifier of images."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    return save(path, mobilenet_v3_small(weights=None, num_classes=5).state_dict())


def build(arch: str, path, **settings: object) -> tuple[nn.Module, list[str]]:
    said: list[str] = []
    config = StudentConfig(arch=arch, backbone_weights=str(path), **settings)
    torch.manual_seed(0)
    return build_student(config, num_classes=4, say=said.append), said


def test_the_built_in_student_starts_from_a_file_of_torchvision(mobilenet_file):
    student, said = build("mobilenetv3_small", mobilenet_file)
    state = torch.load(mobilenet_file, weights_only=True)
    for name, value in find_values(student.backbone).items():
        assert torch.equal(value, state[f"features.{name}"]), name
    assert len(said) == 1 and said[0].startswith(f"student from {mobilenet_file}: all 206 tensors")
    assert "by name, behind 'features.'; not taken: classifier.0.weight" in said[0]


def test_nothing_is_read_for_a_student_whose_weights_are_loaded_afterwards():
    config = StudentConfig(backbone_weights="nowhere.pth")
    build_student(config, num_classes=4, pretrained=False)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_a_student_of_timm_starts_from_a_file_by_order_and_by_name(tmp_path, name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    state = timm.create_model(name, num_classes=5).state_dict()
    # the same tensors by other names, as packages carry them, without counters
    other = {f"x_{name}": x for name, x in state.items() if "num_batches" not in name}
    parts = []
    for number, tensors in enumerate((state, other)):
        student, said = build(f"timm:{name}", save(tmp_path / f"{number}.pth", tensors))
        parts.append(student.backbone)
    assert "by order and shape, since names differ" in said[0]
    check_same(*parts)
    values = torch.cat([x.flatten() for x in find_values(parts[0]).values()])
    torch.manual_seed(0)
    fresh = build_student(
        StudentConfig(arch=f"timm:{name}", pretrained=False), num_classes=4
    ).backbone
    assert not torch.equal(values, torch.cat([x.flatten() for x in find_values(fresh).values()]))


def test_a_file_of_another_student_is_one_line(mobilenet_file):
    pytest.importorskip("timm")
    with pytest.raises(TeacherError) as error:
        build("timm:resnet18", mobilenet_file)
    check_one_line(error, "tensor ", "set student.backbone_weights to one of timm:resnet18")


def test_code_of_the_users_has_no_backbone_weights():
    with pytest.raises(SettingsError) as error:
        StudentConfig(arch="own_student:plain", backbone_weights="a.pth")
    check_one_line(error, "student.backbone_weights is 'a.pth', expected nothing for a student of")


def test_a_download_that_fails_names_the_setting(monkeypatch):
    def fail(enum):
        raise WeightsAbsentError("there.pth: weights IMAGENET1K_V1 is unreachable")

    monkeypatch.setattr("kdcache.models.student.download_weights", fail)
    with pytest.raises(TeacherError) as error:
        build_student(StudentConfig(), num_classes=4)
    check_one_line(error, "is unreachable; or set student.backbone_weights to a file")
    timm = pytest.importorskip("timm")
    real = timm.create_model

    def create(*args, pretrained=False, **options):
        if pretrained:
            raise OSError("no network")
        return real(*args, **options)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(SettingsError) as error:
        build_student(StudentConfig(arch="timm:resnet18"), num_classes=4)
    check_one_line(error, "OSError: no network", "a file in student.backbone_weights")


def test_a_run_records_what_is_in_the_file_and_says_what_it_took(
    built_root, given, mobilenet_file, tmp_path
):
    said: list[str] = []

    class Listening(TrainingEvents):
        def said(self, text: str) -> None:
            said.append(text)

    changes = {"run": {"baseline": False}, "train": {"epochs": 1}}
    changes["student"] = {"backbone_weights": str(mobilenet_file), "pretrained": True}
    given = merge(given, changes)
    outcome = distill(given, root=built_root, events=Listening())
    digest = hashlib.sha256(mobilenet_file.read_bytes()).hexdigest()
    assert outcome.student["hyperparameters"]["student.backbone_weights"] == digest[:12]
    assert any(text.startswith(f"student from {mobilenet_file}: all 206") for text in said)
    # the same file elsewhere is the same run, another file is not
    moved = tmp_path / "moved.pth"
    moved.write_bytes(mobilenet_file.read_bytes())
    again = merge(given, {"run": {"resume": True}, "student": {"backbone_weights": str(moved)}})
    assert distill(again, root=built_root).student == outcome.student
    save(moved, {**torch.load(mobilenet_file, weights_only=True), "more": torch.ones(1)})
    with pytest.raises(OtherRunError) as error:
        distill(again, root=built_root)
    check_one_line(error, f"student.backbone_weights is '{digest[:12]}', expected '")


def test_a_file_that_does_not_fit_ends_a_run_before_it_begins(built_root, given, tmp_path):
    path = save(tmp_path / "a.pth", {"features.0.0.weight": torch.ones(1)})
    given = merge(given, {"student": {"backbone_weights": str(path)}})
    with pytest.raises(TeacherError) as error:
        distill(given, root=built_root)
    check_one_line(error, "a.pth: tensor ", "set student.backbone_weights to one of mobilenetv3")
    assert not (tmp_path / "runs").exists()
