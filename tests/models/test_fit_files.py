"""A fit that is stopped goes on, and two fits never write one file."""

import pytest
import torch

from kdcache.config.parser import make_config, merge
from kdcache.errors import SettingsError, TrainingError
from kdcache.models import fit, fit_files
from kdcache.models.fit import build_start, fit_teacher
from kdcache.models.fit_files import FileInUseError, hold_output
from kdcache.models.fit_loop import Fitting
from kdcache.models.stored_state import load_tensors, save_tensors
from tests.support.helpers import check_one_line


@pytest.fixture
def fitting(given, tmp_path):
    out = str(tmp_path / "mine.pth")
    return merge(
        given,
        {
            "fit": {"epochs": 3, "batch_size": 4, "ema": 0.5, "out": out},
            "teacher": {"weights": out},
        },
    )


@pytest.fixture
def stop(monkeypatch):
    """Let the next fit stop as it scores its second epoch; a state is written after every epoch."""
    monkeypatch.setattr(fit, "STATE_EVERY_S", 0.0)
    real = Fitting.score_epoch

    def score(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        real(self)

    def run(given):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Fitting, "score_epoch", score)
            fit_teacher(make_config(given))

    return run


def test_a_fit_that_was_stopped_ends_as_if_it_was_not(fitting, stop, tmp_path):
    stop(fitting)
    assert not (tmp_path / "mine.pth").exists()
    said = []
    fitted = fit_teacher(make_config(fitting), say=said.append)
    assert said[0] == f"{tmp_path / 'mine.pth'}: going on after epoch 2 of 3"
    other = str(tmp_path / "other.pth")
    whole = merge(fitting, {"fit": {"out": other}, "teacher": {"weights": other}})
    assert fit_teacher(make_config(whole)).miou == fitted.miou
    one, two = (
        torch.load(tmp_path / name, weights_only=True) for name in ("mine.pth", "other.pth")
    )
    assert one["history"] == two["history"] and one["epoch"] == two["epoch"]
    for name, value in one["model_state_dict"].items():
        assert torch.equal(value, two["model_state_dict"][name]), name
    assert {path.name for path in tmp_path.glob("*.pth*")} == {"mine.pth", "other.pth"}


def test_any_fit_goes_on_as_if_it_was_not_stopped(fitting, stop, tmp_path):
    """With groups of weights, an average, and a backbone from a file that is gone meanwhile."""
    teacher = {"arch": "own_teacher:plain", "mean": [0.5] * 3, "std": [0.5] * 3}
    given = merge(fitting, {"teacher": teacher, "fit": {"backbone_lr": 1e-4, "patience": 3}})
    backbone = tmp_path / "backbone.pt"
    start = build_start(make_config(given), say=lambda text: None)
    torch.save(start.module.encoder.state_dict(), backbone)
    given = merge(given, {"teacher": {"backbone_weights": str(backbone)}})
    other = str(tmp_path / "other.pth")
    fit_teacher(make_config(merge(given, {"fit": {"out": other}, "teacher": {"weights": other}})))
    stop(given)
    backbone.unlink()
    fit_teacher(make_config(given))
    one, two = (torch.load(tmp_path / f"{x}.pth", weights_only=True) for x in ("mine", "other"))
    assert one["history"] == two["history"] and len(one["history"]) == 3
    for name, value in one["model_state_dict"].items():
        assert torch.equal(value, two["model_state_dict"][name]), name


def test_a_state_of_before_is_gone_on_with(fitting, stop, tmp_path):
    """It does not say what could not be set."""
    stop(fitting)
    path = tmp_path / "mine.pth.state"
    state, _ = load_tensors(path)
    state["whose"] = {n: x for n, x in state["whose"].items() if n not in fit_files.BEFORE}
    save_tensors(path, {name: x for name, x in state.items() if name != "sealed"})
    assert "fit.warmup" not in load_tensors(path)[0]["whose"]
    fit_teacher(make_config(fitting))
    assert not path.exists()


MAPPED = {"dataset": {"label_map": {str(value): value for value in (*range(8), 255)}}}
SWAPPED = {"dataset": {"train_split": "val", "val_split": "train"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fit": {"lr": 0.5}}, "fit.lr is 0.001, expected 0.5"),
        ({"augment": {"color_jitter": 0.1}}, "augment.color_jitter is 0.3, expected 0.1"),
        ({"teacher": {"backbone_weights": "a.pt"}}, "backbone_weights is None, expected 'a.pt'"),
        ({"teacher": {"mean": [0.5] * 3}}, "teacher.mean is [0.485, 0.456, 0.406], expected"),
        (MAPPED, "dataset.label_map.0 is absent, expected 0"),
        ({"fit": {"patience": 5}}, "fit.patience is None, expected 5"),
        (SWAPPED, "dataset.train_split is 'train', expected 'val'"),
    ],
)
def test_a_state_of_other_settings_is_refused(fitting, stop, tmp_path, change, words):
    stop(fitting)
    with pytest.raises(TrainingError) as error:
        fit_teacher(make_config(merge(fitting, change)))
    check_one_line(error, "mine.pth.state: ", words)
    check_one_line(error, "; go on with what it was begun with, or delete")


def test_a_state_is_gone_on_with_wherever_unlabelled_images_are(fitting, stop):
    stop(fitting)
    fit_teacher(make_config(merge(fitting, {"dataset": {"unlabelled": "rest"}})))


@pytest.mark.parametrize("contents", [b"", b"no state", None])
def test_a_damaged_state_is_one_line(fitting, tmp_path, contents):
    path = tmp_path / "mine.pth.state"
    torch.save({"whose": {}}, path) if contents is None else path.write_bytes(contents)
    with pytest.raises(TrainingError) as error:
        fit_teacher(make_config(fitting))
    check_one_line(error, "mine.pth.state: state is unreadable (", "; delete it")


def test_two_fits_into_one_file_are_refused(fitting, tmp_path):
    config = make_config(fitting)
    with hold_output(config.fit.out), pytest.raises(FileInUseError) as error:
        fit_teacher(config)
    check_one_line(error, "mine.pth: fit.out is in use by another process; wait for it or set")
    with hold_output(config.fit.out), hold_output(tmp_path / "other.pth"):
        pass
    assert list(tmp_path.glob("*.lock")) == []


def test_a_folder_in_the_way_is_one_line(fitting, tmp_path):
    (tmp_path / "mine.pth").mkdir()
    with pytest.raises(SettingsError) as error:
        fit_teacher(make_config(fitting))
    check_one_line(error, "mine.pth: fit.out is unwritable (it is a folder); set another path")


def test_a_teacher_is_replaced_in_one_step(fitting, tmp_path, monkeypatch):
    config = make_config(fitting)
    config.fit.out.write_bytes(b"an older teacher")

    def refuse(old, new):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("kdcache.disk.rename", refuse)
        fit_files.save_teacher(config.fit.out, {"w": torch.ones(1)}, config, facts={})
    assert config.fit.out.read_bytes() == b"an older teacher"
