"""`student.arch package.module:function`: a student of the user's is trained, resumed and shown
like kdcache's own.
"""

from __future__ import annotations

import json

import own_student
import pytest
import torch
import yaml

from kdcache.config import StudentConfig
from kdcache.config.parser import make_config, merge
from kdcache.errors import SettingsError, TrainingError
from kdcache.models.own_code import find_function, hash_source
from kdcache.models.student import build_student, find_channels, recall_student
from kdcache.progress import Output
from kdcache.report.training import report_result
from kdcache.training.checkpoint import BEST, LAST
from kdcache.training.distill import distill
from kdcache.training.learner import build_learner
from kdcache.training.processes import Alone
from tests.support.events import StopAfter
from tests.support.helpers import check_one_line
from train_student.cli import main as train_student

OWN = {
    "student": {"arch": "own_student:plain", "options": {"width": 4}},
    "cache": {"levels": ["low", "mid"]},
    "run": {"baseline": False},
}


def own(given: dict, **student: object) -> dict:
    return merge(given, merge(OWN, {"student": student}))


def test_it_is_trained_evaluated_and_its_weights_load_into_the_plain_module(built_root, given):
    outcome = distill(own(given), root=built_root)
    report_result(outcome, Alone(), output=Output())
    result = outcome.student
    folder = make_config(given).run.dir
    module = own_student.plain(8, width=4)
    module.load_state_dict(torch.load(folder / BEST, weights_only=True)["model_state_dict"])
    assert result["params"] == sum(p.numel() for p in module.parameters())
    assert result["hyperparameters"]["student.options"] == {"width": 4}
    assert result["hyperparameters"]["student.aspp_channels"] is None
    assert "student of sample" in (folder / "report.html").read_text()
    assert recall_student(result["hyperparameters"]).options == {"width": 4}


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(built_root, given, tmp_path):
    folders = [tmp_path / "runs" / name for name in ("whole", "halves")]
    whole, halves = (merge(own(given), {"run": {"dir": str(folder)}}) for folder in folders)
    distill(whole, root=built_root)
    with pytest.raises(KeyboardInterrupt):
        distill(halves, root=built_root, events=StopAfter(1))
    distill(merge(halves, {"run": {"resume": True}}), root=built_root)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in folders]
    a, b = ([json.loads(line)["total"] for line in each] for each in lines)
    assert a == b and len(a) == 2


def test_another_width_or_another_file_is_not_resumed(built_root, given, monkeypatch):
    given = own(given)
    distill(given, root=built_root)
    resumed = merge(given, {"run": {"resume": True}})
    with pytest.raises(TrainingError) as error:
        distill(merge(resumed, {"student": {"options": {"width": 8}}}), root=built_root)
    check_one_line(
        error,
        "student.options is {'width': 4}, expected {'width': 8}",
        "resume with the settings of the run",
    )
    monkeypatch.setattr("kdcache.training.run_identity.hash_source", lambda arch: "0" * 12)
    with pytest.raises(TrainingError) as error:
        distill(resumed, root=built_root)
    check_one_line(error, "student.source is", "expected '000000000000'")


