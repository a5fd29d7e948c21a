"""Fitting a teacher of any kind: it learns, and phase one accepts what it writes."""

import pytest
import torch

from kdcache.config.parser import make_config, merge
from kdcache.errors import DataError, SettingsError, TeacherError
from kdcache.models.backbone import find_backbone
from kdcache.models.fit import build_start, fit_teacher
from kdcache.models.fit_loop import ask_heads, score
from kdcache.models.teacher import build_teacher
from tests.support.helpers import check_one_line


@pytest.fixture
def fitting(given, tmp_path):
    out = str(tmp_path / "teachers" / "mine.pth")
    return merge(
        given, {"fit": {"epochs": 2, "batch_size": 4, "out": out}, "teacher": {"weights": out}}
    )


def test_a_teacher_fitted_from_scratch_is_accepted_by_phase_one(fitting):
    config, said = make_config(fitting), []
    fitted = fit_teacher(config, say=said.append)
    miou = fitted.miou
    assert said[0].startswith("from scratch, since ") and "epoch 2/2" in said[-1]
    assert f"mIoU on val {miou:.4f}" in str(fitted)
    stored = torch.load(config.fit.out, weights_only=True)
    assert stored["history"][1]["loss"] < stored["history"][0]["loss"]
    teacher, state = build_teacher(
        config.teacher, num_classes=8, levels=["low"], device=torch.device("cpu")
    )
    assert len(state) == len(teacher.model.state_dict())
    assert stored["miou"] == miou and stored["class_names"] == config.dataset.names
    assert [path.name for path in config.fit.out.parent.iterdir()] == ["mine.pth"]


def test_fitting_goes_on_from_given_weights_with_a_new_head_for_other_classes(
    fitting, teacher_file, tmp_path
):
    change = {"fit": {"epochs": 1}, "teacher": {"weights": str(teacher_file)}}
    other = {"dataset": {"num_classes": 9, "class_names": None}}
    said = []
    fit_teacher(make_config(merge(merge(fitting, change), other)), say=said.append)
    assert said[0] == f"from {teacher_file}, with a new head for 9 classes"


def test_a_mistyped_teacher_is_refused_instead_of_fitted_from_scratch(fitting):
    with pytest.raises(TeacherError, match=r"typo.pth: teacher.weights is missing"):
        fit_teacher(make_config(merge(fitting, {"teacher": {"weights": "typo.pth"}})))


def test_a_teacher_is_not_fitted_on_images_of_val(fitting):
    with pytest.raises(DataError, match="image 'sample_train_0000' of val is also"):
        fit_teacher(make_config(merge(fitting, {"dataset": {"val_split": "train"}})))


def test_weights_of_another_model_are_refused(fitting, tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(TeacherError, match="weights are not those of a fcn_resnet50"):
        fit_teacher(
            make_config(merge(fitting, {"teacher": {"weights": str(tmp_path / "other.pth")}}))
        )


def test_an_unwritable_file_is_met_before_training(fitting, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="fit.out is unwritable"):
        fit_teacher(make_config(merge(fitting, {"fit": {"out": str(tmp_path / "file" / "t.pth")}})))


# --- any teacher

OWN = "own_teacher:plain"
SEGFORMER = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 16,
}


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=8, **SEGFORMER)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    return f"transformers:{tmp_path / 'segformer'}"


@pytest.fixture(params=["lraspp", "smp", "transformers", "own"])
def teacher(request) -> dict:
    """Settings of a small teacher of each kind."""
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    if request.param == "smp":
        pytest.importorskip("segmentation_models_pytorch")
        options = {"encoder_name": "tu-tf_efficientnet_lite0"}
        return {"arch": "smp:FPN", "options": options, **half}
    if request.param == "transformers":
        return {"arch": request.getfixturevalue("folder")}
    if request.param == "own":
        return {"arch": OWN, "options": {"width": 8}, **half}
    return {"arch": "lraspp_mobilenet_v3_large"}


SIZES = {"dataset": {"size": 64, "val_size": 64}}


def test_any_teacher_is_fitted_and_scores_the_same_in_phase_one(fitting, teacher):
    longer = {"fit": {"epochs": 4, "lr": 5e-3}, "teacher": teacher}
    config, said = make_config(merge(merge(fitting, SIZES), longer)), []
    miou = fit_teacher(config, say=said.append).miou
    assert said[0].startswith("from scratch, since ")
    built, _ = build_teacher(config.teacher, num_classes=8, levels=[], device=torch.device("cpu"))
    assert score(built.network, config, device=torch.device("cpu")) == miou
    history = torch.load(config.fit.out, weights_only=True)["history"]
    assert len(history) == 4 and history[3]["loss"] < history[0]["loss"]


