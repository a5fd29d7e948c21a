"""Student and teacher: shapes, sizes, taps, and weights that are read without running code."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Small_Weights, WeightsEnum
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation import FCN_ResNet50_Weights

from kdcache.config import LayerConfig, TeacherConfig
from kdcache.errors import SettingsError, TeacherError
from kdcache.models.inputs import normalize_images
from kdcache.models.networks import wrap_torchvision
from kdcache.models.student import STUDENT_CHANNELS, LightweightSegmentationModel, count_parameters
from kdcache.models.teacher import Teacher, build_teacher
from kdcache.models.weights import (
    download_weights,
    hash_weights,
    read_state_dict,
    read_teacher_weights,
)
from tests.support.helpers import (
    NOBODY_LISTENS,
    Trap,
    check_one_line,
    serve,
    without_aux,
    write_trap,
)
from tests.support.tiny_teacher import REAL

NUM_CLASSES = 8  # of the fixture teacher_file
HW = (64, 96)
TAPS = {"low": "layer1", "mid": "layer2", "high": "layer3"}


def make_student(
    num_classes: int = 21, *, seed: int = 0, **options
) -> LightweightSegmentationModel:
    torch.manual_seed(seed)
    return LightweightSegmentationModel(num_classes, pretrained=False, **options)


def make_images(num: int = 2, *, hw: tuple[int, int] = HW) -> Tensor:
    return torch.randint(
        0, 256, (num, *hw, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


# --- inputs


def test_images_are_normalised_as_torchvisions_weights_expect():
    preset = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.transforms()
    images = make_images()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (preset.mean, preset.std))
    expected = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    found = normalize_images(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# --- student


def test_student_has_2_8_million_parameters():
    count = count_parameters(make_student())
    assert count == 2_804_085
    assert abs(count - 2_800_000) <= 0.02 * 2_800_000


def test_number_of_classes_changes_only_the_classifier():
    shapes = [{n: v.shape for n, v in make_student(k).state_dict().items()} for k in (21, 5)]
    assert {name for name in shapes[0] if shapes[0][name] != shapes[1][name]} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize("hw", [(32, 32), (64, 96), (97, 65), (33, 80), (50, 47)])
def test_scores_have_the_images_size_and_features_their_strides(hw: tuple[int, int]):
    student = make_student(5, aspp_channels=16).eval()
    with torch.no_grad():
        logits, features = student(torch.zeros(2, 3, *hw), return_features=True)
    assert logits.shape == (2, 5, *hw)
    strides = {"low": 4, "mid": 8, "high": 16}
    assert STUDENT_CHANNELS == {"low": 16, "mid": 24, "high": 48}
    assert {level: tuple(value.shape) for level, value in features.items()} == {
        level: (2, STUDENT_CHANNELS[level], -(-hw[0] // stride), -(-hw[1] // stride))
        for level, stride in strides.items()
    }


def test_asking_for_features_does_not_change_the_scores():
    student, images = make_student(5, aspp_channels=16).eval(), normalize_images(make_images())
    with torch.no_grad():
        alone, (logits, _) = student(images), student(images, return_features=True)
    assert torch.equal(alone, logits)


def test_features_are_those_of_the_backbone():
    student, images = make_student(5, aspp_channels=16).eval(), normalize_images(make_images())
    with torch.no_grad():
        _, features = student(images, return_features=True)
        for level, stages in (("low", 2), ("mid", 4), ("high", 9)):
            torch.testing.assert_close(features[level], student.backbone[:stages](images))


def test_same_seed_gives_the_same_student_and_another_seed_another():
    first, same, other = (make_student(5, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert not torch.equal(first["backbone.0.0.weight"], other["backbone.0.0.weight"])


def test_gradients_reach_every_parameter():
    student = make_student(5).train()
    logits = student(normalize_images(make_images(4)))
    (
        logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    ).mean().backward()
    unreached = [
        n for n, p in student.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert unreached == []


def test_student_trains_on_batches_of_two_and_remembers_their_statistics():
    """Momentum 0.1: torchvision's 0.01 leaves running statistics at their start for hundreds of
    steps.
    """
    student = make_student(5).train()
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    student(normalize_images(make_images(2)))
    assert len(norms) > 40 and {norm.momentum for norm in norms} == {0.1}
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)


# --- teacher


@pytest.fixture(scope="module")
def teacher_file(real_teacher, real_teacher_file: Path) -> Path:
    """Here the real teacher is the subject."""
    return real_teacher_file


@pytest.fixture(scope="module")
def state(teacher_file: Path) -> dict[str, Tensor]:
    """State dict of the untrained teacher of 8 classes, auxiliary head included. Read only."""
    return torch.load(teacher_file, weights_only=True)


@pytest.fixture(scope="module")
def reference(state: dict[str, Tensor]) -> nn.Module:
    """torchvision's own model with the teacher's weights."""
    model = REAL("fcn_resnet50", num_classes=NUM_CLASSES, aux_head=True)
    model.load_state_dict(state)
    return model.eval()


def make_teacher(
    weights: Path, *, num_classes: int = NUM_CLASSES, **layers: str
) -> tuple[Teacher, dict[str, Tensor]]:
    config = TeacherConfig(weights=str(weights), layers=LayerConfig(**layers))
    return build_teacher(
        config, num_classes=num_classes, levels=["low", "mid", "high"], device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def teacher(teacher_file: Path) -> Teacher:
    return make_teacher(teacher_file)[0]


def check_close(found: Tensor, expected: Tensor, *, tolerance: float = 1e-4) -> None:
    """Equal to `tolerance` of the largest value: untrained features are of any size."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= tolerance * max(
        1.0, expected.abs().max().item()
    )


