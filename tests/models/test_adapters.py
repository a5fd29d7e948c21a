"""Teachers of segmentation_models_pytorch and transformers: random weights, no network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.config import StudentConfig, TeacherConfig
from kdcache.errors import KdcacheError, SettingsError, TeacherError
from kdcache.models.adapters import build_smp
from kdcache.models.inputs import normalize_images
from kdcache.models.networks import hash_network
from kdcache.models.teacher import build_teacher
from kdcache.models.timm_student import build_timm_student
from kdcache.models.weights import hash_weights
from tests.support.helpers import check_one_line

smp = pytest.importorskip("segmentation_models_pytorch", reason="the extra smp is not installed")
transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")

NUM_CLASSES, HW = 5, (64, 96)
LEVELS = ["low", "mid", "high"]
# between memory formats, whose convolutions add up in other orders
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
SEGFORMER = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 16,
}


def build(arch: str, weights: object = "as_built", *, num_classes: int = NUM_CLASSES, **settings):
    config = TeacherConfig(arch=arch, weights=str(weights), **settings)
    device = torch.device("cpu")
    return build_teacher(config, num_classes=num_classes, levels=LEVELS, device=device)


def make_images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, *HW, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module", params=["Unet", "DeepLabV3Plus", "FPN"])
def smp_file(request, tmp_path_factory) -> tuple[str, torch.nn.Module, Path]:
    """A model of smp and a file of its weights, wrapped as Lightning does."""
    torch.manual_seed(2)
    model = getattr(smp, request.param)("resnet18", encoder_weights=None, classes=NUM_CLASSES)
    path = tmp_path_factory.mktemp("smp") / "model.ckpt"
    torch.save({"state_dict": {f"model.{n}": v for n, v in model.state_dict().items()}}, path)
    return request.param, model.eval(), path


def test_logits_of_smp_are_taken_before_the_upsampling(smp_file):
    name, model, path = smp_file
    teacher, state = build(f"smp:{name}", path, options={"encoder_name": "resnet18"})
    stride = 1 if name == "Unet" else 4
    assert teacher.probe_targets(HW, HW) == {
        "logits": (NUM_CLASSES, stride),
        "low": (64, 4),
        "mid": (128, 8),
        "high": (256, 16),
    }
    answer = teacher(make_images())
    with torch.no_grad():
        x = normalize_images(make_images())
        expected, features = model(x), model.encoder(x)
    found = F.interpolate(answer["logits"], size=HW, mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(answer["mid"], features[3], **CLOSE)
    assert hash_weights(state) == hash_weights(model.state_dict())


@pytest.mark.parametrize(
    ("arch", "settings", "words"),
    [
        ("smp:Umet", {}, "teacher.arch smp:Umet is no model, expected smp:Unet"),
        ("smp:Zzz", {}, "expected smp:Unet, UnetPlusPlus, MAnet"),
        ("smp:Unet", {"encoder_name": "resnet7"}, "is failing (KeyError: "),
        ("smp:Unet", {"encoder_weights": "imagenet"}, "is given encoder_weights, expected none"),
        ("smp:Unet", {"activation": "sigmoid"}, "is given activation, expected none"),
        ("smp:Unet", {"classes": 3}, "is failing (TypeError: "),
        (
            "smp:Unet",
            {"encoder_name": "tu-resnet18", "checkpoint_path": "a.pth"},
            "checkpoint_path",
        ),
    ],
)
def test_what_smp_lacks_is_one_line(arch, settings, words, smp_file):
    with pytest.raises(SettingsError) as error:
        build(arch, smp_file[2], options=settings)
    check_one_line(error, words, "change teacher.arch")


def test_no_option_reads_a_file(tmp_path, monkeypatch):
    """Some versions of timm unpickle it; a manifest of a stranger may name any."""
    read = []
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(str(path)))
    (tmp_path / "evil.pth").write_bytes(b"anything")
    options = {"encoder_name": "tu-resnet18", "checkpoint_path": str(tmp_path / "evil.pth")}
    with pytest.raises(SettingsError):
        build_smp(TeacherConfig(arch="smp:Unet", weights="a.pth", options=options), NUM_CLASSES)
    assert read == []


HUBS = ["hf-hub:evil/x", "hf_hub:evil/x", "local-dir:/evil"]


@pytest.mark.parametrize("name", HUBS)
def test_no_name_leads_to_a_hub_or_folder(name):
    """What a run or a cache stores is fetched from nowhere: timm would follow these."""
    options = {"encoder_name": f"tu-{name}"}
    with pytest.raises(SettingsError) as error:
        build_smp(TeacherConfig(arch="smp:Unet", weights="a.pth", options=options), NUM_CLASSES)
    check_one_line(error, "smp:Unet is naming tu-", "expected a name that the library itself has")
    config = StudentConfig(arch=f"timm:{name}")
    with pytest.raises(SettingsError) as error:
        build_timm_student(config, num_classes=NUM_CLASSES, pretrained=False)
    check_one_line(error, f"is naming {name}, expected a name that the library itself has")


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("config.json", {"backbone": "evil/x"}, "is naming backbone 'evil/x', expected a model"),
        ("config.json", {"use_pretrained_backbone": True}, "is naming use_pretrained_backbone"),
        ("config.json", [], "is failing (FieldError: content is [], expected names"),
        ("preprocessor_config.json", {"image_mean": 5}, "image_mean is 5, expected a list"),
        ("preprocessor_config.json", [], "is failing (FieldError: content is [], expected names"),
    ],
)
def test_an_odd_document_of_a_folder_is_one_line(tmp_path, name, facts, words):
    save_segformer(tmp_path)
    path = tmp_path / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **facts} if isinstance(facts, dict) else facts))
    with pytest.raises(SettingsError) as error:
        build(f"transformers:{tmp_path}", "as_built")
    check_one_line(error, words)


def test_a_size_that_smp_refuses_is_one_line(smp_file):
    name, _, path = smp_file
    teacher = build(f"smp:{name}", path, options={"encoder_name": "resnet18"})[0]
    if name != "FPN":  # the others take any multiple of 16
        assert teacher.probe_targets((48, 48), (64, 64))["high"] == (256, 16)
        return
    with pytest.raises(TeacherError) as error:
        teacher.probe_targets((48, 48), (64, 64))
    check_one_line(error, "failing at an image of 48x48 (RuntimeError: Wrong input shape")


def save_segformer(folder: Path, *, num_classes: int = NUM_CLASSES, seed: int = 3) -> Path:
    torch.manual_seed(seed)
    config = transformers.SegformerConfig(num_labels=num_classes, **SEGFORMER)
    model = transformers.SegformerForSemanticSegmentation(config)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A SegFormer as transformers saves it. Read only."""
    return save_segformer(tmp_path_factory.mktemp("segformer"))