def test_a_checkpoint_of_another_student_is_one_line(built_root, given, monkeypatch):
    given = own(given)
    distill(given, root=built_root)
    folder = make_config(given).run.dir
    (folder / "result.json").unlink()
    wide = own_student.Plain(8, 16)
    monkeypatch.setattr(own_student, "Plain", lambda num_classes, width: wide)
    with pytest.raises(TrainingError) as error:
        distill(merge(given, {"run": {"resume": True}}), root=built_root)
    check_one_line(
        error, str(folder), "checkpoint is of another student", "make student.arch what it was"
    )
    assert (folder / LAST).is_file()


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (
            "no_such_module:plain",
            ["no such function (ModuleNotFoundError: No module named 'no_such_module')"],
        ),
        (
            "own_student:absent",
            ["no such function (AttributeError", "that can be imported from here"],
        ),
        ("own_student:no_module", ["giving a str", "gives a torch.nn.Module"]),
        ("own_student:failing", ["failing (ValueError: no such)"]),
        ("own_student:logits_alone", ["failing at an image of 32x32", "to return (logits"]),
        ("own_student:one_class_more", ["returning logits [1, 9, 4, 4]", "expected logits [1, 8,"]),
        ("own_student:empty", ["without parameters to train", "expected one at least"]),
        ("own_student:leaving", ["failing (SystemExit: 3)"]),
        (
            "own_student:frozen_alone",
            ["failing at two images in training mode, of 32x32 (RuntimeError: not like this)"],
        ),
        (
            "own_student:too_small",
            ["failing at an image of 32x32 (RuntimeError: the image is too small)"],
        ),
    ],
)
def test_what_is_no_student_is_one_line(given, arch, words):
    config = make_config(
        own(given, arch=arch, options=None),
        {"student": {"options": {}}, "train": {"device": "cpu"}},
    )
    with pytest.raises(SettingsError) as error:
        build_learner(config, teacher_channels={"low": 256, "mid": 512})
    check_one_line(
        error, f"settings: student.arch {arch} is", *words, "mend it or change student.arch"
    )


def test_a_level_that_it_does_not_return_is_named():
    student = build_student(StudentConfig(arch="own_student:plain"), num_classes=3)
    assert find_channels(student, ["low", "mid"], arch="x:y", num_classes=3, hw=(32, 48)) == {
        "low": 8,
        "mid": 16,
    }
    with pytest.raises(SettingsError) as error:
        find_channels(
            student, ["low", "high"], arch="own_student:plain", num_classes=3, hw=(32, 32)
        )
    check_one_line(
        error, "returning nothing as features of level 'high'", "or set cache.levels [low, mid]"
    )


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (
            ["--student.arch", "resnet"],
            "expected mobilenetv3_small, timm:NAME or package.module:function",
        ),
        (["--student.options.width", "4"], "expected nothing for mobilenetv3_small"),
        (["--student.options", "5"], "student.options is '5', expected names with values"),
    ],
)
def test_settings_that_cannot_be_are_refused(arch, words, capsys):
    assert train_student(arch) == 2
    assert words in capsys.readouterr().err


def test_options_come_from_the_command_line_and_from_a_file(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text(
        yaml.safe_dump({"student": {"arch": "own_student:plain", "options": {"width": 4}}})
    )
    for words in (
        ["--config", str(path)],
        ["--student.arch", "own_student:plain", "--student.options", "{width: 4}"],
    ):
        assert train_student([*words, "--cache.path", str(tmp_path / "none")]) == 1
        assert "none" in capsys.readouterr().err


def test_the_source_is_the_file_of_the_function():
    assert len(hash_source("own_student:plain")) == 64
    assert (
        hash_source("own_student:plain") != hash_source("torchvision.models:resnet18") != "unknown"
    )
    assert (
        hash_source("math:sqrt") == "unknown"
        and find_function("own_student:plain") is own_student.plain
    )


def test_a_missing_level_is_met_before_the_baseline_is_trained(built_root, given, tmp_path):
    changes = {"cache": {"levels": ["high"]}, "run": {"baseline": True}}
    with pytest.raises(SettingsError) as error:
        distill(merge(own(given), changes), root=built_root)
    check_one_line(error, "returning nothing as features of level 'high'")
    assert not (tmp_path / "runs").exists()


def test_what_it_raises_in_training_is_one_line_with_the_place(built_root, given, monkeypatch):
    monkeypatch.setattr(own_student, "PATIENCE", 5)
    with pytest.raises(TrainingError) as error:
        distill(own(given, arch="own_student:late"), root=built_root)
    words = "student.arch own_student:late is failing in training"
    check_one_line(error, f"{words} (RuntimeError: boom, own_student.py line", "--run.resume")