def test_a_torchvision_teacher_with_an_auxiliary_head_trains_it(fitting):
    config = make_config(merge(fitting, {"teacher": {"arch": "deeplabv3_mobilenet_v3_large"}}))
    network = build_start(config, say=lambda text: None)
    answer = ask_heads(network, torch.zeros(2, 3, 32, 32))
    assert {name: tuple(x.shape) for name, x in answer.items()} == {
        "out": (2, 8, 32, 32),
        "aux": (2, 8, 32, 32),
    }


def test_the_seed_draws_the_weights_of_any_teacher(fitting, teacher):
    given = merge(fitting, {"teacher": teacher})
    found = []
    for seed in (0, 0, 1):
        config = make_config(merge(given, {"train": {"seed": seed}}))
        state = build_start(config, say=lambda text: None).module.state_dict()
        found.append(torch.cat([x.float().flatten() for x in state.values()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def find_backbone_of(network) -> torch.nn.Module:
    return network.module.get_submodule(find_backbone(network.module))


def test_a_backbone_from_a_file_is_that_of_any_teacher(fitting, teacher, tmp_path):
    given, path, said = merge(fitting, {"teacher": teacher}), tmp_path / "backbone.pth", []
    other = build_start(make_config(merge(given, {"train": {"seed": 5}})), say=said.append)
    torch.save({**find_backbone_of(other).state_dict(), "fc.bias": torch.ones(1)}, path)
    given = merge(given, {"teacher": {"backbone_weights": str(path)}})
    start = build_start(make_config(given), say=said.append)
    assert "of the backbone, by name" in said[-1] and "; not taken: fc.bias; all else" in said[-1]
    expected = find_backbone_of(other).state_dict()
    assert all(torch.equal(x, expected[n]) for n, x in find_backbone_of(start).state_dict().items())


def test_a_backbone_of_another_teacher_is_refused_before_data_are_read(fitting, tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save({"encoder.layer1.0.weight": torch.ones(8, 3, 3, 3)}, path)
    teacher = {"arch": OWN, "options": {"width": 16}, "backbone_weights": str(path)}
    with pytest.raises(TeacherError) as error:
        fit_teacher(
            make_config(merge(fitting, {"teacher": teacher, "dataset": {"root": "nowhere"}}))
        )
    check_one_line(error, "backbone.pth: tensor ", "set teacher.backbone_weights to one of")
    assert not list(tmp_path.glob("teachers/*"))


def test_weights_of_a_fitted_teacher_are_gone_on_with(fitting, teacher, tmp_path):
    given = merge(merge(fitting, SIZES), {"teacher": teacher, "fit": {"epochs": 1}})
    fit_teacher(make_config(given))
    said, again = [], {"fit": {"out": str(tmp_path / "again.pth")}}
    network = build_start(make_config(merge(given, again)), say=said.append)
    stored = torch.load(make_config(given).fit.out, weights_only=True)["model_state_dict"]
    found = network.module.state_dict()
    kept = {name for name, x in stored.items() if torch.equal(x, found[name])}
    assert said == [f"from {make_config(given).fit.out}"]
    assert {name for name in found if "num_batches" not in name} <= kept


def test_a_module_without_a_backbone_has_none_to_set(fitting, tmp_path):
    teacher = {"arch": "own_teacher:bare", "weights": "as_built"}
    for change, field in (
        ({"fit": {"backbone_lr": 1e-4}}, "fit.backbone_lr"),
        ({"teacher": {"backbone_weights": "a.pth"}}, "teacher.backbone_weights"),
    ):
        with pytest.raises(SettingsError) as error:
            fit_teacher(make_config(merge(merge(fitting, {"teacher": teacher}), change)))
        check_one_line(error, f"{field} is set, and own_teacher:bare has no backbone")


def test_what_fails_in_training_mode_is_one_line(fitting):
    pytest.importorskip("segmentation_models_pytorch")
    options = {"encoder_name": "tu-tf_efficientnet_lite0"}
    given = merge(fitting, {"teacher": {"arch": "smp:FPN", "options": options}})
    with pytest.raises(TeacherError) as error:  # 48 pixels are no multiple of 32
        fit_teacher(make_config(merge(given, {"dataset": {"size": 48}})))
    check_one_line(error, "smp:FPN is failing at ", " in training mode of 48x48 (")
