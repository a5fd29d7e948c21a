"""Fitting a teacher: it learns, and phase one accepts what it writes."""

import pytest
import torch

from kdcache.config.parser import make_config, merge
from kdcache.errors import DataError, SettingsError, TeacherError
from kdcache.models.fit import fit_teacher
from kdcache.models.teacher import build_teacher


@pytest.fixture
def fitting(given, tmp_path):
    out = str(tmp_path / "teachers" / "mine.pth")
    return merge(
        given, {"fit": {"epochs": 2, "batch_size": 4, "out": out}, "teacher": {"weights": out}}
    )


def test_a_teacher_fitted_from_scratch_is_accepted_by_phase_one(fitting):
    config, said = make_config(fitting), []
    miou = fit_teacher(config, say=said.append)
    assert (
        said[0].startswith("from scratch, since ")
        and "epoch 2/2" in said[-2]
        and f"mIoU on val {miou:.4f}" in said[-1]
    )
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