def test_a_segformer_is_asked_as_transformers_asks_it(folder):
    teacher, state = build(f"transformers:{folder}")
    assert teacher.probe_targets(HW, HW) == {
        "logits": (NUM_CLASSES, 4),
        "low": (8, 4),
        "mid": (16, 8),
        "high": (24, 16),
    }
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        expected = model.eval()(normalize_images(make_images()), output_hidden_states=True)
    answer = teacher(make_images())
    torch.testing.assert_close(answer["logits"], expected.logits, **CLOSE)
    torch.testing.assert_close(answer["low"], expected.hidden_states[0], **CLOSE)
    assert hash_weights(state) == hash_weights(model.state_dict())


def test_its_tokens_are_brought_to_a_grid(folder):
    from kdcache.config import LayerConfig

    layers = LayerConfig(low="segformer.stages.0.layer_norm", high="segformer.stages.3.layer_norm")
    found = build(f"transformers:{folder}", layers=layers)[0](make_images())
    expected = build(f"transformers:{folder}")[0](make_images())
    torch.testing.assert_close(found["low"], expected["low"], **CLOSE)
    assert found["high"].shape == (2, 32, 4, 6)  # stride 32, resized to 16


def test_weights_may_come_from_a_file_of_their_own(folder, tmp_path):
    other = save_segformer(tmp_path / "other", seed=4)
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(other)
    torch.save({"model": model.state_dict()}, tmp_path / "other.pth")
    found = build(f"transformers:{folder}", tmp_path / "other.pth")[1]
    assert hash_weights(found) == hash_weights(build(f"transformers:{other}")[1])
    assert hash_weights(found) != hash_weights(build(f"transformers:{folder}")[1])
    state = model.state_dict()
    del state["decode_head.classifier.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(TeacherError) as error:
        build(f"transformers:{folder}", tmp_path / "less.pth")
    check_one_line(error, "less.pth: tensor decode_head.classifier.bias is missing")


def test_what_a_config_says_of_the_arithmetic_is_hashed(folder, tmp_path):
    def read_hash(path: Path) -> str:
        return hash_network(TeacherConfig(arch=f"transformers:{path}", weights="as_built"))

    moved = save_segformer(tmp_path / "moved")
    assert read_hash(moved) == read_hash(folder)
    facts = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(
        json.dumps({**facts, "id2label": {k: f"c{k}" for k in range(5)}})
    )
    assert read_hash(moved) == read_hash(folder)
    (moved / "config.json").write_text(json.dumps({**facts, "num_attention_heads": [2, 2, 3, 4]}))
    assert read_hash(moved) != read_hash(folder)


def break_weights(folder: Path) -> None:
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    torch.nn.init.constant_(model.decode_head.classifier.bias, float("nan"))
    model.save_pretrained(folder)


def lose_head(folder: Path) -> None:
    config = transformers.SegformerConfig(num_labels=NUM_CLASSES, **SEGFORMER)
    transformers.SegformerModel(config).save_pretrained(folder)


def set_normalisation(folder: Path) -> None:
    facts = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))