def test_fcn_resnet50_has_35_million_parameters_with_its_auxiliary_head():
    assert count_parameters(REAL("fcn_resnet50", num_classes=21, aux_head=True)) == 35_322_218


def test_upsampled_logits_are_torchvisions_answer(teacher: Teacher, reference: nn.Module):
    images = make_images()
    logits = teacher(images)["logits"]
    with torch.no_grad():
        expected = reference(normalize_images(images))["out"]
    assert (
        logits.shape == (2, NUM_CLASSES, HW[0] // 8, HW[1] // 8) and logits.dtype == torch.float32
    )
    check_close(
        nn.functional.interpolate(logits, size=HW, mode="bilinear", align_corners=False), expected
    )


def test_taps_are_the_backbones_layers(teacher: Teacher, reference: nn.Module):
    images = make_images()
    extract = create_feature_extractor(
        reference.backbone, {tap: level for level, tap in TAPS.items()}
    )
    with torch.no_grad():
        expected = extract(normalize_images(images))
    answer = teacher(images)
    assert set(answer) == {"low", "mid", "high", "logits"}
    assert answer["low"].shape == (2, 256, 16, 24) and answer["mid"].shape == (2, 512, 8, 12)
    for level in ("low", "mid"):
        check_close(answer[level], expected[level])


def test_high_is_brought_from_stride_8_to_stride_16(teacher: Teacher, reference: nn.Module):
    images = make_images()
    with torch.no_grad():
        stride_8 = create_feature_extractor(reference.backbone, {"layer3": "high"})(
            normalize_images(images)
        )["high"]
    assert stride_8.shape == (2, 1024, 8, 12)
    # half the size by bilinear interpolation: each value is the mean of a 2x2 block
    check_close(teacher(images)["high"], nn.functional.avg_pool2d(stride_8, 2))


def test_other_taps_are_taken_where_the_settings_say(teacher_file: Path, reference: nn.Module):
    images = make_images(1)
    other = make_teacher(teacher_file, low="layer2", mid="layer4", high="layer1")[0]
    with torch.no_grad():
        expected = create_feature_extractor(reference.backbone, {"layer2": "low", "layer4": "mid"})(
            normalize_images(images)
        )
    answer = other(images)
    check_close(answer["low"], expected["low"])
    check_close(answer["mid"], expected["mid"])
    assert other.probe_targets(HW, HW) == {
        "logits": (NUM_CLASSES, 8),
        "low": (512, 8),
        "mid": (2048, 8),
        "high": (256, 16),
    }


def test_one_part_of_the_backbone_may_serve_two_levels(teacher_file: Path):
    answer = make_teacher(teacher_file, low="layer2")[0](make_images(1))
    assert torch.equal(answer["low"], answer["mid"])


def test_high_can_stay_at_the_stride_of_any_layer(reference: nn.Module):
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    for tap in ("layer3", "layer4"):
        teacher = Teacher(
            wrap_torchvision(reference, num_classes=NUM_CLASSES),
            taps={"high": tap},
            device=torch.device("cpu"),
            precision="float32",
            high_stride=8,
        )
        with torch.inference_mode():
            expected = create_feature_extractor(reference.backbone, {tap: "high"})(
                normalize_images(images)
            )["high"]
        check_close(teacher(images)["high"], expected)
        assert teacher.probe_targets(HW, HW)["high"] == (expected.shape[1], 8)


def test_probe_finds_channels_and_strides(teacher: Teacher):
    assert teacher.probe_targets(HW, HW) == {
        "logits": (NUM_CLASSES, 8),
        "low": (256, 4),
        "mid": (512, 8),
        "high": (1024, 16),
    }


def test_teacher_is_frozen_and_in_eval_mode(teacher: Teacher):
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    before = (
        hash_weights(teacher.model.state_dict()),
        teacher.model.backbone["bn1"].num_batches_tracked.clone(),
    )
    first, second = teacher(make_images()), teacher(make_images())
    assert all(
        torch.equal(first[name], second[name]) and not first[name].requires_grad for name in first
    )
    assert hash_weights(teacher.model.state_dict()) == before[0]
    assert torch.equal(teacher.model.backbone["bn1"].num_batches_tracked, before[1])


def test_answer_to_an_image_does_not_depend_on_its_batch(teacher: Teacher):
    images = make_images(3)
    together, alone = teacher(images), teacher(images[1:2])
    for name in together:
        check_close(together[name][1:2], alone[name])


def test_bfloat16_is_near_float32_and_kept_as_float32(teacher_file: Path, teacher: Teacher):
    model = build_teacher(
        TeacherConfig(weights=str(teacher_file), precision="bfloat16"),
        num_classes=NUM_CLASSES,
        levels=[],
        device=torch.device("cpu"),
    )[0]
    exact, rounded = teacher(make_images(1))["logits"], model(make_images(1))["logits"]
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    check_close(rounded, exact, tolerance=0.1)


# --- weights: identity


def save_variant(folder: Path, state: dict[str, Tensor], name: str) -> Path:
    """The same teacher in another container."""
    bare = without_aux(state)
    stored = {
        "without_aux": bare,
        "nested": {"model_state_dict": state, "epoch": 3},
        "lightning": {"state_dict": bare},
        "reordered": dict(reversed(state.items())),
        "counted": {k: v + 5 if k.endswith("num_batches_tracked") else v for k, v in state.items()},
        "double": {k: v.double() if v.is_floating_point() else v for k, v in bare.items()},
    }
    torch.save(stored[name], folder / f"{name}.pth")
    return folder / f"{name}.pth"


@pytest.mark.parametrize(
    "name", ["without_aux", "nested", "lightning", "reordered", "counted", "double"]
)
def test_equal_weights_hash_equally_whatever_their_container(
    tmp_path: Path, teacher_file, state, name: str
):
    found = hash_weights(
        read_teacher_weights("fcn_resnet50", str(save_variant(tmp_path, state, name)))
    )
    assert (
        found
        == hash_weights(read_teacher_weights("fcn_resnet50", str(teacher_file)))
        == hash_weights(without_aux(state))
    )


def test_checkpoint_with_and_without_auxiliary_head_answers_equally(
    tmp_path: Path, teacher: Teacher, state
):
    other, weights = make_teacher(save_variant(tmp_path, state, "without_aux"))
    assert hash_weights(weights) == hash_weights(without_aux(state))
    answer, expected = other(make_images()), teacher(make_images())
    assert all(torch.equal(answer[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "name", ["classifier.4.bias", "backbone.layer3.2.bn1.running_var", "backbone.conv1.weight"]
)
def test_hash_changes_with_one_number(state, name: str):
    changed = state[name].clone()
    changed.view(-1)[-1] = torch.nextafter(changed.view(-1)[-1], torch.tensor(9.0))
    assert hash_weights({**state, name: changed}) != hash_weights(state)


def test_hash_changes_with_a_name_and_with_a_shape():
    values = torch.arange(6.0)
    hashes = {
        hash_weights({"a": values}),
        hash_weights({"b": values}),
        hash_weights({"a": values.reshape(2, 3)}),
    }
    assert len(hashes) == 3


def test_hash_is_pinned():
    """Caches keep it: another way to hash would refuse every one of them."""
    found = hash_weights({"b": torch.tensor([1.5]), "a": torch.tensor([[2, 3]])})
    expected = hashlib.sha256(
        b"a(1, 2)" + np.array([2, 3], "<f4").tobytes() + b"b(1,)" + np.array([1.5], "<f4").tobytes()
    )
    assert found == expected.hexdigest()


# --- weights: what is wrong


def test_other_number_of_classes_is_refused(teacher_file: Path):
    with pytest.raises(TeacherError) as error:
        make_teacher(teacher_file, num_classes=21)
    check_one_line(
        error,
        "real.pth: number of classes is 8, expected 21",
        "dataset.num_classes",
        "cache_teacher fit",
    )


def test_missing_tensor_is_refused_by_name(tmp_path: Path, state):
    name = "backbone.layer2.0.conv1.weight"
    torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "part.pth")
    with pytest.raises(TeacherError) as error:
        make_teacher(tmp_path / "part.pth")
    check_one_line(
        error, f"part.pth: tensor {name} is ", "expected (128, 256, 1, 1)", "teacher.arch"
    )


def test_tensor_too_many_is_refused_by_name(tmp_path: Path, state):
    torch.save(
        {**state, "backbone.layer3.6.conv1.weight": torch.zeros(256, 1024, 1, 1)},
        tmp_path / "more.pth",
    )
    with pytest.raises(
        TeacherError,
        match=r"tensor backbone\.layer3\.6\.conv1\.weight is \(256, 1024, 1, 1\), expected",
    ):
        make_teacher(tmp_path / "more.pth")


def test_tensor_of_another_shape_is_refused_by_name(tmp_path: Path, state):
    torch.save({**state, "backbone.conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.pth")
    with pytest.raises(
        TeacherError,
        match=r"tensor backbone\.conv1\.weight is \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)",
    ):
        make_teacher(tmp_path / "grey.pth")


def test_tap_that_is_no_part_is_refused_with_the_nearest_names(teacher_file: Path):
    with pytest.raises(SettingsError) as error:
        make_teacher(teacher_file, mid="layer9")
    check_one_line(
        error, "settings: teacher.layers.mid is 'layer9', expected one of layer1, ", "layer4"
    )
    with pytest.raises(SettingsError) as error:
        make_teacher(teacher_file, mid="backbone.layer2.7")
    check_one_line(error, "'backbone.layer2.7', expected", "backbone.layer2.2")


def test_what_the_part_behind_a_tap_overwrites_is_kept(teacher_file: Path, reference: nn.Module):
    """The ReLU behind bn1 works in place."""
    with torch.no_grad():
        backbone = reference.backbone
        before = backbone["bn1"](backbone["conv1"](normalize_images(make_images())))
    assert before.min() < 0
    check_close(make_teacher(teacher_file, mid="bn1")[0](make_images())["mid"], before)


@pytest.mark.parametrize("container", ["pickle", "torch", "torch_legacy"])
def test_file_of_pickled_code_is_refused_and_not_run(tmp_path: Path, container: str):
    path, trace = tmp_path / "trap.pth", tmp_path / "executed"
    write_trap(path, Trap(trace), container=container)
    with pytest.raises(TeacherError) as error:
        read_state_dict(path, field="teacher.weights")
    check_one_line(error, "trap.pth: teacher.weights is unreadable as plain tensors")
    assert not trace.exists()
    torch.load(path, weights_only=False) if container != "pickle" else pickle.loads(
        path.read_bytes()
    )
    assert trace.exists()  # the trap works


BROKEN = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "html": b"<!doctype html><title>404</title>",
    "zeros": bytes(1000),
    "pickle_underflow": b"\x80\x020.",
    "pickle_cut": b"\x80\x02}q\x00(X\x01\x00",
    "zip_magic": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_damaged_file_is_refused(tmp_path: Path, name: str):
    (tmp_path / "bad.pth").write_bytes(BROKEN[name])
    with pytest.raises(TeacherError) as error:
        read_state_dict(tmp_path / "bad.pth", field="teacher.weights")
    check_one_line(error, "bad.pth: teacher.weights is unreadable")


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_cut_checkpoint_is_refused(tmp_path: Path, share: float):
    torch.save({"weight": torch.ones(1000)}, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: int(share * len(data))])
    with pytest.raises(TeacherError, match=r"cut\.pth: teacher\.weights is unreadable"):
        read_state_dict(tmp_path / "cut.pth", field="teacher.weights")


@pytest.mark.parametrize(
    "stored", [{}, [torch.ones(2)], torch.ones(3), {"epoch": 3}, {"model_state_dict": {"a": 1}}]
)
def test_file_of_something_else_is_refused(tmp_path: Path, stored: object):
    torch.save(stored, tmp_path / "other.pth")
    with pytest.raises(TeacherError) as error:
        read_state_dict(tmp_path / "other.pth", field="teacher.weights")
    check_one_line(error, "other.pth: teacher.weights is a ", "expected a state dict of tensors")


ODD_TENSORS = {
    "sparse": lambda: torch.sparse_coo_tensor([[0], [0]], [1.0], (10**9, 10**9)),
    "meta": lambda: torch.empty(10**6, 10**6, device="meta"),
    "expanded": lambda: torch.ones(1).expand(10**6, 10**6),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "nested": lambda: torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_a_tensor_that_is_not_plain_is_refused_before_it_takes_memory(tmp_path: Path, kind: str):
    torch.save({"classifier.0.weight": ODD_TENSORS[kind]()}, tmp_path / "odd.pth")
    with pytest.raises(TeacherError) as error:
        read_teacher_weights("fcn_resnet50", str(tmp_path / "odd.pth"))
    check_one_line(error, "odd.pth: teacher.weights is ")


def test_missing_file_is_refused_with_the_ways_out(tmp_path: Path):
    with pytest.raises(TeacherError) as error:
        read_teacher_weights("fcn_resnet50", str(tmp_path / "none.pth"))
    check_one_line(
        error, "none.pth: teacher.weights is missing", "torchvision weights name", "`make demo`"
    )


# --- weights: the download


def point_at(monkeypatch: pytest.MonkeyPatch, enum: WeightsEnum, url: str, hub: Path) -> None:
    """Have torchvision's weights come from `url` into the folder `hub`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(hub))
    monkeypatch.setattr(enum, "_value_", replace(enum.value, url=url))


DOWNLOADED = [
    FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1,
    MobileNet_V3_Small_Weights.IMAGENET1K_V1,
]


@pytest.mark.parametrize("enum", DOWNLOADED, ids=lambda enum: type(enum).__name__)
def test_unreachable_weights_are_one_line_with_the_way_by_hand(
    monkeypatch, tmp_path: Path, enum: WeightsEnum
):
    url = f"{NOBODY_LISTENS}/models/weights-12345678.pth"
    point_at(monkeypatch, enum, url, tmp_path)
    with pytest.raises(TeacherError) as error:
        download_weights(enum)
    there = tmp_path / "checkpoints" / "weights-12345678.pth"
    check_one_line(
        error,
        f"{there}: weights {enum.name} is unreachable",
        f"fetch it from {url}",
        "by hand",
        "`make demo`",
    )


def test_teacher_named_by_torchvision_fails_with_the_same_line(monkeypatch, tmp_path: Path):
    point_at(monkeypatch, DOWNLOADED[0], f"{NOBODY_LISTENS}/fcn-12345678.pth", tmp_path)
    with pytest.raises(
        TeacherError, match=r"fcn-12345678\.pth: weights COCO_WITH_VOC_LABELS_V1 is unreachable"
    ):
        read_teacher_weights("fcn_resnet50", "COCO_WITH_VOC_LABELS_V1")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A small state dict, named as torch.hub wants it: by the first digits of its sha256."""
    (tmp_path / "served").mkdir()
    torch.save({"weight": torch.arange(4.0)}, tmp_path / "served" / "new.pth")
    digest = hashlib.sha256((tmp_path / "served" / "new.pth").read_bytes()).hexdigest()
    return (tmp_path / "served" / "new.pth").rename(tmp_path / "served" / f"tiny-{digest[:8]}.pth")


def test_weights_are_downloaded_once(monkeypatch, tmp_path: Path, served: Path):
    with serve(served.parent, monkeypatch) as address:
        point_at(monkeypatch, DOWNLOADED[1], f"{address}/{served.name}", tmp_path / "hub")
        first = download_weights(DOWNLOADED[1])
    again = download_weights(DOWNLOADED[1])  # nobody serves any more
    assert torch.equal(first["weight"], torch.arange(4.0)) and torch.equal(
        again["weight"], first["weight"]
    )


def test_download_of_other_contents_is_refused(monkeypatch, tmp_path: Path, served: Path):
    served.write_bytes(served.read_bytes() + b"x")
    with serve(served.parent, monkeypatch) as address:
        point_at(monkeypatch, DOWNLOADED[1], f"{address}/{served.name}", tmp_path / "hub")
        with pytest.raises(TeacherError) as error:
            download_weights(DOWNLOADED[1])
    check_one_line(error, served.name, "invalid hash value")
    assert not (tmp_path / "hub" / "checkpoints" / served.name).exists()


def test_weights_missing_on_the_server_are_one_line(monkeypatch, tmp_path: Path, served: Path):
    with serve(served.parent, monkeypatch) as address:
        point_at(monkeypatch, DOWNLOADED[1], f"{address}/none-12345678.pth", tmp_path / "hub")
        with pytest.raises(TeacherError) as error:
            download_weights(DOWNLOADED[1])
    check_one_line(error, "none-12345678.pth", "is unreachable", address)
    error.value.__context__.close()  # the server's answer: urllib leaves its socket open


def test_damaged_weights_in_the_download_folder_are_refused(monkeypatch, tmp_path: Path):
    """A file put there by hand may be cut; torch.hub does not check what is already there."""
    point_at(monkeypatch, DOWNLOADED[1], f"{NOBODY_LISTENS}/tiny-12345678.pth", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "tiny-12345678.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(TeacherError) as error:
        download_weights(DOWNLOADED[1])
    check_one_line(error, "tiny-12345678.pth")


def test_pickled_code_in_the_download_folder_is_refused_and_not_run(monkeypatch, tmp_path: Path):
    point_at(monkeypatch, DOWNLOADED[1], f"{NOBODY_LISTENS}/tiny-12345678.pth", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    write_trap(
        tmp_path / "checkpoints" / "tiny-12345678.pth",
        Trap(tmp_path / "executed"),
        container="torch",
    )
    with pytest.raises(TeacherError) as error:
        download_weights(DOWNLOADED[1])
    check_one_line(error, "tiny-12345678.pth")
    assert not (tmp_path / "executed").exists()
