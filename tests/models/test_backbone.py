"""Weights of a backbone from a file: by name, by order, or refused; each is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcache.errors import KdcacheError, SettingsError, TeacherError
from kdcache.models.backbone import demand_backbone, find_backbone, load_backbone
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
        ("another order", "tensor 0.weight is missing, expected [4, 3, 3, 3]"),
        ("half, renamed", "tensor 0.weight is missing"),
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