def make_classifier(folder: Path) -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_weights, "tensor decode_head.classifier.bias is not finite"),
        (lose_head, "is missing, expected weights of the whole model"),
        (set_normalisation, "teacher.mean is [0.485, 0.456, 0.406], expected [0.5, 0.5, 0.5]"),
        (make_classifier, "is a vit, expected one of beit, "),
        (
            lambda folder: (folder / "config.json").unlink(),
            "is failing (ValueError: Unrecognized model in",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "is failing ("),
    ],
)
def test_what_is_no_segformer_is_one_line(change, words, tmp_path):
    save_segformer(tmp_path)
    change(tmp_path)
    with pytest.raises(KdcacheError) as error:
        build(f"transformers:{tmp_path}")
    check_one_line(error, words)


@pytest.mark.parametrize("name", ["./none", "/none", "~/none", "none", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(name):
    with pytest.raises(SettingsError) as error:
        build(f"transformers:{name}")
    check_one_line(error, f"transformers:{name} is no folder, expected a folder with config.json")


def test_other_classes_are_told_with_background(folder):
    with pytest.raises(TeacherError) as error:
        build(f"transformers:{folder}", num_classes=4)
    check_one_line(error, "number of classes is 5 with background, expected 4")


@pytest.mark.parametrize(
    ("arch", "package", "extra"),
    [
        ("smp:Unet", "segmentation_models_pytorch", "smp"),
        ("transformers:nvidia/x", "transformers", "transformers"),
    ],
)
def test_a_missing_library_is_one_line(arch, package, extra, smp_file, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(SettingsError) as error:
        build(arch, smp_file[2])
    check_one_line(error, f"expected {package} to be installed; `pip install 'kdcache[{extra}]'`")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arch": "smp:"}, "expected fcn_resnet50, fcn_resnet101"),
        ({"arch": "transformers:"}, "transformers:NAME"),
        ({"arch": "smp:Unet", "weights": "as_built"}, "smp:Unet is built without weights"),
        ({"arch": "transformers:x", "options": {"a": 1}}, "expected nothing for transformers:x"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(SettingsError) as error:
        TeacherConfig(**settings)
    check_one_line(error, words)
