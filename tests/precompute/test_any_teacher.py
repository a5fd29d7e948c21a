"""Both phases with teachers other than FCN: exact as FCN's, and known by what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from kdcache.analysis import students
from kdcache.analysis.fidelity import measure_fidelity
from kdcache.cache.manifest import read_manifest
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config, merge
from kdcache.errors import CacheMismatchError, SettingsError
from kdcache.models.own_code import Trust, hash_source
from kdcache.precompute.build import build_cache
from kdcache.precompute.repair import repair_cache
from kdcache.storage import open_storage
from kdcache.training.distill import distill
from tests.support.helpers import check_one_line

NUM_CLASSES = 8


def make_deeplab(folder: Path) -> dict:
    model = get_model(
        "deeplabv3_resnet50", weights=None, weights_backbone=None, num_classes=NUM_CLASSES
    )
    torch.save(model.state_dict(), folder / "deeplab.pth")
    return {"arch": "deeplabv3_resnet50", "weights": str(folder / "deeplab.pth")}


def make_own(folder: Path) -> dict:
    layers = {"low": "layer1", "mid": "layer2", "high": "encoder.tokens"}
    own = {"arch": OWN, "options": {"width": 16}, "weights": "as_built"}
    return {**own, "layers": layers, "mean": [0.5, 0.4, 0.3]}


def make_unet(folder: Path) -> dict:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="extra smp is not installed")
    model = smp.Unet("resnet18", encoder_weights=None, classes=NUM_CLASSES)
    torch.save(model.state_dict(), folder / "unet.pth")
    options = {"encoder_name": "resnet18"}
    return {"arch": "smp:Unet", "options": options, "weights": str(folder / "unet.pth")}


def make_segformer(folder: Path) -> dict:
    kind = pytest.importorskip("transformers", reason="extra transformers is not installed")
    config = kind.SegformerConfig(num_labels=NUM_CLASSES, hidden_sizes=[16, 32, 40, 64])
    kind.utils.logging.disable_progress_bar()
    kind.SegformerForSemanticSegmentation(config).save_pretrained(folder / "segformer")
    return {"arch": f"transformers:{folder / 'segformer'}", "weights": "as_built"}


OWN = "own_teacher:plain"
TRUST = Trust(teacher=OWN)
TEACHERS: dict[str, Callable[[Path], dict]] = {
    "deeplabv3": make_deeplab,
    "own": make_own,
    "unet": make_unet,
    "segformer": make_segformer,
}
STRIDES = {
    "deeplabv3": {"logits": 8, "low": 4, "mid": 8, "high": 16},
    "unet": {"logits": 1, "low": 4, "mid": 8, "high": 16},
    "segformer": {"logits": 4, "low": 4, "mid": 8, "high": 16},
    "own": {"logits": 4, "low": 4, "mid": 8, "high": 16},
}


@pytest.fixture(scope="module", params=TEACHERS)
def built(request, base_given, tmp_path_factory) -> tuple[str, dict, Path]:
    """Name of a teacher, settings, and a finished cache of them. Read only."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp(request.param)
    given = merge(
        base_given,
        {
            "dataset": {"size": 64, "val_size": 64},
            "augment": {"views": 1},
            "teacher": TEACHERS[request.param](folder),
            "cache": {"path": str(folder / "cache")},
        },
    )
    build_cache(make_config(given))
    return request.param, given, folder / "cache"


@pytest.fixture
def _few_steps(monkeypatch):
    monkeypatch.setattr(students, "STEPS", 3)


@pytest.mark.usefixtures("_few_steps")
def test_the_cache_is_exact_and_a_student_learns_from_it(built, tmp_path):
    name, given, root = built
    arrays = {spec.name: spec.item_shape for spec in read_manifest(root).layouts["train"].arrays}
    assert {level: 64 // arrays[level][1] for level in STRIDES[name]} == STRIDES[name]
    student = {"student": given["student"], "train": {"batch_size": 4}}
    result = measure_fidelity(root, student, num_samples=4, trust=TRUST)
    assert result["failures"] == []
    for terms in result["students"].values():
        assert terms["kd"]["grad_cos"] > 0.999999 and terms["feature"]["grad_cos"] > 0.999999
    changes = {"run": {"dir": str(tmp_path / "run"), "baseline": False}, "train": {"epochs": 1}}
    assert distill(merge(given, changes), root=root).student["params"] > 0


def test_it_is_finished_verified_and_repaired_like_any_other(built, tmp_path):
    _, given, root = built
    assert build_cache(make_config(given)).num_samples == 0  # the same teacher: nothing to do
    storage = open_storage(root)
    damaged = next((root / "train" / "logits").rglob("0/0/0/0/0"))
    before = damaged.read_bytes()
    try:
        damaged.write_bytes(before[:100] + b"\xff" + before[101:])
        assert repair_cache(storage, {}, trust=TRUST).groups
        assert damaged.read_bytes() == before
    finally:
        damaged.write_bytes(before)
    assert not verify_cache(storage, data=True).damage


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, "teacher.mean is "),
        ({"std": [0.5, 0.5, 0.5]}, "teacher.std is absent, expected [0.5"),
    ],
)
def test_another_teacher_is_refused(built, teacher, words):
    given = merge(built[1], {"teacher": teacher})
    with pytest.raises(CacheMismatchError) as error:
        build_cache(make_config(given))
    check_one_line(error, words)
    with pytest.raises(CacheMismatchError) as error:
        distill({"teacher": teacher}, root=built[2])
    check_one_line(error, "teacher.")


def test_what_an_own_teacher_is_belongs_to_the_identity(base_given, tmp_path, monkeypatch):
    given = merge(base_given, {"teacher": make_own(tmp_path), "cache": {"path": f"{tmp_path}/c"}})
    build_cache(make_config(given))
    facts = read_manifest(tmp_path / "c").identity["train"]["teacher"]
    assert facts["options"] == {"width": 16} and facts["source"] == hash_source(OWN)
    assert facts["arch"] == OWN and facts["layers"]["high"] == "encoder.tokens"
    with pytest.raises(CacheMismatchError) as error:
        distill({"teacher": {"options": {"width": 8}}}, root=tmp_path / "c")
    check_one_line(error, "teacher.options")
    for ask in (measure_fidelity, lambda root, given: repair_cache(root, given)):
        (tmp_path / "c" / "commits" / "train-v0000-g00000.json").unlink(missing_ok=True)
        with pytest.raises(SettingsError) as error:
            ask(tmp_path / "c", {})
        check_one_line(error, f"manifest.json: teacher.arch is '{OWN}'", f"--teacher.arch {OWN} or")
    monkeypatch.setattr("kdcache.precompute.build.hash_network", lambda config: "0" * 12)
    with pytest.raises(CacheMismatchError) as error:
        build_cache(make_config(given))
    check_one_line(error, "teacher.source is", "expected '000000000000'")
