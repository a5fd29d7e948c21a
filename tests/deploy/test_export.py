"""A run's student is loaded, compared and written elsewhere; what is no run, or no longer what it
was, is refused.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import own_student
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from kdcache import LightweightSegmentationModel
from kdcache.config.parser import merge
from kdcache.data.sample_set import CLASS_NAMES
from kdcache.deploy import export, safetensors
from kdcache.deploy.export import check_answers, compare, measure_latency
from kdcache.deploy.predict import find_images
from kdcache.deploy.student import TrainedStudent, load_student
from kdcache.errors import DataError, SettingsError, TrainingError
from kdcache.models.stored_state import save_tensors
from kdcache.report.panels import Predictor
from kdcache.training.checkpoint import BEST
from kdcache.training.distill import distill
from tests.support.helpers import check_one_line
from train_student.cli import main
from train_student.runs import FORMATS


def test_the_command_knows_each_format_that_is_written():
    assert set(FORMATS) == set(export.FILES)


@pytest.fixture(scope="module")
def student(trained_run) -> TrainedStudent:
    return load_student(trained_run)


def test_the_student_of_the_best_epoch_answers_as_the_one_that_was_scored(student, trained_run):
    result = json.loads((trained_run / "result.json").read_text())
    assert (student.epoch, student.miou) == (result["best_epoch"], result["miou"])
    assert student.cache_identity == result["cache_identity"]
    image = find_images(student, [])[0]
    scored = Predictor(student.config, trained_run / BEST).predict(image)
    assert np.array_equal(student.ask(image[None]).argmax(1)[0].numpy(), scored)


def test_a_run_that_is_not_finished_has_a_student(run):
    (run / "result.json").unlink()
    assert load_student(run).epoch in (1, 2)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda run: run.rename(run.with_name("away")),
            "folder is missing, expected a run with config.yaml",
        ),
        (
            lambda run: (run / "config.yaml").unlink(),
            "folder is no run, expected a run with config.yaml",
        ),
        (
            lambda run: (run / BEST).unlink(),
            f"folder is no run, expected a run with {BEST}; give the folder of a run whose",
        ),
        (
            lambda run: (run / "config.yaml").write_text("student: 5"),
            "student is 5, expected a section of names",
        ),
        (
            lambda run: (run / "config.yaml").write_text("train: {lr: [x]}"),
            "settings are unreadable",
        ),
        (
            lambda run: (run / BEST).write_bytes((run / BEST).read_bytes()[:5000]),
            "checkpoint is unreadable",
        ),
        (lambda run: set_channels(run / "config.yaml"), "checkpoint is of another student"),
        (lambda run: empty_history(run / BEST), "checkpoint is unreadable (history is []"),
    ],
)
def test_what_is_no_run_is_one_line(run, spoil, words):
    spoil(run)
    with pytest.raises((SettingsError, TrainingError)) as error:
        load_student(run)
    check_one_line(error, str(run), words)


def set_channels(path: Path) -> None:
    path.write_text(
        yaml.safe_dump(merge(yaml.safe_load(path.read_text()), {"student": {"aspp_channels": 24}}))
    )


def empty_history(path: Path) -> None:
    save_tensors(path, {**torch.load(path, weights_only=True), "history": []})


def test_safetensors_load_into_a_plain_module_in_three_lines_and_say_whose_they_are(run, capsys):
    assert main(["export", str(run), "--to", "safetensors"]) == 0
    out = capsys.readouterr().out
    assert "student.safetensors: " in out and "equal bit for bit to the checkpoint's" in out
    plain = LightweightSegmentationModel(num_classes=8, pretrained=False, aspp_channels=16)
    plain.load_state_dict(load_file(run / "student.safetensors"))
    stored = torch.load(run / BEST, weights_only=True)["model_state_dict"]
    assert all(torch.equal(value, stored[name]) for name, value in plain.state_dict().items())
    with safe_open(run / "student.safetensors", framework="pt") as file:
        facts = file.metadata()
    assert json.loads(facts["class_names"]) == list(CLASS_NAMES) and json.loads(facts["mean"]) == [
        0.485,
        0.456,
        0.406,
    ]
    assert float(facts["miou"]) == load_student(run).miou and len(facts["cache_identity"]) == 64


def test_safetensors_that_differ_by_a_bit_are_not_left_behind(run, monkeypatch, capsys):
    def save_otherwise(tensors: dict, metadata: dict) -> bytes:
        tensors["classifier.bias"].view(torch.int32)[0] ^= 1
        return save(tensors, metadata)

    save = safetensors.save
    monkeypatch.setattr(safetensors, "save", save_otherwise)
    assert main(["export", str(run), "--to", "safetensors"]) == 1
    error = capsys.readouterr().err
    assert "tensor classifier.bias differs" in error and error.count("\n") == 1
    assert not list(run.glob("student.*"))


def test_tensors_are_compared_by_their_bits():
    nan, zero = torch.tensor([float("nan")]), torch.zeros(1)
    assert safetensors._same(nan, nan.clone()) and not safetensors._same(zero, -zero)
    assert not safetensors._same(zero, None) and not safetensors._same(zero, zero.double())


def test_a_student_of_the_users_is_exported_and_a_change_of_its_file_is_warned_of(
    built_root, given, monkeypatch, capsys
):
    own = {
        "student": {"arch": "own_student:plain", "options": {"width": 4}},
        "cache": {"levels": ["low", "mid"]},
    }
    distill(
        merge(given, {**own, "run": {"baseline": False}, "train": {"epochs": 1}}), root=built_root
    )
    run = given["run"]["dir"]
    words = ["export", run, "--to", "safetensors", "--student.arch", "own_student:plain"]
    assert main(words) == 0
    module = own_student.plain(8, width=4)
    module.load_state_dict(load_file(f"{run}/student.safetensors"))
    assert "has changed" not in capsys.readouterr().err
    monkeypatch.setattr("kdcache.models.own_code.hash_file", lambda path: "0" * 12)
    assert main(words) == 2
    assert "expected" in capsys.readouterr().err
    assert main([*words, "--trust-code"]) == 0
    assert (
        "the file of student.arch own_student:plain has changed since the run was trained"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("onnx", "onnx"),
        ("onnx", "onnxscript"),
        ("safetensors", "safetensors"),
        ("executorch", "executorch"),
    ],
)
def test_a_format_that_is_not_installed_names_its_extra_before_anything_is_read(
    name, package, monkeypatch, capsys
):
    monkeypatch.delitem(sys.modules, f"kdcache.deploy.{name}", raising=False)
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", "no such run", "--to", name]) == 2
    error = capsys.readouterr().err
    assert (
        f"is {name} (" in error
        and package in error
        and f"`pip install 'kdcache[{name}]'`" in error
        and error.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["export"], "RUN"),
        (["export", "x"], "--to"),
        (
            ["export", "x", "--to", "tflite"],
            "--to is 'tflite', expected onnx, safetensors or executorch",
        ),
        (["export", "no such run", "--to", "safetensors"], "no such run: folder is missing"),
        (["predict", "x"], "IMAGE"),
    ],
)
def test_wrong_usage_is_one_line(argv, words, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert (
        words in error and error.count("\n") == 1 and error.startswith(f"train_student {argv[0]}: ")
    )


def test_help_names_the_commands(capsys):
    for argv in (["--help"], ["export", "--help"], ["predict", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0
    assert "export" in (text := capsys.readouterr().out) and "predict" in text


def test_an_exported_student_that_answers_otherwise_is_refused(student):
    images = find_images(student, [])
    text = check_answers(student, student.ask, images, name="itself", threads="one thread")
    assert f"{len(images)} images asked of itself" in text and "100.0000 % of the pixels" in text
    for other, words in (
        (lambda image: 1 / 0, "other fails (ZeroDivisionError: division by zero)"),
        (lambda image: student.ask(image) + 0.002, "largest difference of a logit is 0.00"),
        (lambda image: student.ask(image) * float("nan"), "largest difference of a logit is nan"),
    ):
        with pytest.raises(TrainingError) as error:
            check_answers(student, other, images, name="other", threads="one thread")
        check_one_line(error, words, "nothing was kept")


def test_another_best_class_is_refused_though_the_logits_are_close(student, monkeypatch):
    logits = torch.zeros(1, 3, 10, 10)
    logits[:, 1] = 1e-5
    other = logits.clone()
    other[0, 0, 0, 0] = 2e-5
    found = compare(lambda image: logits, lambda image: other, [np.zeros(1)])
    assert (found.num_images, found.agreement) == (
        1,
        0.99,
    ) and found.max_difference == pytest.approx(2e-5)
    with pytest.raises(TrainingError) as error:
        export._check_limits(found, where="x")
    check_one_line(
        error, "x: share of pixels with the same class is 0.99, expected 0.9999 at least"
    )


def test_latency_is_measured_in_turn_on_one_thread_and_threads_are_given_back(monkeypatch):
    order, threads = [], torch.get_num_threads()
    asks = {
        name: lambda image, name=name: order.append((name, torch.get_num_threads()))
        for name in ("a", "b")
    }
    torch.set_num_threads(2)
    try:
        times = measure_latency(asks, np.zeros(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (
        order == [("a", 1), ("b", 1)] * (export.WARM_UPS + export.ROUNDS)
        and min(times.values()) > 0
    )


def test_images_to_compare_on_come_from_the_cache_or_are_given(student, voc_root, tmp_path):
    assert [image.shape for image in find_images(student, [])] == [(48, 48, 3)] * 5
    folder = voc_root / "VOCdevkit/VOC2012/JPEGImages"
    assert [image.shape for image in find_images(student, [folder])] == [(48, 48, 3)] * 15
    moved = replace(student.config.cache, path=str(tmp_path / "none"))
    lost = replace(student, config=replace(student.config, cache=moved))
    with pytest.raises(SettingsError) as error:
        find_images(lost, [])
    check_one_line(
        error,
        "cache of the run is not there to compare on",
        "give --images with a folder of real ones",
    )
    with pytest.raises(DataError) as error:
        find_images(lost, [tmp_path])
    check_one_line(error, "folder is without images")


def test_without_images_to_compare_on_nothing_is_exported(run, tmp_path, capsys):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(
        yaml.safe_dump(merge(settings, {"cache": {"path": str(tmp_path / "none")}}))
    )
    assert main(["export", str(run), "--to", "onnx"]) == 2
    error = capsys.readouterr().err
    assert "give --images with a folder of real ones" in error and error.count("\n") == 1
    assert not list(run.glob("student.*"))
