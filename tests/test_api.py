"""Both phases from Python give what the programs give, and say nothing unless asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import kdcache
from kdcache.config.parser import make_config, merge
from kdcache.deploy.predict import find_classes
from kdcache.deploy.student import load_student
from kdcache.errors import SettingsError
from tests.support import quick
from tests.support.helpers import check_one_line
from train_student.cli import main as train_student


@pytest.fixture
def given(quick_data, tmp_path, quick_teacher) -> dict:
    settings = quick.quick_given(quick_data, tmp_path / "cache")
    run = {"dir": str(tmp_path / "runs/kd"), "track": "none"}
    return merge(settings, {"run": run, "train": {"epochs": 1}})


def test_five_lines_do_what_the_programs_do(given, tmp_path, capsys):
    cache = kdcache.build_cache(given)
    done = kdcache.distill(given)
    (row,) = kdcache.compare(tmp_path / "runs").compared
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    student = kdcache.load_student(done.folder)
    classes = student.predict(image)
    out, err = capsys.readouterr()
    assert not out and all(line.startswith("warning: ") for line in err.splitlines())
    assert cache.train.num_samples == quick.NUM_TRAIN
    result = json.loads((done.folder / "result.json").read_text())
    assert (done.miou, done.baseline_miou) == (result["miou"], result["baseline_miou"])
    assert done.gain_points == pytest.approx(result["improvement_points"])
    assert row.pairs[0][0].miou == done.miou
    assert np.array_equal(classes, find_classes(load_student(done.folder), image, size=None))
    assert classes.shape == (50, 70) and len(student.class_names) == 8


def test_the_numbers_are_those_of_the_program(given, tmp_path):
    kdcache.build_cache(given)
    ours = kdcache.distill(given)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(given))
    assert train_student(["--config", str(path), "--run.dir", str(tmp_path / "theirs/kd")]) == 0
    theirs = json.loads((tmp_path / "theirs/kd/result.json").read_text())
    assert (ours.miou, ours.baseline_miou) == (theirs["miou"], theirs["baseline_miou"])


@pytest.mark.parametrize("around", ["no_grad", "inference_mode"])
def test_a_caller_without_gradients_trains_all_the_same(given, tmp_path, around):
    kdcache.build_cache(given)
    plain = kdcache.distill(given)
    with getattr(torch, around)():
        done = kdcache.distill(given, {"run.dir": str(tmp_path / "other/kd")})
    assert (done.miou, done.baseline_miou) == (plain.miou, plain.baseline_miou)


@pytest.mark.parametrize("kind", ["path", "text", "nested", "dotted", "config"])
def test_settings_come_in_any_form(given, tmp_path, kind):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(given))
    flat = {"cache.path": given["cache"]["path"], **quick_flat(given)}
    forms = {"path": path, "text": str(path), "nested": given, "dotted": flat}
    settings = forms.get(kind) or make_config(given)
    cache = kdcache.build_cache(settings, {"augment.views": 1})
    assert cache.train.num_views == 1


def quick_flat(given: dict) -> dict:
    return {
        f"{section}.{name}": value
        for section, values in given.items()
        for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({1: 2}, "settings: 1 is unknown, expected"),
        ({"train": None}, "settings: train is a value, expected a section"),
        ({"train": 3, "train.epochs": 2}, "settings: train is a value, expected a section"),
        ({"train.epochs": 2, "train": 3}, "settings: train is a value, expected a section"),
        ({"train": {"epochs": "many"}}, "settings: train.epochs is 'many', expected a whole"),
        ({"train.epochs": 2.5}, "settings: train.epochs is 2.5, expected a whole number"),
        ({"train": {"epoch": 2}}, "settings: train.epoch is unknown, expected train.epochs"),
    ],
)
@pytest.mark.parametrize("function", [kdcache.build_cache, kdcache.distill])
def test_settings_are_checked_as_those_of_a_file(function, settings, words):
    for given in ((settings,), ({}, settings)):
        with pytest.raises(SettingsError) as error:
            function(*given)
        check_one_line(error, words)


def test_paths_tuples_and_numbers_of_numpy_are_settings(given):
    changes = {
        "cache.path": Path(given["cache"]["path"]),
        "dataset.size": (np.int64(32), 32),
        "train.lr": np.float64(1e-3),
        "cache.levels": ("low",),
    }
    assert kdcache.build_cache(given, changes).train.num_samples == quick.NUM_TRAIN
    assert kdcache.distill(given, changes).result["hyperparameters"]["train.lr"] == 1e-3


def test_verbose_shows_an_epoch_a_line(given, capsys):
    kdcache.build_cache(given, verbose=True)
    kdcache.distill(given, {"run.baseline": False}, verbose=True)
    out, err = capsys.readouterr()
    assert "epoch 1/1  mIoU 0." in out and "asking the teacher" in err


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8)],
    ids=["grey", "float", "channels first"],
)
def test_another_kind_of_image_is_refused(trained_run, image):
    with pytest.raises(SettingsError, match=r"image is .* expected uint8 RGB \[H, W, 3\]"):
        kdcache.load_student(trained_run).predict(image)


def test_nothing_to_compare_is_said():
    with pytest.raises(SettingsError) as error:
        kdcache.compare()
    check_one_line(error, "runs is [], expected one folder or more")


def test_importing_kdcache_does_not_import_torch():
    code = "import sys, kdcache; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
